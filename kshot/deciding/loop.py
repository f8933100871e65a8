"""The loop of rounds: train, evaluate on validation tasks, decide, until the target is met or the budget is spent."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from kshot.annotations import NonNegativeFloat, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.deciding.adjusting import Adjustable, outer_part
from kshot.deciding.decisions import (
    Change,
    Decision,
    EventLog,
    Outcome,
    Policy,
    Rollback,
    Round,
    Stop,
    best_round,
    decision_to_json,
)
from kshot.deciding.policies import Budget, rules
from kshot.evaluation.evaluate import Scored, evaluate
from kshot.evaluation.target import Target
from kshot.files import read_json
from kshot.inner.precision import Precision
from kshot.learner import Learner
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import META, Checkpoints, Snapshot, load_checkpoint
from kshot.training.closed_form import fit_closed_form
from kshot.training.fit import (
    Diverged,
    OuterLoop,
    Progress,
    Schedule,
    Settings,
    meta_training_loop,
    training_tasks,
)
from kshot.training.ranks import from_first
from kshot.training.step import Mode
from kshot.training.stopping import Stopped
from kshot.training.timing import named


class Observer:
    """Callbacks of a run; by default they do nothing."""

    def step(self, progress: Progress, end: int) -> None:
        """Called after an outer step; the round ends with step number `end`."""

    def task(self, done: int, total: int) -> None:
        """Called after a validation task."""

    def decided(self, round: Round, decision: Decision) -> None:
        """Called at the end of a round."""


@dataclass(frozen=True)
class Run:
    """Result of a run.

    Attributes:
        outcome, reason: how the run ended, and why, with figures.
        rounds, decisions: all rounds, and the decision after each.
        best: the round whose weights the learner has; None if no round was evaluated.
    """

    outcome: Outcome
    reason: str
    rounds: list[Round]
    decisions: list[Decision]
    best: Round | None


@check_arguments
def run_until(
    learner: Learner,
    source: TaskSource,
    target: str | Target,
    *,
    budget: Budget | None = None,
    steps_per_round: PositiveInt = 100,
    tasks_per_step: PositiveInt = 4,
    outer_lr: PositiveFloat = 1e-3,
    clip: PositiveFloat | None = 10.0,
    schedule: Schedule = "cosine",
    weight_decay: NonNegativeFloat = 0.0,
    mode: Mode = "loop",
    precision: Precision = "float32",
    num_val_tasks: Annotated[int, Ge(2)] = 100,
    policy: Policy | None = None,
    seed: int = 0,
    folder: Path | None = None,
    checkpoint_seconds: PositiveFloat = 30.0,
    event_log: EventLog | None = None,
    observer: Observer | None = None,
    spent_seconds: float = 0.0,
) -> Run:
    """Meta-train in rounds until a validation metric meets a target; a policy decides after each round.

    The learner ends with the weights of its best round. An interrupted run with a `folder` resumes bitwise from its
    latest checkpoint, with the engine that the mode "auto" chose before.

    Args:
        learner: changed in place.
        source: source of the tasks; the splits "train" and "val" are read, "test" is not.
        target: such as "accuracy >= 0.95"; met if the whole 95 % interval meets it.
        budget: limits of rounds, steps and minutes; 20 rounds by default.
        steps_per_round: outer steps per round.
        tasks_per_step, outer_lr, clip, weight_decay, mode, precision, seed: as in `kshot.fit`.
        schedule: "cosine" over all steps that the budget allows, or "constant".
        num_val_tasks: number of validation tasks after each round, the same in all rounds.
        policy: decides after each round; `rules(target, budget)` by default. What it may change is listed at
            `Adjustable`.
        folder: folder of the checkpoints; None writes none.
        checkpoint_seconds: interval between checkpoints of a round, up to tenfold where writing takes long; a killed
            run loses at most this much training.
        event_log, observer: log of the decisions, and callbacks.
        spent_seconds: time of the budget already spent, on pretraining.

    Raises:
        ValueError: the metric of the target is unknown, the learner or the source does not permit an action of the
            policy, or a checkpoint is of another model.

    Example:
        >>> learner = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        >>> run = run_until(learner, kshot.sources.sinusoids(), "mse <= 100", steps_per_round=2, num_val_tasks=4)
        >>> run.outcome
        <Outcome.TARGET_MET: ...>
    """
    target = Target.parse(target) if isinstance(target, str) else target
    budget = budget or Budget()
    if not learner.trained_parameters():
        budget = replace(budget, rounds=1)  # nothing is trained, and further rounds would be equal
    policy = policy or rules(target, budget)
    adjustable = Adjustable(learner, source)
    adjustable.check(getattr(policy, "actions", ()))
    limits = [budget.steps, budget.rounds and budget.rounds * steps_per_round]
    horizon = min((steps for steps in limits if steps), default=100 * steps_per_round)
    settings = Settings(outer_lr, clip, schedule, horizon, tasks_per_step, weight_decay)
    with tempfile.TemporaryDirectory() as scratch, during(source, "rounds"):
        run = _RunState(
            loop=meta_training_loop(learner, source, settings, mode=mode, precision=precision, seed=seed),
            adjustable=adjustable,
            checkpoints=Checkpoints(folder or Path(scratch), checkpoint_seconds),
            event_log=event_log or EventLog(),
            observer=observer or Observer(),
            started=time.monotonic() - spent_seconds,
        )
        round_is_complete = run.resume()
        counts = range(1, len(run.rounds) + (not round_is_complete))
        decisions = from_first([policy(run.rounds[:count]) for count in counts])
        while True:
            if not round_is_complete:
                steps = steps_per_round if budget.steps is None else min(steps_per_round, budget.steps - run.loop.step)
                deadline = math.inf if budget.minutes is None else run.started + 60 * budget.minutes
                diverged = run.train(steps, deadline)
                run.validate(learner, source, num_val_tasks, diverged)
            round_is_complete = False
            decisions.append(from_first(policy(tuple(run.rounds))))
            run.apply(decisions[-1], target)
            if isinstance(decisions[-1], Stop):
                break
        best = best_round(run.rounds, target)
        if best is not None:
            run.adjust_to(run.checkpoints.folder / best.checkpoint)
            load_checkpoint(run.checkpoints.folder / best.checkpoint, learner)
    return Run(decisions[-1].outcome, decisions[-1].reason, run.rounds, decisions, best)


def back_to_last_round(folder: Path) -> list[Round]:
    """Delete what was trained after the last round in a folder of checkpoints, and return the rounds."""
    checkpoints = Checkpoints(folder)
    while (latest := checkpoints.latest_for_training()) is not None:
        meta = read_json(latest / META)
        if meta["complete"]:
            return [Round.from_json(entry) for entry in meta["rounds"]]
        checkpoints.delete(latest)
    return []


@dataclass
class _RunState:
    """The mutable state of a run, which checkpoints restore."""

    loop: OuterLoop
    adjustable: Adjustable
    checkpoints: Checkpoints
    event_log: EventLog
    observer: Observer
    started: float  # on the monotonic clock, minus the time that earlier processes spent
    rounds: list[Round] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the unfinished round
    engine_is_logged: bool = False

    def resume(self) -> bool:
        """Load the latest checkpoint, if there is one; returns whether it is at the end of a round."""
        gradient = self.loop.gradient
        if gradient is not None and (chosen := self.event_log.of("engine")):
            gradient.settle(chosen[0]["engine"])  # also where the checkpoint is from before the choice
            self.engine_is_logged = True
        latest = self.checkpoints.latest_for_training()
        if latest is None:
            return False
        meta = self.load(latest)
        self.rounds = [Round.from_json(entry) for entry in meta["rounds"]]
        self.losses = meta["losses"]
        self.started = min(self.started, time.monotonic() - meta["seconds"])
        self.event_log.record("resumed", checkpoint=latest.name, step=self.loop.step)
        return meta["complete"]

    def load(self, checkpoint: Path, *, engine: bool = True) -> dict[str, Any]:
        """As `OuterLoop.load`, with the settings of learner and source that the checkpoint was trained with."""
        self.adjust_to(checkpoint)
        return self.loop.load(checkpoint, engine=engine)

    def adjust_to(self, checkpoint: Path) -> None:
        """Restore the settings of learner and source that a checkpoint was trained with."""
        self._adjusted(lambda: self.adjustable.reset_to(read_json(checkpoint / META).get("changed", {})))

    def _adjusted(self, change: Callable[[], None]) -> None:
        """Change settings of learner and source, and let the outer loop follow."""
        before = self.adjustable.changed
        change()
        after = self.adjustable.changed
        changed = {name.split(".")[0] for name in before | after if before.get(name) != after.get(name)}
        if "source" in changed and self.adjustable.tasks is not None:
            self.loop.sample = training_tasks(self.adjustable.learner, self.adjustable.tasks, self.loop.seed)
        if "learner" in changed:
            self.loop.select_parameters()
            if self.loop.gradient is not None:
                self.loop.gradient.forget_learner()

    def train(self, steps: int, deadline: float) -> str | None:
        """Train to the end of the round; returns the error message if the loss was not finite."""
        done = logged = len(self.losses)
        end = self.loop.step + steps - done

        def observe(progress: Progress) -> None:
            nonlocal logged
            self._log_engine()
            self.losses.append(progress.loss)
            if len(self.losses) - logged >= 10:
                self._log(logged)
                logged = len(self.losses)
            if self.checkpoints.due():
                with named("checkpoint"):
                    name = self.checkpoints.free(f"step-{progress.step:07d}")
                    keep = [r.checkpoint for r in self.rounds]
                    self.checkpoints.save_in_background(name, self._snapshot(complete=False), *keep)
            self.observer.step(progress, end)

        try:
            self.loop.run(steps - done, observe, deadline)
        except Diverged as error:
            return str(error)
        except Stopped as asked:
            self._log(logged)
            logged = len(self.losses)
            self.checkpoints.wait()
            name = self.checkpoints.free(f"step-{self.loop.step:07d}")
            self.checkpoints.save(name, self._snapshot(complete=False))
            self.event_log.record("stopped", step=self.loop.step, checkpoint=name, signal=str(asked))
            raise
        finally:
            self._log(logged)
            self.checkpoints.wait()
        return None

    def validate(self, learner: Learner, source: TaskSource, num_tasks: int, diverged: str | None) -> None:
        """End a round by evaluation on validation tasks and a checkpoint."""

        def observe(scored: Scored) -> None:
            self.observer.task(scored.number + 1, num_tasks)

        val = {}
        if diverged is None:
            fit_closed_form(learner, source, after_training=True)
            try:
                with named("validation"):
                    found = evaluate(learner, source, split="val", num_tasks=num_tasks, observe=observe, audit=False)
                val = found.metrics
            except torch.linalg.LinAlgError as error:  # of a head that solves a system of features that exploded
                diverged = f"the validation after step {self.loop.step}: {error}"
        number, seconds = len(self.rounds) + 1, from_first(time.monotonic() - self.started)
        train_loss = sum(self.losses) / len(self.losses) if self.losses else None
        settings = asdict(self.loop.settings) | self.adjustable.values
        checkpoint = self.checkpoints.free(f"round-{number:04d}")
        self.rounds.append(Round(number, self.loop.step, train_loss, val, settings, seconds, checkpoint, diverged))
        self.losses = []
        with named("checkpoint"):
            self.checkpoints.save(checkpoint, self._snapshot(complete=True))

    def apply(self, decision: Decision, target: Target) -> None:
        """Log a decision and apply it."""
        last = self.rounds[-1]
        self.event_log.record("decision", round=last.to_json(), **decision_to_json(decision))
        if isinstance(decision, Rollback):
            step = self.loop.step
            self.load(self.checkpoints.folder / self.rounds[decision.to_round - 1].checkpoint, engine=False)
            self.loop.step = step  # continue with new tasks
        if isinstance(decision, Change | Rollback):
            self._adjusted(lambda: self.adjustable.apply(decision.settings))
            self.loop.settings = replace(self.loop.settings, **outer_part(decision.settings))
        best = best_round(self.rounds, target)
        self.checkpoints.prune(*([best.checkpoint] if best else []))
        self.observer.decided(last, decision)

    def _log_engine(self) -> None:
        """Log the choice of the mode "auto", once in a run."""
        gradient = self.loop.gradient
        if gradient and gradient.mode == "auto" and gradient.engine and not self.engine_is_logged:
            self.engine_is_logged = True
            self.event_log.record("engine", step=self.loop.step, engine=gradient.engine, choice=gradient.choice)

    def _log(self, since: int) -> None:
        if losses := self.losses[since:]:
            self.event_log.record("train", step=self.loop.step, loss=sum(losses) / len(losses))

    def _snapshot(self, *, complete: bool) -> Snapshot:
        meta = {
            "rounds": [r.to_json() for r in self.rounds],
            "losses": self.losses,
            "complete": complete,
            "changed": self.adjustable.changed,
            "seconds": time.monotonic() - self.started,
            "log": self.event_log.mark(),
        }
        return self.loop.snapshot(meta)
