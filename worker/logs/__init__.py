"""Log lines: one JSON object each, or readable on a terminal, the same from loguru and the standard library.

:mod:`worker.logs.setup` puts it together; what code at hand works on comes from :mod:`middleware.log_context`. A line
never fails, nor interrupts, the job that causes it, whatever is in it and wherever it goes.
"""
