"""A pool of threads, one per CPU core; each runs its operations on a single core.

The operations of a small task are too short to be split among cores, and waiting cores spin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Cores:
    """A pool of threads with one core each.

    Args:
        count: number of threads, at least 1.

    Example:
        >>> Cores(2).map(len, [[1, 2, 3], [4]])
        [3, 1]
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool = ThreadPoolExecutor(count)
        barrier, num_cores = Barrier(count), torch.get_num_threads()

        def initialise() -> None:
            barrier.wait()  # so that each of these calls runs in a different thread
            torch.set_num_threads(1)

        for future in [self.pool.submit(initialise) for _ in range(count)]:
            future.result()
        torch.set_num_threads(num_cores)  # of this thread and of later ones

    def map(self, function: Callable[[Any], T], parts: Sequence[Any]) -> list[T]:
        """The results of the function on the parts, in their order."""
        return list(self.pool.map(function, parts))
