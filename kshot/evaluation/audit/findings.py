"""The result of an audit, and the evidence that audits work on.

Shape legend: n examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    IDLE = "The check could not be made, so that a fault of its kind would not have been seen."
    NOT_APPLICABLE = "The question has no meaning for tasks of this kind."


@dataclass(frozen=True)
class Audit:
    """One check of an evaluation and its result.

    Attributes:
        name, question, result: short name, the question that the audit answers, and its outcome.
        finding: the answer, or why there is none, in a sentence.
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

    def idle(self, why: str) -> Audit:
        """An audit that could not be made."""
        return Audit(self.name, self.question, Result.IDLE, why)

    def skip(self, why: str) -> Audit:
        """An audit whose question has no meaning here."""
        return Audit(self.name, self.question, Result.NOT_APPLICABLE, why)


class Trust(NamedTuple):
    """How far audits support a figure.

    Attributes:
        trusted: whether the figure was audited, no audit failed, and most of those that apply were made.
        sentence: the numbers of audits that passed, failed and were not made, and why.
    """

    trusted: bool
    sentence: str


def trust(audits: Sequence[Mapping[str, Any]]) -> Trust:
    """How far the audits, as JSON, support a figure.

    Example:
        >>> passed = Audit("finite", "Are predictions finite?", Result.PASSED, "All are.").to_json()
        >>> idle = Audit("chance", "Is it luck?", Result.IDLE, "There are too few tasks.").to_json()
        >>> trust([passed, passed, idle]).sentence
        'trusted: 2 of 3 audits passed, 1 idle: chance (there are too few tasks)'
        >>> trust([passed, idle, idle]).trusted
        False
    """
    if not audits:
        return Trust(False, "not audited: nothing is known about the figure's soundness")
    by_result = {result: [audit for audit in audits if audit["result"] == result.name] for result in Result}
    passed, failed, idle, void = (by_result[result] for result in Result)
    mostly_idle = len(idle) >= len(passed)
    word = "not trusted" if failed or mostly_idle else "trusted"
    parts = [f"{len(passed)} of {len(audits)} audits passed"]
    if failed:
        parts.append(f"{len(failed)} failed ({', '.join(audit['name'] for audit in failed)})")
    sentence = f"{word}: {', '.join(parts)}"
    if idle or void:
        reasons: dict[str, list[str]] = {}
        for audit in (*idle, *void):
            reasons.setdefault(audit["finding"], []).append(audit["name"])
        why = "; ".join(f"{', '.join(names)} ({_clause(finding)})" for finding, names in reasons.items())
        sentence += f", {len(idle) + len(void)} idle: {why}"
    if mostly_idle and not failed:
        sentence += f". Of those that apply to such tasks, {len(idle)} were idle, too many to trust the figure"
    return Trust(not failed and not mostly_idle, sentence)


def _clause(sentence: str) -> str:
    """A sentence within another: without its full stop, and in lower case, unless it starts with an acronym."""
    text = sentence.rstrip(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


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
