"""Interval attention's kernels for any GPU that Triton knows."""
