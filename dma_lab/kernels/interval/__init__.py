"""Attention in which every key is seen by one run of consecutive queries."""
