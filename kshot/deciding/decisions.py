"""What a round was, what can be decided after it, and how the whole thing can end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target


class Outcome(Enum):
    """How a run ended; the value is the sentence for a person."""

    TARGET_MET = "The target is met on validation tasks."
    BUDGET_SPENT = "The budget was spent before the target was met; give it more rounds, steps or minutes."
    NO_PROGRESS = "Validation stopped improving before the target was met; change the model, the learner or the data."
    DIVERGED = "The loss became infinite or NaN; the last good checkpoint is kept. Lower outer_lr or inner_lr."


@dataclass(frozen=True)
class Round:
    """One turn of the loop, as a policy sees it: validation figures only.

    Attributes:
        number: counted from 1.
        step: outer steps taken in all.
        train_loss: mean outer loss over the round; None if no step was taken.
        val: metric -> mean ± 95 % interval on validation tasks; empty if the round diverged.
        settings: the outer settings that it ran with.
        seconds: time spent since the start of the run.
        checkpoint: name of the checkpoint written at its end.
        diverged: the sentence of what went wrong, if the loss was not finite.
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
        """As plain dicts."""
        return vars(self) | {"val": {name: figure._asdict() for name, figure in self.val.items()}}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Round:
        """What `to_json` made, back as a round."""
        return cls(**entry | {"val": {name: Interval(**figure) for name, figure in entry["val"].items()}})


@dataclass(frozen=True)
class Continue:
    """Train another round as before."""

    reason: str


@dataclass(frozen=True)
class Change:
    """Go on with some outer settings replaced, such as `{"outer_lr": 3e-4}`."""

    settings: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Rollback:
    """Return to the weights of an earlier round, and go on from there with some settings replaced.

    The checkpoint of the best round is always kept; those of others may have been deleted.
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


def plain(decision: Decision) -> dict[str, Any]:
    """A decision as plain values, its kind under "action": for logs and reports."""
    fields = {name: value.name if isinstance(value, Outcome) else value for name, value in vars(decision).items()}
    return {"action": type(decision).__name__.lower(), **fields}


Policy = Callable[[Sequence[Round]], Decision]
"""Pure: the rounds so far in, the next action out."""


def best_round(rounds: Sequence[Round], target: Target) -> Round | None:
    """The round with the best validation figure, the earliest of equals; None if none was evaluated."""
    done = [r for r in rounds if r.val]
    choose = max if target.at_least else min
    return choose(done, key=lambda r: target.of(r.val).mean) if done else None
