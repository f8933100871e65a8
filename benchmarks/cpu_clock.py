"""Time budgets in seconds of CPU, so that what a benchmark with budgets finds does not depend on other jobs.

A process of one thread has the CPU time that it would take on a machine of its own, but for caches and memory. Only
benchmarks use this clock: a user's minutes are those of the clock on the wall.
"""

from __future__ import annotations

import signal
import time

import torch

from kshot.app.auto import time_limit


def use_cpu_clock() -> None:
    """From now on, `time.monotonic` and the time limits of `kshot auto` count the CPU time of this process."""
    torch.set_num_threads(1)
    time.monotonic = time.process_time
    time_limit.TIMER, time_limit.SIGNAL = signal.ITIMER_PROF, signal.SIGPROF
