"""A worker of a sweep: trains trials of a study until all are taken, the time is up or the target is met.

`python -m kshot.app.sweep.worker` is one in a process of its own. It reads its job as JSON from standard input, and
ends at once when that is closed, which the system does when the process that started it dies.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import FileLock
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from kshot.app.build import build_source
from kshot.app.folder import RunFolder
from kshot.app.progress import Display
from kshot.app.run import train
from kshot.app.spec import SEARCH, Spec, parse_spec, parse_values
from kshot.app.sweep import study as notes
from kshot.app.sweep.space import Settings, Space
from kshot.deciding.decisions import Decision, Outcome, Round, Stop
from kshot.evaluation.target import Target
from kshot.files import owned
from kshot.tasks.source import TaskSource

ASKING = ".asking.lock"
"""The lock in the folder of a sweep under which a worker takes a trial."""
FAILURES = (ValueError, RuntimeError, MemoryError)
"""Errors that cost a sweep one trial."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, as plain values.

    Attributes:
        text, where, folder, overrides: run file, as in `kshot.app.spec.parse_spec`.
        out, place: folder of the sweep, and a name of it in the study.
        storage, study: URL and name of the study.
        trials: number of trials of the study, of all workers together.
        until: time, as of `time.time`, after which no trial is begun, and none goes on after its round.
    """

    text: str
    where: str
    folder: str | None
    overrides: tuple[str, ...]
    out: str
    place: str
    storage: str
    study: str
    trials: int
    until: float

    @cached_property
    def space(self) -> Space:
        """The section `search` of the run file."""
        return Space.parse(parse_values(self.text, self.where, self.overrides).values.get(SEARCH), self.where)

    @property
    def base(self) -> Spec:
        """The run file with one choice of settings; the tasks, the target and the seed are the same in all trials."""
        return self.spec(next(self.space.corners()))

    def spec(self, settings: Settings) -> Spec:
        """The run file of a trial."""
        overrides = [*self.overrides, *self.space.overrides(settings)]
        folder = None if self.folder is None else Path(self.folder)
        return parse_spec(self.text, self.where, overrides, folder, without_search=True)

    def trial_folder(self, number: int) -> Path:
        """The run folder of a trial that is trained here."""
        return Path(self.out) / "trials" / f"{number:04d}"

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


def work(job: Job, study: Study, source: TaskSource, said: Callable[[], None] = lambda: None) -> None:
    """Train trials until there is nothing more to do.

    Args:
        source: of the run file, watched by none.
        said: called after each trial.
    """
    lock = FileLock(Path(job.out) / ASKING)
    with notes.quiet():
        while True:
            lock.acquire()
            try:
                notes.fail_stale(study)
                notes.try_again(study)
                if is_done(job, study):
                    return
                notes.queue_next(study)

                def objective(trial: Trial) -> float:
                    trial.set_user_attr(notes.PLACE, job.place)
                    trial.set_user_attr(notes.PROCESS, os.getpid())
                    settings = job.space.suggest(trial)
                    lock.release(force=True)
                    return _try(job, study, trial, settings, source)

                study.optimize(objective, n_trials=1, catch=FAILURES)
            finally:
                lock.release(force=True)
            said()


def is_done(job: Job, study: Study) -> bool:
    """Whether no trial is to be begun."""
    trials = study.get_trials(deepcopy=False)
    met = any(trial.user_attrs.get(notes.MET) for trial in trials)
    return met or time.time() >= job.until or notes.taken(trials) >= job.trials


def _try(job: Job, study: Study, trial: Trial, settings: Settings, source: TaskSource) -> float:
    """Train a trial, and return its best validation figure; what it was is noted also if it is pruned or fails."""
    folder, started = job.trial_folder(trial.number), time.monotonic()
    try:
        spec = job.spec(settings)
        target = Target.parse(spec.target)
        with owned(folder), _Reporter(job, trial, target) as display:
            try:
                trained = train(
                    spec, folder, source, display, resume=False, pretrained_in=_pretrained(job, study, spec)
                )
            finally:
                for name, value in display.found().items():
                    trial.set_user_attr(name, value)
                trial.set_user_attr(notes.SECONDS, time.monotonic() - started)
        if trained.result.best is None:
            trial.set_user_attr(notes.FAILURE, trained.result.reason)
            raise optuna.TrialPruned  # the worst of all to TPE, which leaves out those that failed
        parameters = sum(parameter.numel() for parameter in trained.learner.parameters())
        trial.set_user_attr(notes.PARAMETERS, parameters)
        trial.set_user_attr(notes.MET, trained.result.outcome is Outcome.TARGET_MET)
        return target.of(trained.result.best.val).mean
    except FAILURES as error:
        trial.set_user_attr(notes.FAILURE, (str(error) or type(error).__name__).splitlines()[0])
        raise


class _Reporter(Display):
    """Reports the validation figure of each round to the study, and stops a trial that is pruned, or out of time."""

    def __init__(self, job: Job, trial: Trial, target: Target) -> None:
        super().__init__(Console(quiet=True), target.metric)
        self.job, self.trial, self.target = job, trial, target
        self.course: list[tuple[float, dict[str, Any]]] = []
        self.best = math.inf
        self.rounds = 0

    def __enter__(self) -> _Reporter:
        super().__enter__()
        return self

    def decided(self, round: Round, decision: Decision) -> None:
        self.rounds = round.number
        if round.val:
            figure = self.target.of(round.val)
            error = -figure.mean if self.target.at_least else figure.mean
            if error < self.best:
                self.best = error
                self.course.append((round.seconds, figure._asdict()))
            if math.isfinite(error):
                self.trial.report(figure.mean, round.number)
        if isinstance(decision, Stop):
            return
        if time.time() >= self.job.until or self.trial.should_prune():
            raise optuna.TrialPruned

    def found(self) -> dict[str, Any]:
        """What is kept of the trial in the study."""
        found: dict[str, Any] = {notes.ROUNDS: self.rounds, notes.COURSE: self.course}
        return found | ({notes.FIGURE: self.course[-1][1]} if self.course else {})


def _pretrained(job: Job, study: Study, spec: Spec) -> Path | None:
    """The folder of a trial with the same pretraining, which is finished, if no setting of it is searched."""
    if spec.pretrain is None or any(
        path == "learner.kind" or path.split(".")[0] in ("model", "pretrain") or "." not in path
        for path in job.space.distributions
    ):
        return None
    done: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    folders = [job.trial_folder(each.number) for each in done if each.user_attrs.get(notes.PLACE) == job.place]
    return next((folder for folder in folders if RunFolder(folder).pretrain.exists()), None)


def work_alone(job: Job) -> None:
    """Train trials by one thread, in a process that does nothing else."""
    torch.set_num_threads(1)
    base = job.base
    study = notes.open_study(job.storage, job.study, Target.parse(base.target), base.seed)
    work(job, study, build_source(base))


def main() -> None:
    """Do the job of standard input."""
    job = Job.from_json(sys.stdin.readline())

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    work_alone(job)


if __name__ == "__main__":
    main()
