"""The cores of a CPU, side by side: each thread works on its own, one operation never spans two.

The operations of a small task are too short to be shared among cores, and cores that wait for one another spin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Cores:
    """Threads that hold one core each.

    Args:
        count: how many, at least 1.

    Example:
        >>> Cores(2).map(len, [[1, 2, 3], [4]])
        [3, 1]
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool = ThreadPoolExecutor(count)
        together, cores = Barrier(count), torch.get_num_threads()

        def begin() -> None:
            together.wait()  # so that each task of these goes to a thread of its own
            torch.set_num_threads(1)

        for begun in [self.pool.submit(begin) for _ in range(count)]:
            begun.result()
        torch.set_num_threads(cores)  # of this thread, and of those to come

    def map(self, function: Callable[[Any], T], parts: Sequence[Any]) -> list[T]:
        """What the function makes of each part, in the order of the parts."""
        return list(self.pool.map(function, parts))
