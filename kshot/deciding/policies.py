"""Policies: pure functions from the rounds so far to the next decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kshot.annotations import NonNegativeInt, PositiveFloat, PositiveFraction, PositiveInt
from kshot.deciding.adjusting import plain
from kshot.deciding.decisions import Change, Continue, Decision, Outcome, Policy, Rollback, Round, Stop, best_round
from kshot.evaluation.target import Target


@dataclass(frozen=True)
class Budget:
    """Limits of a run; None is no limit.

    Attributes:
        rounds: number of rounds.
        steps: total number of outer steps.
        minutes: wall-clock time, including pretraining and validation, without the final test.
    """

    rounds: PositiveInt | None = 20
    steps: PositiveInt | None = None
    minutes: PositiveFloat | None = None

    def spent(self, last: Round) -> str | None:
        """The limit that was reached, as a phrase, or None."""
        if self.rounds is not None and last.number >= self.rounds:
            return f"{last.number} of {self.rounds} rounds"
        if self.steps is not None and last.step >= self.steps:
            return f"{last.step} of {self.steps} steps"
        if self.minutes is not None and last.seconds >= 60 * self.minutes:
            return f"{last.seconds / 60:.1f} of {self.minutes:g} minutes"
        return None


@dataclass(frozen=True)
class Rules:
    """The policy of `rules`, with its arguments as attributes."""

    target: Target
    budget: Budget
    patience: int
    factor: float
    changes: int
    actions: Sequence[Mapping[str, Any]]

    def __call__(self, rounds: Sequence[Round]) -> Decision:
        target, last = self.target, rounds[-1]
        if last.diverged:
            return Stop(Outcome.DIVERGED, last.diverged)
        result = target.of(last.val)
        if target.met(result):
            return Stop(Outcome.TARGET_MET, f"validation {target.metric} {result} meets {target}")
        best = best_round(rounds, target)
        assert best is not None  # the last round was evaluated
        best_result = target.of(best.val)
        if spent := self.budget.spent(last):
            return Stop(
                Outcome.BUDGET_SPENT,
                f"{spent} are spent; the best validation {target.metric} is {best_result} in round {best.number}",
            )
        lowered = {"outer_lr": last.settings["outer_lr"] * self.factor}
        if target.clearly_worse(result, best_result):
            return Rollback(
                best.number,
                f"validation {target.metric} is {result}, worse than {best_result} in round {best.number}: "
                f"return to that round with outer_lr {lowered['outer_lr']:.2g}",
                lowered,
            )
        stalled = last.number - max(best.number, last_change(rounds))
        if stalled >= self.patience:
            if action := next(iter(self.left(rounds)), None):
                return Change(action, f"no new best for {stalled} rounds: {described(action, last)}")
            if _times_lowered(rounds) >= self.changes:
                return Stop(
                    Outcome.NO_PROGRESS,
                    f"no better than {best_result} of round {best.number} for {last.number - best.number} rounds, "
                    f"after lowering outer_lr {self.changes} times",
                )
            return Change(lowered, f"no new best for {stalled} rounds: outer_lr lowered to {lowered['outer_lr']:.2g}")
        if best is last:
            return Continue(f"validation {target.metric} {result} is the best so far, but does not meet {target}")
        return Continue(f"validation {target.metric} {result}, the best is {best_result} in round {best.number}")

    def left(self, rounds: Sequence[Round]) -> list[Mapping[str, Any]]:
        """The actions whose settings no round has had so far, in their order."""
        return [
            action
            for action in self.actions
            if not any(all(r.settings.get(name) == value for name, value in action.items()) for r in rounds)
        ]


def rules(
    target: Target,
    budget: Budget,
    *,
    patience: PositiveInt = 4,
    factor: PositiveFraction = 0.3,
    changes: NonNegativeInt = 2,
    actions: Sequence[Mapping[str, Any]] = (),
) -> Policy:
    """A rule-based policy: stop at the target or when the budget is spent, change settings if progress stalls.

    The first rule that applies decides:

    1. The round diverged: stop.
    2. The whole validation interval meets the target: stop.
    3. The budget is spent: stop.
    4. The result is worse than the best, with disjoint intervals: roll back to the best round and multiply `outer_lr`
       by `factor`.
    5. No new best for `patience` rounds: take the next of `actions`. After the last one, multiply `outer_lr` by
       `factor`, or stop where it was changed `changes` times.
    6. Otherwise: continue.

    Args:
        target, budget: of the run.
        patience, factor, changes: as above.
        actions: settings to change, each such as `{"learner.order": 2, "outer_lr": 3e-4}`, with the names of
            `Adjustable`. They are checked before training.

    Example:
        >>> from kshot.evaluation.intervals import Interval
        >>> policy = rules(Target.parse("accuracy >= 0.9"), Budget(rounds=5))
        >>> policy([Round(1, 100, 0.5, {"accuracy": Interval(0.95, 0.01, 100)}, {"outer_lr": 1e-3}, 9.0, "step-100")])
        Stop(outcome=<Outcome.TARGET_MET: ...>, reason='validation accuracy 0.9500 ± 0.0100 (100 tasks) meets ...')
    """
    return Rules(target, budget, patience, factor, changes, [plain(action) for action in actions])


def last_change(rounds: Sequence[Round]) -> int:
    """The number of the last round before a change of settings; 0 if there was none."""
    return max((a.number for a, b in pairwise(rounds) if a.settings != b.settings), default=0)


def described(action: Mapping[str, Any], last: Round) -> str:
    """An action in words, with the values of before."""
    return ", ".join(f"{name} from {last.settings.get(name)} to {value}" for name, value in action.items())


def _times_lowered(rounds: Sequence[Round]) -> int:
    return sum(a.settings["outer_lr"] != b.settings["outer_lr"] for a, b in pairwise(rounds))
