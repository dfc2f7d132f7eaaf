"""Block-sparse attention's kernels in Triton."""
