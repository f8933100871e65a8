"""Rounds, the decisions after them, the outcomes of a run, and the log of them all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target
from kshot.files import append_line, read_lines, sync

logger = logging.getLogger(__name__)


class Outcome(Enum):
    """How a run ended; the value is the sentence to display."""

    TARGET_MET = "The target is met on validation tasks."
    BUDGET_SPENT = "The budget was spent before the target was met; give it more rounds, steps or minutes."
    NO_PROGRESS = "Validation stopped improving before the target was met; change the model, the learner or the data."
    NOT_REACHABLE = (
        "The target is predicted to be missed within the budget; give more time, or change the model, the learner or "
        "the data."
    )
    DIVERGED = "The loss became infinite or NaN; the last good checkpoint is kept. Lower outer_lr or inner_lr."


@dataclass(frozen=True)
class Round:
    """One round of training and validation, as a policy sees it.

    Attributes:
        number, step: number of the round, from 1, and total number of outer steps.
        train_loss: mean outer loss over the round; None if no step was taken.
        val: metric -> mean ± 95 % interval on validation tasks; empty if the round diverged.
        settings: settings of the round that a decision may change, see `Adjustable`.
        seconds: time since the start of the run.
        checkpoint: name of the checkpoint at the end of the round.
        diverged: error message, if the loss was not finite.
    """

    number: int
    step: int
    train_loss: float | None
    val: dict[str, Interval]
    settings: dict[str, Any]
    seconds: float
    checkpoint: str
    diverged: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Convert to plain dicts."""
        return vars(self) | {"val": {name: figure._asdict() for name, figure in self.val.items()}}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Round:
        """The inverse of `to_json`."""
        return cls(**entry | {"val": {name: Interval(**figure) for name, figure in entry["val"].items()}})


class Predicted(NamedTuple):
    """The validation figure that is predicted after some outer step, with its 95 % interval."""

    step: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _MayPredict:
    predicted: Sequence[Predicted] = field(default=(), repr=False)
    """The rest of the validation curve, if the policy predicted it, under the settings of the round."""


@dataclass(frozen=True)
class Continue(_MayPredict):
    """Train another round with the same settings."""

    reason: str


@dataclass(frozen=True)
class Change(_MayPredict):
    """Train another round with some settings replaced, such as `{"outer_lr": 3e-4, "learner.steps": 5}`.

    `Adjustable` lists the settings.
    """

    settings: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Rollback(_MayPredict):
    """Restore the weights and settings of an earlier round, and continue with some settings replaced.

    The checkpoint of the best round is always available; those of other rounds may have been deleted.
    """

    to_round: int
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stop(_MayPredict):
    """End the run."""

    outcome: Outcome
    reason: str


Decision = Continue | Change | Rollback | Stop


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """Convert a decision to plain values, with its kind as "action", for logs and reports."""
    fields = {name: value.name if isinstance(value, Outcome) else value for name, value in vars(decision).items()}
    del fields["predicted"]
    predicted = {"predicted": [list(each) for each in decision.predicted]} if decision.predicted else {}
    return {"action": type(decision).__name__.lower(), **fields, **predicted}


Policy = Callable[[Sequence[Round]], Decision]
"""A pure function from the rounds so far to the next decision.

If it has an attribute `actions`, a sequence of settings that it may set together, they are checked before training.
"""


def best_round(rounds: Sequence[Round], target: Target) -> Round | None:
    """The round with the best validation result, the earliest of equal ones; None if no round was evaluated."""
    evaluated = [r for r in rounds if r.val]
    best = max if target.at_least else min
    return best(evaluated, key=lambda r: target.of(r.val).mean) if evaluated else None


class EventLog:
    """An append-only log, in memory and optionally in a file, which survives a killed run.

    Args:
        path: a file of `kshot.files.append_line`; existing events are read, without lines that are damaged, and the
            file is only ever appended to.

    Attributes:
        listeners: called with each event that is recorded, after it is in the file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self._last = ""
        if path is not None:
            self.events, checks, damaged = read_lines(path)
            self._last = checks[-1] if checks else ""
            if damaged:
                logger.warning("line %s of %s is damaged and left out", ", ".join(map(str, damaged)), path)

    def record(self, kind: str, **fields: Any) -> None:
        """Append an event with its time in seconds since the epoch."""
        event = {"kind": kind, "time": round(time.time(), 3), **fields}
        self.events.append(event)
        if self.path is not None:
            self._last = append_line(self.path, event, self._last)
        for listener in self.listeners:
            listener(event)

    def mark(self) -> str:
        """The checksum of the last line, once it is on the disk: by it, a later reader knows that none is lost."""
        if self._last and self.path is not None:
            sync(self.path)
        return self._last

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]
