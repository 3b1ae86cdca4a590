"""Triton kernels of the ops: any GPU that Triton serves, no nvcc needed."""
