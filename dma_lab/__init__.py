"""dma_lab: does one attention backend beat another at equal cost, and will it still at 100 times the compute?"""

__version__ = "0.1.0"
