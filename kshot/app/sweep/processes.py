"""Workers of a sweep in processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna import Study

from kshot.app.sweep import study as notes
from kshot.app.sweep.worker import Job, is_done

RESTARTS = 3
"""How often a worker that was killed is started again, in the mean."""
POLL = 0.2
"""Seconds between two looks at what the workers have done."""


class ProcessWorkers:
    """The workers of one sweep, in processes of one thread each."""

    def __init__(self, job: Job, study: Study, count: int) -> None:
        self._job, self._study, self._restarts = job, study, RESTARTS * count
        self._processes = [_start(job, number) for number in range(count)]

    def wait(self) -> bool:
        """Wait a moment, and start workers that were killed again; returns whether any worker is at work."""
        if all(each.poll() is not None for each in self._processes):
            return False
        time.sleep(POLL)
        for number, each in enumerate(self._processes):
            if each.poll() in (None, 0):
                continue
            notes.give_up(self._study, {notes.PLACE: self._job.place, notes.PROCESS: each.pid})
            if self._restarts and not is_done(self._job, self._study):
                self._restarts -= 1
                self._processes[number] = _start(self._job, number)
        return True

    def end(self) -> None:
        """Kill those that are at work."""
        for each in self._processes:
            each.kill()
            each.communicate()


@contextmanager
def process_workers(job: Job, study: Study, count: int) -> Iterator[ProcessWorkers]:
    """Start workers, and end them at last."""
    workers = ProcessWorkers(job, study, count)
    try:
        yield workers
    finally:
        workers.end()


def _start(job: Job, number: int) -> subprocess.Popen[str]:
    """A worker in a process of its own, with one thread."""
    with (Path(job.out) / f"worker-{number}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kshot.app.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert process.stdin is not None
    process.stdin.write(job.to_json() + "\n")
    process.stdin.flush()
    return process
