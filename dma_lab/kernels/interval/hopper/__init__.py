"""Interval attention's kernels for Hopper GPUs, in Gluon: warps that fetch beside warps that attend."""
