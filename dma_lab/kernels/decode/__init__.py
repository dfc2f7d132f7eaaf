"""Decoding over a cache that holds only keys that may still be seen."""
