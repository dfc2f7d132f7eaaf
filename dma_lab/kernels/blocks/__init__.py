"""Attention of every query over the blocks of keys that it chose (NSA's selected branch), and the choice."""
