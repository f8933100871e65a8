"""Policies: pure functions from the rounds so far to the next action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kshot.annotations import PositiveFloat, PositiveInt
from kshot.deciding.decisions import Change, Continue, Decision, Outcome, Policy, Rollback, Round, Stop, best_round
from kshot.evaluation.target import Target


@dataclass(frozen=True)
class Budget:
    """What a run may spend; None is no bound.

    Attributes:
        rounds: rounds of train, evaluate, decide.
        steps: outer steps in all.
        minutes: wall clock in all, pretraining and validation included, the final test not.
    """

    rounds: PositiveInt | None = 20
    steps: PositiveInt | None = None
    minutes: PositiveFloat | None = None

    def spent(self, last: Round) -> str | None:
        """A phrase saying which bound was reached, or None."""
        if self.rounds is not None and last.number >= self.rounds:
            return f"{last.number} of {self.rounds} rounds"
        if self.steps is not None and last.step >= self.steps:
            return f"{last.step} of {self.steps} steps"
        if self.minutes is not None and last.seconds >= 60 * self.minutes:
            return f"{last.seconds / 60:.1f} of {self.minutes:g} minutes"
        return None


def rules(target: Target, budget: Budget, *, patience: int = 4, factor: float = 0.3, changes: int = 2) -> Policy:
    """The rule policy: stop at the target or the end of the budget, slow down where progress stalls.

    In this order: a round that diverged stops the run. A figure whose whole interval meets the target stops it. A spent
    budget stops it. A figure clearly worse than the best, their intervals apart, returns to the best round with
    `outer_lr` times `factor`. `patience` rounds in a row without a new best lower `outer_lr` by `factor`; after
    `changes` such changes they stop the run.

    Args:
        target: what to reach.
        budget: what may be spent.
        patience: rounds without a new best before something is done about it.
        factor: by which `outer_lr` is multiplied.
        changes: how often it may be lowered for lack of progress.

    Example:
        >>> from kshot.evaluation.intervals import Interval
        >>> policy = rules(Target.parse("accuracy >= 0.9"), Budget(rounds=5))
        >>> policy([Round(1, 100, 0.5, {"accuracy": Interval(0.95, 0.01, 100)}, {"outer_lr": 1e-3}, 9.0, "step-100")])
        Stop(outcome=<Outcome.TARGET_MET: ...>, reason='validation accuracy 0.9500 ± 0.0100 (100 tasks) meets ...')
    """

    def policy(rounds: Sequence[Round]) -> Decision:
        last = rounds[-1]
        if last.diverged:
            return Stop(Outcome.DIVERGED, last.diverged)
        found = target.of(last.val)
        if target.met(found):
            return Stop(Outcome.TARGET_MET, f"validation {target.metric} {found} meets {target}")
        best = best_round(rounds, target)
        assert best is not None  # the last round was evaluated
        top = target.of(best.val)
        if spent := budget.spent(last):
            return Stop(
                Outcome.BUDGET_SPENT,
                f"{spent} are spent; the best validation {target.metric} is {top} in round {best.number}",
            )
        slower = {"outer_lr": last.settings["outer_lr"] * factor}
        if target.clearly_worse(found, top):
            return Rollback(
                best.number,
                f"validation {target.metric} fell to {found} from {top} in round {best.number}: back to it, "
                f"outer_lr {slower['outer_lr']:.2g}",
                slower,
            )
        stalled = last.number - max(best.number, _last_change(rounds))
        if stalled >= patience:
            if _changes(rounds) >= changes:
                return Stop(
                    Outcome.NO_PROGRESS,
                    f"no better than {top} of round {best.number} for {last.number - best.number} rounds, "
                    f"with outer_lr lowered {changes} times",
                )
            return Change(
                slower,
                f"no new best for {stalled} rounds: outer_lr lowered to {slower['outer_lr']:.2g}",
            )
        if best is last:
            return Continue(f"validation {target.metric} {found} is the best so far, short of {target}")
        return Continue(f"validation {target.metric} {found}, the best is {top} in round {best.number}")

    return policy


def _changes(rounds: Sequence[Round]) -> int:
    return sum(a.settings["outer_lr"] != b.settings["outer_lr"] for a, b in pairwise(rounds))


def _last_change(rounds: Sequence[Round]) -> int:
    """Number of the last round that ran before `outer_lr` changed; 0 if it never did."""
    return max((a.number for a, b in pairwise(rounds) if a.settings["outer_lr"] != b.settings["outer_lr"]), default=0)
