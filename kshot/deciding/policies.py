"""Policies: pure functions from the rounds so far to the next decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from kshot.annotations import NonNegativeInt, OpenFraction, PositiveFloat, PositiveFraction, PositiveInt
from kshot.deciding.adjusting import plain
from kshot.deciding.curves import LEAST, predict
from kshot.deciding.decisions import (
    Change,
    Continue,
    Decision,
    Outcome,
    Policy,
    Predicted,
    Rollback,
    Round,
    Stop,
    best_round,
)
from kshot.deciding.past import Past
from kshot.evaluation.intervals import BOUNDS
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

    def coming(self, rounds: Sequence[Round]) -> list[int]:
        """The numbers of steps after each of the rounds that are left, if all are as long as the last one.

        Without a limit, these are as many rounds as were trained.
        """
        last = rounds[-1]
        per_round = last.step - (rounds[-2].step if len(rounds) > 1 else 0)
        if per_round <= 0:
            return []
        rounds_left: list[float] = [] if self.rounds is None else [self.rounds - last.number]
        if self.minutes is not None:
            rounds_left.append((60 * self.minutes - last.seconds) * last.number / max(last.seconds, 1e-9))
        end = math.inf if self.steps is None else self.steps
        if rounds_left:
            end = min(end, last.step + per_round * math.ceil(min(rounds_left)))
        if math.isinf(end):
            end = 2 * last.step
        return [min(step, int(end)) for step in range(last.step + per_round, int(end) + per_round, per_round)]


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


@dataclass(frozen=True)
class Extrapolation:
    """The policy of `extrapolation`, with its arguments as attributes."""

    rules: Rules
    past: Past
    level: float

    @property
    def actions(self) -> Sequence[Mapping[str, Any]]:
        return self.rules.actions

    def __call__(self, rounds: Sequence[Round]) -> Decision:
        decision = self.rules(rounds)
        if not isinstance(decision, Continue):
            return decision
        target, last = self.rules.target, rounds[-1]
        steps = self.rules.budget.coming(rounds)
        draws = predict_rounds(rounds, target, steps, self.past)
        if not steps or draws is None:
            return decision
        means_DF, ends_DF = draws
        reached_DF = ends_DF >= target.value if target.at_least else ends_DF <= target.value
        probability = float(reached_DF.any(1).mean())
        low_F, high_F = np.quantile(means_DF, [0.025, 0.975], axis=0).tolist()
        predicted = [Predicted(*each) for each in zip(steps, means_DF.mean(0).tolist(), low_F, high_F)]
        end = predicted[-1]
        said = (
            f"{target.metric} is predicted to be {end.mean:.4f} ({end.low:.4f} to {end.high:.4f}) after {end.step} "
            f"steps, and to meet {target} by then with a probability of {probability:.2g}"
        )
        if probability >= self.level:
            return replace(decision, reason=f"{decision.reason}; {said}", predicted=predicted)
        left = self.rules.left(rounds)
        if not left:
            return Stop(Outcome.NOT_REACHABLE, said, predicted=predicted)
        action = max(left, key=lambda action: self.past.gain(action, last.settings))  # the first of equal ones
        return Change(action, f"{said}: {described(action, last)}", predicted=predicted)


def predict_rounds(
    rounds: Sequence[Round], target: Target, steps: Sequence[int], past: Past
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draws (D, F) of the validation figures after so many steps, and of the ends of the intervals that decide whether
    the target is met; None if too little is known.

    A curve begins where the settings were last changed.
    """
    first = last_change(rounds)
    start = rounds[first - 1].step if first else 0
    curve = [each for each in rounds[first:] if each.val]
    begin = _annealed(start, rounds[-1])
    x = [_annealed(each.step, rounds[-1]) - begin for each in curve]
    figures = [target.of(each.val) for each in curve]
    known = len(curve) >= LEAST and all(a < b for a, b in pairwise([0, *x]))
    if not known or not all(math.isfinite(figure.mean) for figure in figures):
        return None
    sign = -1 if target.at_least else 1
    ends = [figure.mean + figure.shift + sign * figure.half_width for figure in figures]
    error, future = figures[-1].half_width / 1.96, [_annealed(step, rounds[-1]) - begin for step in steps]
    bounds = BOUNDS.get(target.metric, (-math.inf, math.inf))
    means_DF, ends_DF = (
        predict(x, values, future, error=error, exponents=past.exponents).clip(*bounds)
        for values in ([figure.mean for figure in figures], ends)
    )
    return means_DF, ends_DF


def extrapolation(
    target: Target,
    budget: Budget,
    past: Past,
    *,
    level: OpenFraction = 0.05,
    patience: PositiveInt = 4,
    factor: PositiveFraction = 0.3,
    changes: NonNegativeInt = 2,
    actions: Sequence[Mapping[str, Any]] = (),
) -> Policy:
    """`rules`, which also predicts the rest of the validation curve, and does not wait for what will not come.

    Where `rules` continues, the rounds that the budget leaves are predicted from those since the last change of
    settings, if there are at least four (see `kshot.deciding.curves`). Time is the sum of the learning rates of the
    steps, so that a curve flattens where its schedule ends. If the probability that one of the rounds meets the target
    is below `level`:

    1. Take one of the `actions` that were not taken: the one of which experience expects most, of equal ones the first.
    2. After the last of them, stop: the target is not reachable.

    Args:
        target, budget, patience, factor, changes, actions: as in `rules`.
        past: what experience knows of the same learner on the same kind of tasks; `Past()` is nothing.
        level: smallest probability at which training goes on.

    Example:
        >>> from kshot.evaluation.intervals import Interval
        >>> means = [0.5, 0.6, 0.63, 0.64]
        >>> rounds = [
        ...     Round(n, 100 * n, 0.5, {"accuracy": Interval(mean, 0.01, 100)}, {"outer_lr": 1e-3}, 9.0 * n, str(n))
        ...     for n, mean in enumerate(means, 1)
        ... ]
        >>> policy = extrapolation(Target.parse("accuracy >= 0.9"), Budget(rounds=8), Past())
        >>> decision = policy(rounds)
        >>> decision.outcome, decision.predicted[-1].step
        (<Outcome.NOT_REACHABLE: ...>, 800)

    References:
        Domhan, Springenberg, Hutter: Speeding up Automatic Hyperparameter Optimization of Deep Neural Networks by
        Extrapolation of Learning Curves, IJCAI 2015. Time as a sum of rates: Tissue, Wang, Wang: Scaling Law with
        Learning Rate Annealing, arXiv:2408.11029, without its second term.

    Deviations:
        The target takes the place of the best run so far, and rounds that of epochs; for the model see `curves`.
    """
    after = Rules(target, budget, patience, factor, changes, [plain(action) for action in actions])
    return Extrapolation(after, past, level)


def last_change(rounds: Sequence[Round]) -> int:
    """The number of the last round before a change of settings; 0 if there was none."""
    return max((a.number for a, b in pairwise(rounds) if a.settings != b.settings), default=0)


def described(action: Mapping[str, Any], last: Round) -> str:
    """An action in words, with the values of before."""
    return ", ".join(f"{name} from {last.settings.get(name)} to {value}" for name, value in action.items())


def _annealed(step: int, last: Round) -> float:
    r"""The sum of the learning rates of the steps so far, in `outer_lr`: $\int_0^t \alpha(s) / \alpha \, ds$."""
    schedule, horizon = last.settings.get("schedule", "constant"), last.settings.get("horizon", 1)
    if schedule == "constant":
        return float(step)
    phase = math.pi * min(step / horizon, 1.0)
    return 0.01 * step + 0.495 * (min(step, horizon) + horizon / math.pi * math.sin(phase))


def _times_lowered(rounds: Sequence[Round]) -> int:
    return sum(a.settings["outer_lr"] != b.settings["outer_lr"] for a, b in pairwise(rounds))
