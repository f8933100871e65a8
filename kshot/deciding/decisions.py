"""Rounds, the decisions after them, and the outcomes of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target


class Outcome(Enum):
    """How a run ended; the value is the sentence to display."""

    TARGET_MET = "The target is met on validation tasks."
    BUDGET_SPENT = "The budget was spent before the target was met; give it more rounds, steps or minutes."
    NO_PROGRESS = "Validation stopped improving before the target was met; change the model, the learner or the data."
    DIVERGED = "The loss became infinite or NaN; the last good checkpoint is kept. Lower outer_lr or inner_lr."


@dataclass(frozen=True)
class Round:
    """One round of training and validation, as a policy sees it.

    Attributes:
        number: number of the round, from 1.
        step: total number of outer steps.
        train_loss: mean outer loss over the round; None if no step was taken.
        val: metric -> mean ± 95 % interval on validation tasks; empty if the round diverged.
        settings: settings of the outer optimisation.
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
        """Convert the output of `to_json` back to a round."""
        return cls(**entry | {"val": {name: Interval(**figure) for name, figure in entry["val"].items()}})


@dataclass(frozen=True)
class Continue:
    """Train another round with the same settings."""

    reason: str


@dataclass(frozen=True)
class Change:
    """Train another round with some outer settings replaced, such as `{"outer_lr": 3e-4}`."""

    settings: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Rollback:
    """Restore the weights of an earlier round, and continue with some settings replaced.

    The checkpoint of the best round is always available; those of other rounds may have been deleted.
    """

    to_round: int
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stop:
    """End the run."""

    outcome: Outcome
    reason: str


Decision = Continue | Change | Rollback | Stop


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """Convert a decision to plain values, with its kind as "action", for logs and reports."""
    fields = {name: value.name if isinstance(value, Outcome) else value for name, value in vars(decision).items()}
    return {"action": type(decision).__name__.lower(), **fields}


Policy = Callable[[Sequence[Round]], Decision]
"""A pure function from the rounds so far to the next decision."""


def best_round(rounds: Sequence[Round], target: Target) -> Round | None:
    """The round with the best validation result, the earliest of equal ones; None if no round was evaluated."""
    evaluated = [r for r in rounds if r.val]
    best = max if target.at_least else min
    return best(evaluated, key=lambda r: target.of(r.val).mean) if evaluated else None
