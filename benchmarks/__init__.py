"""What bench.py measures; results/ holds the records."""
