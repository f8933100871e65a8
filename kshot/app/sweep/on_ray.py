"""Workers of a sweep as tasks of Ray, on this machine or on the nodes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kshot.app.sweep.worker import Job, work_alone

RETRIES = 3
"""How often Ray starts a worker again whose process or node was lost."""
POLL = 0.5
"""Seconds between two looks at what the workers have done."""


class RayWorkers:
    """The workers of one sweep; each has a CPU of its own.

    Args:
        ray: the module of Ray.
        job: of all workers.
        count: number of workers.
    """

    def __init__(self, ray: Any, job: Job, count: int) -> None:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(work_alone)
        self._ray = ray
        self._running = [task.remote(job) for _ in range(count)]

    def wait(self) -> bool:
        """Wait a moment; returns whether any worker is at work. RuntimeError if the last one has failed."""
        done, self._running = self._ray.wait(self._running, num_returns=len(self._running), timeout=POLL)
        for each in done:
            try:
                self._ray.get(each)
            except self._ray.exceptions.RayError as error:
                if not self._running:
                    raise RuntimeError(f"a worker on Ray failed: {str(error).strip().splitlines()[-1]}") from error
        return bool(self._running)


@contextmanager
def ray_workers(job: Job, count: int) -> Iterator[RayWorkers]:
    """Start workers on the cluster of `RAY_ADDRESS`, or else on a Ray of this machine, and end them at last.

    Raises:
        ValueError: Ray is not installed; or a cluster has a study that its nodes cannot share, in a file.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("launcher: ray needs Ray, which is not installed: pip install 'kshot[ray]'") from None
    cluster = os.environ.get("RAY_ADDRESS")
    if cluster and job.storage.startswith("sqlite"):
        raise ValueError(
            "the nodes of a cluster share the study by a database: give --storage, such as postgresql://host/name, and "
            "an --out on a disk that all nodes have"
        )
    ray.init(address=cluster, num_cpus=None if cluster else count, include_dashboard=False, log_to_driver=False)
    try:
        yield RayWorkers(ray, job, count)
    finally:
        ray.shutdown()
