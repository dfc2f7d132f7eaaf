"""From a corpus to the batch of a step: documents, tokens on disk, windows.

Dimension letters: B batch, N sequence.
"""
