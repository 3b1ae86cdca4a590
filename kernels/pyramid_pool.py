"""Placeholder until the kernels are written."""
