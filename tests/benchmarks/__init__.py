"""Figures, by hand: ``python -m tests.benchmarks.failures`` and so on.

Each starts servers of its own, runs the variants in turn (A B C, A B C, ...) and prints medians and ratios of one run;
figures of different runs do not compare.
"""
