"""Policies: pure functions from the rounds so far to the next decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kshot.annotations import PositiveFloat, PositiveInt
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


def rules(target: Target, budget: Budget, *, patience: int = 4, factor: float = 0.3, changes: int = 2) -> Policy:
    """A rule-based policy: stop at the target or when the budget is spent, lower `outer_lr` if progress stalls.

    The first rule that applies decides:

    1. The round diverged: stop.
    2. The whole validation interval meets the target: stop.
    3. The budget is spent: stop.
    4. The result is worse than the best, with disjoint intervals: roll back to the best round and multiply `outer_lr`
       by `factor`.
    5. No new best for `patience` rounds: multiply `outer_lr` by `factor`, or stop after `changes` such changes.
    6. Otherwise: continue.

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
        result = target.of(last.val)
        if target.met(result):
            return Stop(Outcome.TARGET_MET, f"validation {target.metric} {result} meets {target}")
        best = best_round(rounds, target)
        assert best is not None  # the last round was evaluated
        best_result = target.of(best.val)
        if spent := budget.spent(last):
            return Stop(
                Outcome.BUDGET_SPENT,
                f"{spent} are spent; the best validation {target.metric} is {best_result} in round {best.number}",
            )
        lowered = {"outer_lr": last.settings["outer_lr"] * factor}
        if target.clearly_worse(result, best_result):
            return Rollback(
                best.number,
                f"validation {target.metric} is {result}, worse than {best_result} in round {best.number}: "
                f"return to that round with outer_lr {lowered['outer_lr']:.2g}",
                lowered,
            )
        changed = [a.number for a, b in pairwise(rounds) if a.settings["outer_lr"] != b.settings["outer_lr"]]
        stalled = last.number - max([best.number, *changed])
        if stalled >= patience:
            if len(changed) >= changes:
                return Stop(
                    Outcome.NO_PROGRESS,
                    f"no better than {best_result} of round {best.number} for {last.number - best.number} rounds, "
                    f"after lowering outer_lr {changes} times",
                )
            return Change(lowered, f"no new best for {stalled} rounds: outer_lr lowered to {lowered['outer_lr']:.2g}")
        if best is last:
            return Continue(f"validation {target.metric} {result} is the best so far, but does not meet {target}")
        return Continue(f"validation {target.metric} {result}, the best is {best_result} in round {best.number}")

    return policy
