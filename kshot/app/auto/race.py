"""The race of plans: time is given to them by successive halving on validation tasks.

Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016. As plans that
learn from scratch begin below pretrained ones, and may pass them, they are ranked by the figures that their validation
curves predict for the end of the next rung.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kshot.annotations import Supplied
from kshot.app.auto.descriptors import error_of, noise_of
from kshot.app.auto.plans import BASELINE, MIXTURE, Plan, baseline_plan
from kshot.app.auto.ranking import UNKNOWN, Expectation, gain_after
from kshot.app.auto.time_limit import time_limit
from kshot.app.build import build_model, has_head, shapes_of
from kshot.app.folder import RunFolder
from kshot.app.pretraining import Pretraining, seconds_per_step
from kshot.app.progress import Display
from kshot.app.run import Trained, train
from kshot.app.schema import describe, our_factory
from kshot.app.spec import MODELS, Spec
from kshot.app.suitability import refuse_unsuited
from kshot.app.trained import load
from kshot.deciding.decisions import EventLog, Outcome, Round, best_round
from kshot.deciding.loop import back_to_last_round
from kshot.deciding.past import Past
from kshot.deciding.policies import predict_rounds
from kshot.evaluation.baselines import Baseline
from kshot.evaluation.intervals import Interval, over_splits
from kshot.evaluation.target import Target
from kshot.files import is_empty, owned
from kshot.learner import Learner
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource

STARTERS, ETA = 9, 3
"""The number of plans that get time first, and the factor by which their number falls and their time grows."""
SHORTEST = 8.0
"""Seconds that a plan gets at least."""

PATIENCE = 0.25
"""The share of all time after which a plan that is fitted as a whole, and not in steps, is interrupted."""

OVERTIME = 1.25
"""The share of the time that is left after which any plan is interrupted; those that learn in steps end before."""

FOR_PRETRAINING = 0.15
"""The share of all time that the pretraining of a plan may take."""


@dataclass
class Entrant:
    """A plan in the race.

    Attributes:
        expected: what experience expects of it.
        seconds: time spent on it.
        predicted: the figure after `ETA` times the steps, see `_predicted`; None if it is not known.
        course: (seconds, validation figure of the best round) each time that its time was up.
        on_splits: figures on further splits of the groups, see `cross_validation.py`.
        rounds, parameters: number of rounds so far, and of parameters of the learner.
        finished: whether more time changes nothing.
        failure: why it does not suit the data, as a sentence.
    """

    plan: Plan
    expected: Expectation | None = None
    seconds: float = 0.0
    course: list[tuple[float, Interval]] = field(default_factory=list)
    on_splits: list[Interval] = field(default_factory=list)
    predicted: float | None = None
    rounds: int = 1
    parameters: int = 0
    finished: bool = False
    failure: str = ""

    @property
    def simple(self) -> bool:
        """Whether it is a simple baseline."""
        return self.plan.learner["kind"] == BASELINE

    @property
    def figure(self) -> Interval | None:
        """The latest validation figure, of the best round, over all splits."""
        return over_splits([self.course[-1][1], *self.on_splits]) if self.course else None


@dataclass
class Race:
    """The state of a race, which its log restores.

    Attributes:
        folder: has a folder for each plan.
        seconds: the time for all plans together.
        plans: those that may suit the data.
        make_spec: makes the run file of a plan with a budget.
        say: shows a line.
        fitted: simple baselines by name, see `baseline`.
        splits: races on further splits of the groups, on which the best of this one are compared.
    """

    folder: Path
    seconds: float
    source: TaskSource
    target: Target
    plans: Sequence[Plan]
    make_spec: Callable[[Plan, Mapping[str, Any]], Spec]
    log: EventLog
    say: Callable[[str], None]
    entrants: dict[str, Entrant] = field(default_factory=dict)
    spent: float = 0.0
    fitted: dict[str, Learner] = field(default_factory=dict)
    splits: list[Race] = field(default_factory=list)

    def restore(self) -> None:
        """Take over what an interrupted race has logged, or shorten the pretraining of plans to the time."""
        for event in self.log.of("pretraining"):
            self._shorten(event["steps"])
        if not self.log.events:
            self.log.record("pretraining", steps=(steps := self._pretraining_steps()))
            self._shorten(steps)
        known = {plan.name: plan for plan in self.plans}
        for event in self.log.of("plan"):
            name = event["plan"]
            if name == MIXTURE:
                plan = Plan(name, event.get("learner", {"kind": MIXTURE}))
            else:
                plan = known.get(name) or baseline_plan(name, self.target)
            self._note(self.entrants.setdefault(name, Entrant(plan)), event)

    def run(
        self,
        plans: Sequence[Plan],
        expected: Mapping[str, Expectation] | None = None,
        *,
        starters: int = STARTERS,
        shortest: float = SHORTEST,
    ) -> None:
        """Give the plans time until it is spent.

        Args:
            plans: the most promising first.
            expected: what experience expects of each.
            starters: how many of those that suit the data get time at first, at most.
            shortest: seconds that a plan gets at least; where time is short, fewer plans start.
        """
        if not plans:
            return
        for plan in plans:
            self.entrants.setdefault(plan.name, Entrant(plan)).expected = (expected or {}).get(plan.name)
        available = self.seconds - sum(each.seconds for each in self.entrants.values() if each.simple)
        if available <= 0:
            return
        count, first = _starters(min(starters, len(plans)), available, shortest)
        started = running = self._start(plans, count, first)
        for rung, size in enumerate(_sizes(count)[1:], start=1):
            running = self._promising(running)[:size]
            for entrant in running:
                self.train(entrant, min(first * ETA**rung, entrant.seconds + self.left))
        for entrant in self.ranked(started):  # what others have left
            if self.left > first / 2:
                self.train(entrant, entrant.seconds + self.left)
        for plan in plans:  # where all of those have finished
            if self.left > first and not self.entrants[plan.name].course:
                self._start([plan], 1, first)

    @property
    def simple(self) -> dict[str, Interval]:
        """The figures of the simple baselines that are compared."""
        return {each.plan.name: each.figure for each in self.compared if each.simple and each.figure is not None}

    @property
    def compared(self) -> list[Entrant]:
        """Those with a figure; after a cross-validation those that were in it, and their mixture."""
        found = [each for each in self.entrants.values() if each.course]
        return [each for each in found if each.plan.name == MIXTURE or len(each.on_splits) == len(self.splits)]

    def compare_on(self, other: Race, names: Sequence[str]) -> None:
        """Compare some of the entrants from now on by their figures in another race, on other groups, too."""
        self.splits.append(other)
        for name in names:
            self.entrants[name].on_splits.append(other.entrants[name].course[-1][1])

    @property
    def left(self) -> float:
        """Seconds that are left for all plans together."""
        return max(self.seconds - self.spent, 0.0)

    def measured_gain(self, entrant: Entrant, mean: float | None = None) -> float:
        """By how much the log error of an entrant, or of another mean, is below that of the best simple baseline."""
        assert entrant.figure is not None
        simple = min((error_of(figure.mean, self.target) for figure in self.simple.values()), default=0.0)
        return simple - error_of(entrant.figure.mean if mean is None else mean, self.target)

    def gain(self, entrant: Entrant, mean: float | None = None) -> float:
        """The gain that is expected of an entrant: the measured one if it is a simple baseline, or there is none.

        That of a plan is between its measured gain and what experience expects, the nearer to the latter the fewer the
        validation units: the best of several figures is better by chance.
        """
        measured = self.measured_gain(entrant, mean)
        if entrant.simple or not self.simple or entrant.figure is None or not math.isfinite(measured):
            return measured
        return gain_after(entrant.expected or UNKNOWN, measured, noise_of(entrant.figure, self.target))

    def ranked(self, entrants: Sequence[Entrant] | None = None) -> list[Entrant]:
        """Those with a figure, the largest gain first; of equal ones the better figure, then the earlier one."""
        of = self.compared if entrants is None else entrants
        means = [(each.figure.mean, each) for each in of if each.figure is not None]
        by_mean = [each for _, each in sorted(means, key=lambda pair: pair[0], reverse=self.target.at_least)]
        return sorted(by_mean, key=self.gain, reverse=True)

    def _promising(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """As `ranked`, but those that can be trained further by the figure that is predicted, if that is better."""

        def promise(entrant: Entrant) -> float:
            gain = self.gain(entrant)
            if entrant.finished or entrant.predicted is None:
                return gain
            return max(gain, self.gain(entrant, entrant.predicted))

        return sorted(self.ranked(entrants), key=promise, reverse=True)

    def baseline(self, name: str) -> Learner:
        """A simple baseline, fitted to the training split; once in each process."""
        if name not in self.fitted:
            learner = Baseline(name, self.source.objective, target=self.target)
            with during(self.source, "tuning"):
                learner.fit_to_training(self.source)
            self.fitted[name] = learner
        return self.fitted[name]

    def _pretraining_steps(self) -> dict[str, int]:
        """The steps that each plan can be pretrained for in a share of the time, which it need not share."""
        steps: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for plan in self.plans:
            if plan.pretrain is None:
                continue
            key = json.dumps([plan.model, plan.pretrain])
            if key not in seconds:
                spec = self.make_spec(plan, {})
                try:
                    model = build_model(spec, shapes_of(self.source), head=has_head(spec))
                    seconds[key] = seconds_per_step(Pretraining(spec, spec.pretrain, Path()), model, self.source)
                except (ValueError, RuntimeError):
                    continue  # it is refused, with the reason, when it is its turn
            steps[plan.name] = min(plan.pretrain["steps"], int(FOR_PRETRAINING * self.seconds / seconds[key]))
        return steps

    def _shorten(self, steps: Mapping[str, int]) -> None:
        self.plans = [
            replace(plan, pretrain=plan.pretrain | {"steps": max(steps[plan.name], 1)})
            if plan.name in steps and plan.pretrain is not None
            else plan
            for plan in self.plans
        ]

    def _start(self, plans: Sequence[Plan], count: int, seconds: float) -> list[Entrant]:
        """Give the first time to the first `count` plans that suit the data."""
        started: list[Entrant] = []
        for plan in plans:
            if len(started) == count or (self.left <= 0 and (started or self.simple)):
                break
            entrant = self.entrants[plan.name]
            if not entrant.failure:
                self.train(entrant, seconds)
            if not entrant.failure:
                started.append(entrant)
        return started

    def train(self, entrant: Entrant, until: float) -> None:
        """Train a plan until it has had so many seconds, unless it had them before an interruption."""
        if entrant.finished or entrant.failure or entrant.seconds >= 0.95 * until:
            return

        def measure() -> dict[str, Any]:
            spec = self.make_spec(entrant.plan, {"rounds": None, "minutes": until / 60})
            if not entrant.course:
                refuse_unsuited(spec, self.source)
            trained = self._run(spec, folder, entrant)
            if trained.result.best is None:
                raise ValueError(trained.result.reason)
            done = not trained.learner.trained_parameters() or trained.result.outcome is not Outcome.BUDGET_SPENT
            return self._reached(trained.result.rounds, trained.learner, finished=done)

        def so_far() -> dict[str, Any]:
            rounds = back_to_last_round(RunFolder(folder).train)
            if best_round(rounds, self.target) is None:
                return {}
            return self._reached(rounds, load(folder).learner, finished=True)

        folder = self.folder / entrant.plan.slug
        most = max(2 * (until - entrant.seconds), PATIENCE * self.seconds)
        self.time(entrant, measure, min(most, max(OVERTIME * self.left, SHORTEST)), so_far)

    def _reached(self, rounds: Sequence[Round], learner: Learner, *, finished: bool) -> dict[str, Any]:
        """What is logged of a training with at least one round that was evaluated."""
        best = best_round(rounds, self.target)
        assert best is not None
        return {
            "figure": self.target.of(best.val)._asdict(),
            "predicted": _predicted(rounds, self.target),
            "rounds": len(rounds),
            "finished": finished,
            "parameters": sum(parameter.numel() for parameter in learner.parameters()),
        }

    def time(
        self,
        entrant: Entrant,
        measure: Callable[[], dict[str, Any]],
        most: float,
        so_far: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Time a measurement, log it and show it.

        One that fails, or takes too long, leaves the entrant out, unless it has reached something before.

        Args:
            most: seconds after which it is interrupted.
            so_far: what it has reached when it ended early, if anything.
        """
        started = time.monotonic()
        event: dict[str, Any] = {"plan": entrant.plan.name}
        ended = ""
        try:
            with time_limit(most):
                event |= measure()
        except TimeoutError:
            ended = f"it was not done after {most:.0f} s"
        except (ValueError, RuntimeError, MemoryError) as error:
            ended = (str(error) or type(error).__name__).splitlines()[0]
        if ended:
            event |= so_far() or {"failure": ended}
        event["seconds"] = time.monotonic() - started
        self.log.record("plan", **event)
        self._note(entrant, event)
        value = entrant.expected and entrant.expected.value(self.target)
        expected = f", expected {value:.4g}" if value is not None else ""
        figure = f"validation {self.target.metric} {entrant.figure}{expected}"
        said = f"left out: {ended}" if entrant.failure else figure + (f"; no more time, as {ended}" if ended else "")
        self.say(f"{entrant.seconds:5.0f} s  {entrant.plan.name}: {said}")

    def _run(self, spec: Spec, folder: Path, entrant: Entrant) -> Trained:
        resume = folder.exists() and not is_empty(folder)
        others = [
            self.folder / each.plan.slug
            for each in self.entrants.values()
            if each is not entrant and each.course and _same_pretraining(each.plan, entrant.plan)
        ]
        with owned(folder), Display(Console(quiet=True), self.target.metric) as display:
            return train(spec, folder, self.source, display, resume=resume, pretrained_in=others[0] if others else None)

    def _note(self, entrant: Entrant, event: Mapping[str, Any]) -> None:
        entrant.seconds += event["seconds"]
        self.spent += event["seconds"]
        entrant.failure = event.get("failure", "")
        if "figure" in event:
            entrant.course.append((entrant.seconds, Interval(**event["figure"])))
        entrant.finished, entrant.rounds = event.get("finished", False), event.get("rounds", entrant.rounds)
        entrant.predicted = event.get("predicted")
        if "expected" in event:  # of a mixture, which experience does not know
            entrant.expected = Expectation(**event["expected"])
        entrant.parameters = event.get("parameters", entrant.parameters)


def _predicted(rounds: Sequence[Round], target: Target) -> float | None:
    """The validation figure that the rounds so far predict for `ETA` times their steps; None if too little is known."""
    draws = predict_rounds(rounds, target, [ETA * rounds[-1].step], Past())
    return None if draws is None else float(draws[0].mean())


def _starters(most: int, seconds: float, shortest: float) -> tuple[int, float]:
    """How many plans start, and the seconds that each gets first, so that the last one's time fits, too.

    They are two at least, if there are two: the first may be one that is not done in the time.
    """
    for count in range(most, min(most, 2) - 1, -1):
        shares = [size * (ETA**rung - (ETA ** (rung - 1) if rung else 0)) for rung, size in enumerate(_sizes(count))]
        if seconds / sum(shares) >= shortest:
            break
    return count, seconds / sum(shares)


def _sizes(starters: int) -> list[int]:
    """How many plans are given time, by rung."""
    sizes = [starters]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / ETA))
    return sizes


def _same_pretraining(one: Plan, other: Plan) -> bool:
    """Whether two plans start from the same pretrained model."""

    def start(plan: Plan) -> str:
        arguments = describe(our_factory("learner", plan.learner["kind"]))
        model = next((each.supplied for each in arguments if each.supplied in MODELS), None)
        taken = Supplied.EMBEDDING if model is Supplied.FROZEN_EMBEDDING else model
        return json.dumps([plan.model, plan.pretrain, str(taken)])

    return one.pretrain is not None and start(one) == start(other)
