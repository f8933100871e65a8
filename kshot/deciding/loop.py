"""The rounds: train, evaluate on validation tasks, decide, repeat until the target is met or the budget is spent."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kshot.deciding.decisions import Change, Decision, Outcome, Policy, Rollback, Round, Stop, best_round, plain
from kshot.deciding.experience import Experience
from kshot.deciding.policies import Budget, rules
from kshot.evaluation.evaluate import Scored, evaluate
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import Checkpoints, load_checkpoint
from kshot.training.fit import Diverged, OuterLoop, Progress, Schedule, Settings, meta_training
from kshot.training.step import Mode


class Observer:
    """What may be watched while a run goes on; every method does nothing until overridden."""

    def step(self, progress: Progress, end: int) -> None:
        """An outer step was taken; the round ends with step number `end`."""

    def task(self, done: int, total: int) -> None:
        """A validation task was scored."""

    def decided(self, round: Round, decision: Decision) -> None:
        """A round is over."""


@dataclass(frozen=True)
class Run:
    """How a run went.

    Attributes:
        outcome: how it ended.
        reason: why, in a sentence with its figures.
        rounds: all rounds.
        decisions: the decision after each round.
        best: the round whose weights the learner now has; None if no round was evaluated.
    """

    outcome: Outcome
    reason: str
    rounds: list[Round]
    decisions: list[Decision]
    best: Round | None


def run_until(
    learner: Learner,
    source: TaskSource,
    target: str | Target,
    *,
    budget: Budget | None = None,
    steps_per_round: int = 100,
    tasks_per_step: int = 4,
    outer_lr: float = 1e-3,
    clip: float | None = 10.0,
    schedule: Schedule = "cosine",
    weight_decay: float = 0.0,
    mode: Mode = "loop",
    num_val_tasks: int = 100,
    policy: Policy | None = None,
    seed: int = 0,
    folder: Path | None = None,
    checkpoint_seconds: float = 30.0,
    experience: Experience | None = None,
    observer: Observer | None = None,
    spent_seconds: float = 0.0,
) -> Run:
    """Meta-train in rounds until a validation figure meets a target; the policy decides after each round.

    The learner ends with the weights of its best round. With a `folder`, checkpoints go there, and a run that was
    interrupted goes on from the latest of them, bitwise as if it had not been.

    Args:
        learner: what learns, in place.
        source: whose "train" tasks it learns from and whose "val" tasks it is judged by; "test" is not read.
        target: such as "accuracy >= 0.95"; met when the whole 95 % interval is.
        budget: rounds, steps and minutes; 20 rounds by default.
        steps_per_round: outer steps of a round.
        tasks_per_step: tasks of an outer step.
        outer_lr: Adam's rate.
        clip: bound of the gradient's norm.
        schedule: "cosine" over all the steps that the budget allows, or "constant".
        weight_decay: as in `fit`.
        mode: how the meta-gradient is computed; see `meta_gradient`.
        num_val_tasks: validation tasks after each round, always the same ones.
        policy: decides after each round; `rules(target, budget)` by default.
        seed: of dropout and the like, and of which training tasks are drawn, as in `kshot.fit`.
        folder: for checkpoints; none are written without it.
        checkpoint_seconds: at most so much training is lost by a kill.
        experience: the log of decisions.
        observer: watches.
        spent_seconds: what was spent of the budget's minutes before, by pretraining.

    Raises:
        ValueError: a target that the tasks' metrics do not know, a checkpoint that does not fit the learner.

    Example:
        >>> import kshot
        >>> learner = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        >>> run = run_until(learner, kshot.sources.sinusoids(), "mse <= 100", steps_per_round=2, num_val_tasks=4)
        >>> run.outcome
        <Outcome.TARGET_MET: ...>
    """
    target = Target.parse(target) if isinstance(target, str) else target
    budget = budget or Budget()
    policy = policy or rules(target, budget)
    if steps_per_round < 1 or num_val_tasks < 2:
        raise ValueError(
            f"a round needs a step and two validation tasks at least, got {steps_per_round}, {num_val_tasks}"
        )
    settings = Settings(outer_lr, clip, schedule, _planned(budget, steps_per_round), tasks_per_step, weight_decay)
    with tempfile.TemporaryDirectory() as scratch, during(source, "rounds"):
        run = _Rounds(
            loop=meta_training(learner, source, settings, mode=mode, seed=seed),
            checkpoints=Checkpoints(folder or Path(scratch), checkpoint_seconds),
            experience=experience or Experience(),
            observer=observer or Observer(),
            started=time.monotonic() - spent_seconds,
        )
        complete = run.resume()
        decisions = [policy(run.rounds[:count]) for count in range(1, len(run.rounds) + (not complete))]
        while True:
            if not complete:
                left = steps_per_round if budget.steps is None else min(steps_per_round, budget.steps - run.loop.step)
                deadline = math.inf if budget.minutes is None else run.started + 60 * budget.minutes
                diverged = run.train(left, deadline)
                run.judge(learner, source, num_val_tasks, diverged)
            complete = False
            decisions.append(policy(tuple(run.rounds)))
            run.apply(decisions[-1], target)
            if isinstance(decisions[-1], Stop):
                break
        best = best_round(run.rounds, target)
        if best is not None:
            load_checkpoint(run.checkpoints.folder / best.checkpoint, learner)
    return Run(decisions[-1].outcome, decisions[-1].reason, run.rounds, decisions, best)


def _planned(budget: Budget, steps_per_round: int) -> int:
    """The steps that a budget allows: what the schedule spans."""
    bounds = [budget.steps, budget.rounds and budget.rounds * steps_per_round]
    return min((steps for steps in bounds if steps), default=100 * steps_per_round)


@dataclass
class _Rounds:
    """The mutable side of a run: what has been done so far, and how to go on from a checkpoint."""

    loop: OuterLoop
    checkpoints: Checkpoints
    experience: Experience
    observer: Observer
    started: float  # on the monotonic clock, moved back by what earlier processes spent
    rounds: list[Round] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the unfinished round

    def resume(self) -> bool:
        """Load the latest checkpoint, if there is one; True if it stands at the end of a round."""
        latest = self.checkpoints.latest()
        if latest is None:
            return False
        meta = self.loop.load(latest)
        self.rounds = [Round.from_json(entry) for entry in meta["rounds"]]
        self.losses = meta["losses"]
        self.started = min(self.started, time.monotonic() - meta["seconds"])
        self.experience.record("resumed", checkpoint=latest.name, step=self.loop.step)
        return meta["complete"]

    def train(self, steps: int, deadline: float) -> str | None:
        """Train to the round's end; returns the sentence of what went wrong if the loss was not finite."""
        begun = logged = len(self.losses)
        end = self.loop.step + steps - begun

        def observe(progress: Progress) -> None:
            nonlocal logged
            self.losses.append(progress.loss)
            if len(self.losses) - logged >= 10:
                self._log(logged)
                logged = len(self.losses)
            if self.checkpoints.due():
                self._save(f"step-{progress.step:07d}", complete=False)
                self.checkpoints.prune(*(r.checkpoint for r in self.rounds))
            self.observer.step(progress, end)

        try:
            self.loop.run(steps - begun, observe, deadline)
        except Diverged as error:
            return str(error)
        finally:
            self._log(logged)
        return None

    def judge(self, learner: Learner, source: TaskSource, num_tasks: int, diverged: str | None) -> None:
        """End a round: validation figures, and a checkpoint."""
        number = len(self.rounds) + 1
        val = {}
        if diverged is None:

            def observe(scored: Scored) -> None:
                self.observer.task(scored.number + 1, num_tasks)

            val = evaluate(learner, source, split="val", num_tasks=num_tasks, observe=observe, audit=False).metrics
        self.rounds.append(
            Round(
                number=number,
                step=self.loop.step,
                train_loss=sum(self.losses) / len(self.losses) if self.losses else None,
                val=val,
                settings=asdict(self.loop.settings),
                seconds=time.monotonic() - self.started,
                checkpoint=f"round-{number:04d}",
                diverged=diverged,
            )
        )
        self.losses = []
        self._save(self.rounds[-1].checkpoint, complete=True)

    def apply(self, decision: Decision, target: Target) -> None:
        """Log a decision and carry it out."""
        last = self.rounds[-1]
        self.experience.record("decision", round=last.to_json(), **plain(decision))
        if isinstance(decision, Rollback):
            step = self.loop.step
            self.loop.load(self.checkpoints.folder / self.rounds[decision.to_round - 1].checkpoint)
            self.loop.step = step  # the tasks to come are new ones
        if isinstance(decision, Change | Rollback):
            self.loop.settings = replace(self.loop.settings, **decision.settings)
        best = best_round(self.rounds, target)
        self.checkpoints.prune(*([best.checkpoint] if best else []))
        self.observer.decided(last, decision)

    def _log(self, since: int) -> None:
        if new := self.losses[since:]:
            self.experience.record("train", step=self.loop.step, loss=sum(new) / len(new))

    def _save(self, name: str, *, complete: bool) -> None:
        meta = {
            "rounds": [r.to_json() for r in self.rounds],
            "losses": self.losses,
            "complete": complete,
            "seconds": time.monotonic() - self.started,
        }
        self.loop.save(self.checkpoints.folder / name, meta)
        self.checkpoints.wrote()
