"""Fixtures of small runs."""

from small_runs import data_root, finished_run, fresh_accelerator, one_thread

__all__ = ["data_root", "finished_run", "fresh_accelerator", "one_thread"]
