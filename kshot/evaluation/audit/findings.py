"""What an audit says, and what it goes by.

Shape legend: n examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from kshot.checking.duplicates import content_hashes
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Task, Tree, unstack

CHUNK = 8  # tasks drawn at once: other than in an evaluation, which must make no difference


class Result(Enum):
    """How an audit ended; the value is the sentence for a person."""

    PASSED = "It was checked, and nothing was found."
    FAILED = "It was checked and found wanting: the figure is not to be trusted."
    NOT_APPLICABLE = "There is nothing that could be checked."


@dataclass(frozen=True)
class Audit:
    """One thing that was asked of an evaluation, and the answer.

    Attributes:
        name: in a word or two.
        asks: the question.
        result: passed, failed, or not applicable.
        found: what was found, or why there was nothing to check, in a sentence.
        figure: what was measured; None where nothing was.
        tolerance: up to where the figure passes.
        because: why the tolerance is what it is.
    """

    name: str
    asks: str
    result: Result
    found: str
    figure: float | None = None
    tolerance: float | None = None
    because: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return vars(self) | {"result": self.result.name}


class Evidence(NamedTuple):
    """What an evaluation leaves to its audits.

    Attributes:
        weights: `fingerprint` of the learner before the first task.
        episodes: `short_hash` of each task.
        figures: "loss" and metrics, task by task.
        first: the first tasks as they were scored, and what was predicted for their queries.
    """

    weights: str
    episodes: list[str]
    figures: dict[str, list[float]]
    first: list[tuple[Task, Tree]]


def judged(name: str, asks: str, figure: float, tolerance: float, found: str, because: str) -> Audit:
    """An audit that passes up to its tolerance; NaN fails."""
    result = Result.PASSED if figure <= tolerance else Result.FAILED
    return Audit(name, asks, result, found, figure, tolerance, because)


def idle(name: str, asks: str, why: str) -> Audit:
    return Audit(name, asks, Result.NOT_APPLICABLE, why)


def stream(source: TaskSource, split: Split, count: int) -> Iterator[tuple[int, Task]]:
    for start in range(0, count, CHUNK):
        yield from enumerate(unstack(source.stack(split, range(start, min(start + CHUNK, count)))), start)


def real(batch: Batch) -> Batch:
    """A batch without its padding."""
    return batch.rows(batch.weight > 0)


def task_contents(task: Task) -> tuple[list[bytes], list[bytes]]:
    """Hashes of the inputs of a task's support and query, without padding."""
    support, query = (content_hashes(real(batch).inputs) for batch in task)
    return support, query
