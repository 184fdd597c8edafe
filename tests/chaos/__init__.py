"""The ledger: messages of every kind under faults of every kind, and whether each had exactly one ending.

``python -m tests.chaos --help`` says how to run it.
"""
