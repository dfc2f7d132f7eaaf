"""The arithmetic of scaling: the ladder of sizes, matching, and laws fitted to runs. Pure functions, no torch."""
