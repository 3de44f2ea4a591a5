"""What to try next, and which trials are the best: search spaces, samplers, Pareto fronts."""
