"""Fixtures of tests of published weights."""

from small_runs import data_root, fresh_accelerator, one_thread

__all__ = ["data_root", "fresh_accelerator", "one_thread"]
