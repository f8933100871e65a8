"""The units of tasks: what they are drawn from, such as patients, schools, users or classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Units(NamedTuple):
    """The units of tasks.

    Attributes:
        numbers: (T,) unit of each task as an integer, or (T, K), with -1 where a task has fewer.
        unit: what a unit is called.
        names: of the units, by number; empty if they have none.
    """

    numbers: np.ndarray
    unit: str = "unit"
    names: Sequence[str] = ()

    def first(self, count: int) -> Units:
        """The units of the first tasks."""
        return self._replace(numbers=self.numbers[:count])

    def of_task(self, task: int) -> list[str]:
        """The names of the units of a task; their numbers if they have none."""
        numbers = [number for number in np.atleast_1d(self.numbers[task]).tolist() if number >= 0]
        return [self.names[number] if self.names else str(number) for number in numbers]


def describe_units(units: Units | None) -> dict[str, Any]:
    """What a report says of the units of its test tasks: their name, how many, and whether each task has all."""
    if units is None:
        return {}
    present = units.numbers[units.numbers >= 0]
    count = len(np.unique(present))
    every = units.numbers.ndim == 2 and len(present) == count * len(units.numbers)
    return {"unit": units.unit, "test_units": count} | ({"same_units_in_all_tasks": True} if every else {})


def joined(parts: Sequence[Units]) -> Units | None:
    """The units of several sets of tasks, one after the other, no unit in two of them; None if there are none."""
    if not parts:
        return None
    width = max(part.numbers.reshape(len(part.numbers), -1).shape[1] for part in parts)
    numbers, names = [], list[str]()
    for part in parts:
        own = part.numbers.reshape(len(part.numbers), -1)
        shifted = np.where(own < 0, -1, own + len(names))
        numbers.append(np.pad(shifted, ((0, 0), (0, width - own.shape[1])), constant_values=-1))
        names += part.names or [str(number) for number in range(int(own.max()) + 1)]
    together = np.concatenate(numbers)
    return Units(together[:, 0] if width == 1 else together, parts[0].unit, names)


def count_of(number: int, unit: str) -> str:
    """A number with its unit: "1 task", "600 tasks", "6 classes", "20 countries"."""
    plural = f"{unit}es" if unit.endswith(("s", "x", "ch")) and unit != "series" else f"{unit}s"
    if unit.endswith("y") and unit[-2:-1] not in tuple("aeiou"):
        plural = f"{unit[:-1]}ies"
    return f"{number} {unit if number == 1 or unit == 'series' else plural}"
