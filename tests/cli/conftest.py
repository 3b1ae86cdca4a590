"""Fixtures of small runs."""

from small_runs import config, data_root, finished_run, fresh_accelerator, one_thread

__all__ = ["config", "data_root", "finished_run", "fresh_accelerator", "one_thread"]
