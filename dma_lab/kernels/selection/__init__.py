"""From scores to lifetimes: plain PyTorch (``lifetimes``), and kernels (``ranks``, then ``counting``)."""
