"""A day recomputed for every tenant with events in it: planned, sent, followed to its end, and summed up."""
