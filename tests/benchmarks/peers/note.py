"""What a job of any peer does: it notes that it ran, in one write, which is whole whoever else writes."""

import logging
import os
import time

_out = os.open(os.environ["RAN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "RAN" in os.environ else -1

if "SILENT" in os.environ:
    logging.disable(logging.CRITICAL)


def ran(number):
    """Note that job ``number`` ran, in which process, and when, in nanoseconds."""
    os.write(_out, b"%d %d %d\n" % (number, os.getpid(), time.monotonic_ns()))
