"""What ``dma-lab bench`` measures; the records of this project's machines are in benchmarks/results at the top."""
