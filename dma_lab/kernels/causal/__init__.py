"""Causal attention, windowed or not, over packed documents: every implementation that there is, and which runs."""
