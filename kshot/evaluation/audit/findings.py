"""The result of an audit, and the evidence that audits work on.

Shape legend: n examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from kshot.checking.duplicates import content_hashes
from kshot.learner import Learner, predict_query
from kshot.tasks.source import TaskSource, draw
from kshot.training.fit import seeded
from kshot.types import Batch, Split, Task, Tree


class Result(Enum):
    """Outcome of an audit; the value describes it in a sentence."""

    PASSED = "The check was made and found no problem."
    FAILED = "The check was made and found a problem: the figure is not to be trusted."
    NOT_APPLICABLE = "The check does not apply to these tasks or this learner."


@dataclass(frozen=True)
class Audit:
    """One check of an evaluation and its result.

    Attributes:
        name, question, result: short name, the question that the audit answers, and its outcome.
        finding: the answer, or why the audit does not apply, in a sentence.
        figure: the measured value; None if nothing was measured.
        tolerance, reason: largest value that passes, and its justification.
    """

    name: str
    question: str
    result: Result
    finding: str
    figure: float | None = None
    tolerance: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"result": self.result.name}


class Question(NamedTuple):
    """Name and question of an audit, which `judge` or `skip` completes."""

    name: str
    question: str

    def judge(self, figure: float, tolerance: float, finding: str, reason: str) -> Audit:
        """An audit that passes if the figure is at most the tolerance; NaN fails."""
        result = Result.PASSED if figure <= tolerance else Result.FAILED
        return Audit(self.name, self.question, result, finding, figure, tolerance, reason)

    def skip(self, why: str) -> Audit:
        """An audit that does not apply."""
        return Audit(self.name, self.question, Result.NOT_APPLICABLE, why)


class Evidence(NamedTuple):
    """Data of an evaluation that its audits use.

    Attributes:
        weights: `fingerprint` of the learner before the first task.
        episodes: `short_hash` of each task.
        figures: "loss" and metrics of each task.
        first: the first tasks as they were scored, and the predictions for their queries.
    """

    weights: str
    episodes: list[str]
    figures: dict[str, list[float]]
    first: list[tuple[Task, Tree]]


def stream(source: TaskSource, split: Split, num_tasks: int, *, chunk: int) -> Iterator[tuple[int, Task]]:
    """The first tasks of a split with their numbers; `chunk` tasks are drawn at once, which bounds the memory."""
    for start in range(0, num_tasks, chunk):
        yield from enumerate(draw(source, split, range(start, min(start + chunk, num_tasks))), start)


def score_again(learner: Learner, task: Task, seed: int, number: int) -> float:
    """The loss on a task, with the same random numbers as in the evaluation."""
    with seeded(seed, number, device=task.support.weight.device):
        prediction = predict_query(learner, learner.adapt(task.support), task.query)
        return float(learner.objective.loss(prediction, task.query))


def real(batch: Batch) -> Batch:
    """A batch without its padding."""
    return batch.rows(batch.weight > 0)


def task_contents(task: Task) -> tuple[list[bytes], list[bytes]]:
    """Hashes of the inputs of a task's support and query, without padding."""
    support, query = (content_hashes(real(batch).inputs) for batch in task)
    return support, query
