"""What goes on at this moment, asking Redis alone: which workers live, what they run, how much ends, what is spooled.

For the console and the command line, and cheap enough to be asked every few seconds. As in :mod:`worker.queue_admin`,
which knows what queues hold and which of them are paused, functions take a client that decodes nothing and the
namespace, and raise :class:`dramatiq.errors.ConnectionClosed` for any error of Redis. Redis knows no tenants: all of
this is an operator's to see.
"""

from worker.live.counted import counted
from worker.live.samples import DepthSamples, depth_samples
from worker.live.scheduler import SchedulerState, scheduler_state
from worker.live.spool import SpooledGroup, SpoolState, spool_groups, spool_state
from worker.live.throughput import Throughput, throughput
from worker.live.workers import RunningMessage, WorkerState, list_workers

__all__ = [
    "DepthSamples",
    "RunningMessage",
    "SchedulerState",
    "SpoolState",
    "SpooledGroup",
    "Throughput",
    "WorkerState",
    "counted",
    "depth_samples",
    "list_workers",
    "scheduler_state",
    "spool_groups",
    "spool_state",
    "throughput",
]
