"""The study of a sweep: a database of Optuna that its workers share, and what they note in it.

A trial that has a figure is finished; one that failed without a reason was lost with its process, and is tried again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target

HEARTBEAT, GRACE = 10, 60
"""Seconds between the signs of life of a trial, and without one after which it counts as lost."""
ATTEMPTS = 3
"""How often settings are tried whose process is lost each time."""
QUEUED, AGAIN, PLACE, PROCESS = "queued", "again", "place", "process"
FIGURE, COURSE, ROUNDS, SECONDS, PARAMETERS = "figure", "course", "rounds", "seconds", "parameters"
FAILURE, MET = "failure", "met"
KNOWN = "known"
"""Names of what is noted of a trial: settings that it was queued with, the number of the lost one that it repeats, the
folder and the process that it is trained in; the best validation figure, the same over time, rounds, seconds and
parameters; why it failed, and whether it met the target. Of the study: the settings to try first."""


class SeededByTrial(BaseSampler):
    """TPE whose random numbers depend on the number of the trial alone, whichever process asks, and when.

    Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011; jointly over settings as in Falkner et
    al., BOHB (arXiv:1807.01774).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        place = sum(map(ord, param_name))  # settings of one trial must not share their numbers
        return self._of(trial, place).sample_independent(study, trial, param_name, param_distribution)

    def _of(self, trial: FrozenTrial, place: int = 0) -> TPESampler:
        return TPESampler(seed=(self.seed * 1_000_003 + trial.number * 1009 + place) % 2**32)


def open_study(
    storage: str, name: str, target: Target, seed: int, *, sampler: BaseSampler | None = None, pruner: Any = None
) -> Study:
    """Open a study, or make it: TPE, and successive halving over rounds (ASHA, arXiv:1810.05934).

    Raises:
        ValueError: the database cannot be used.
    """
    place = shown(storage)
    options: dict[str, Any] = {}
    if storage.startswith("sqlite"):  # wait for the writes of other processes, also of those that began as readers
        options["connect_args"] = {"timeout": 60, "isolation_level": "IMMEDIATE"}
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            database = optuna.storages.RDBStorage(
                storage, engine_kwargs=options, heartbeat_interval=HEARTBEAT, grace_period=GRACE
            )
            return optuna.create_study(
                storage=database,
                study_name=name,
                load_if_exists=True,
                direction="maximize" if target.at_least else "minimize",
                sampler=sampler or SeededByTrial(seed),
                pruner=pruner or optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
            )
    except (sa.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError, AssertionError) as error:
        said = str(getattr(error, "__cause__", None) or error).splitlines()
        raise ValueError(
            f"the study in {place} cannot be opened: {said[0] if said else type(error).__name__}"
        ) from None


def shown(storage: str) -> str:
    """A URL for messages, without its password."""
    try:
        return sa.make_url(storage).render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ValueError):
        return "the given --storage, which is no URL such as sqlite:///study.db or postgresql://host/name,"


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the messages of Optuna, which kshot has its own of."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def is_lost(trial: FrozenTrial) -> bool:
    """Whether the process of a trial ended before the trial did."""
    return trial.state is TrialState.FAIL and FAILURE not in trial.user_attrs


def taken(trials: Sequence[FrozenTrial]) -> int:
    """How many trials were begun, without those that were lost."""
    return sum(trial.state is not TrialState.WAITING and not is_lost(trial) for trial in trials)


def figure_of(trial: FrozenTrial) -> Interval | None:
    """The validation figure of the best round of a trial."""
    figure = trial.user_attrs.get(FIGURE)
    return Interval(**figure) if figure else None


def best_of(trials: Sequence[FrozenTrial], target: Target) -> FrozenTrial | None:
    """The trial with the best figure, the first of equal ones; None if none has one."""
    figures = [(figure.mean, trial) for trial in trials if (figure := figure_of(trial)) is not None]
    sign = -1 if target.at_least else 1
    return min(figures, key=lambda pair: (sign * pair[0], pair[1].number))[1] if figures else None


def give_up(study: Study, of: Mapping[str, Any]) -> None:
    """Mark the running trials with these notes as lost."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if all(trial.user_attrs.get(name) == value for name, value in of.items()):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def fail_stale(study: Study) -> None:
    """Mark the trials without signs of life as lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def try_again(study: Study) -> None:
    """Queue the settings of lost trials, unless that was done, or too often."""
    trials = study.get_trials(deepcopy=False)
    repeated = [trial.user_attrs.get(AGAIN) for trial in trials]
    for trial in filter(is_lost, trials):
        first = trial.user_attrs.get(AGAIN, trial.number)
        attempts = [each.number for each in trials if first in (each.number, each.user_attrs.get(AGAIN))]
        settings = trial.user_attrs.get(QUEUED, {}) | trial.params
        if trial.number == attempts[-1] and repeated.count(first) < ATTEMPTS - 1 and settings:
            queue(study, settings, {AGAIN: first})


def queue_next(study: Study) -> None:
    """Queue the next of the settings that are known, one at a time, so that those of lost trials come before them."""
    trials, known = study.get_trials(deepcopy=False), study.user_attrs.get(KNOWN, [])
    begun = sum(QUEUED in trial.user_attrs and AGAIN not in trial.user_attrs for trial in trials)
    if begun < len(known) and all(trial.state is not TrialState.WAITING for trial in trials):
        queue(study, known[begun])


def queue(study: Study, settings: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
    """Have settings tried next; those that are not given are proposed."""
    study.enqueue_trial(dict(settings), user_attrs={QUEUED: dict(settings), **(about or {})})
