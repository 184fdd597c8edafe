"""The soak: everything of the Procfile under a steady load, for half an hour and more.

``python -m tests.soak --help`` says how to run it.
"""
