"""The commands, ``dma-lab NAME`` and ``python NAME.py`` alike: parse, call, print where the result lies."""
