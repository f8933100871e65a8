"""`kshot sweep`: search over settings of a run file by Optuna, and test the best trial once.

A folder of `kshot sweep` is a run folder of the best trial, with these things besides:

trials/       a run folder for each trial that was trained here, without a test
study.sqlite  the study, unless --storage names another database
sweep.json    which study the folder belongs to, and which trial was kept
worker-0.log  what the processes of workers printed, where there are several on this machine
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from kshot.annotations import PositiveFloat, PositiveInt
from kshot.app.auto.descriptors import describe_data, error_of
from kshot.app.build import build_source, shapes_of
from kshot.app.folder import RunFolder, take_over
from kshot.app.in_memory import as_text, hash_of
from kshot.app.progress import Display
from kshot.app.run import run
from kshot.app.screen import Screen
from kshot.app.spec import SEARCH, Spec, parse_values, read_run_file
from kshot.app.suitability import refuse_unsuited
from kshot.app.sweep import study as notes
from kshot.app.sweep.on_ray import ray_workers
from kshot.app.sweep.processes import process_workers
from kshot.app.sweep.space import Settings
from kshot.app.sweep.worker import Job, work
from kshot.argument_checks import check_arguments
from kshot.deciding.experience import Experience
from kshot.deciding.trial import PLAN_KEYS, Cost, Figure, Trial
from kshot.evaluation.report.sweep_chart import shown_value
from kshot.evaluation.target import Target
from kshot.files import digest, is_empty, owned, read_json, write_json
from kshot.tasks.source import TaskSource

FROM_EXPERIENCE = 5
"""Settings of experience that are tried first, at most."""
TRIED_ON_TASKS = 16
"""Combinations of choices whose learner is tried on a few tasks before the search, at most."""
Launcher = Literal["processes", "ray"]
"""Where workers are."""


@check_arguments
def sweep(
    data: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    trials: PositiveInt = 40,
    minutes: PositiveFloat = 30.0,
    workers: PositiveInt = 2,
    launcher: Launcher = "processes",
    storage: str | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    console: Console | None = None,
    experience: Experience | None = None,
) -> dict[str, Any]:
    """Search over the settings of a run file, test the best on validation tasks once, and return the report.

    Settings are proposed by TPE after those of the run file and the best of experience. Each trial trains the run file
    with its settings; one that is worse after its first, third, ninth… round than most others were is stopped. The
    search ends with the number of trials, with the time, or when a trial meets the target.

    Args:
        data: a run file, its values, or a recipe, with a section `search`: ranges and choices by the path of a setting.
        out: folder for the result, which `kshot.load` opens.
        trials: number of trials, of all workers that share the study together.
        minutes: time for the search of this call; a trial that is trained then ends after its round.
        workers: number of workers, of one thread each.
        launcher: "processes" of this machine, where a single worker is this process; or "ray", tasks of Ray on this
            machine, or on the cluster that `RAY_ADDRESS` names.
        storage: URL of a database that several calls share, such as "postgresql://host/name"; by default a file in
            `out`.
        overrides: `PATH=VALUE`, each sets a key of the run file.
        resume: whether to continue an interrupted call in `out`.
        experience: trials of other searches; by default the user's, and what comes with kshot.

    Raises:
        ValueError: the run file or its section `search` is wrong, the study cannot be opened, or `out` is not empty.

    Example:
        >>> report = sweep("patients.yaml", "runs/patients", trials=40, workers=4)  # doctest: +SKIP
        >>> report["sweep"]["reason"]  # doctest: +SKIP
        'trial 17 is kept: learner.steps 3, train.outer_lr 0.0042; validation mse 0.412 ± 0.031 (100 tasks)'

    Reference:
        Akiba et al., "Optuna: a next-generation hyperparameter optimization framework" (arXiv:1907.10902).
    """
    out, known = Path(out), experience or Experience()
    job = _job(data, out, overrides, trials=trials, minutes=minutes, storage=storage)
    base = _checked(job)
    target, source = Target.parse(base.target), build_source(base)
    _refuse_unsuited(job, source)
    with owned(out), Display(console or Screen(), "") as display:
        if not resume and not is_empty(out):
            raise ValueError(f"{out} already exists and is not empty: choose another --out, or continue by --resume")
        about = _about(job, out)
        job = replace(job, place=about["place"])
        study = notes.open_study(job.storage, job.study, target, base.seed)
        with notes.quiet():
            if "kept" not in about:
                notes.give_up(
                    study, {notes.PLACE: job.place}
                )  # of a call that was killed: nobody else holds the folder
                _note_known(study, job, source, target, known.trials())
                display.say(f"{base.name}: a study of {trials} trials, {notes.shown(job.storage)}")
                _search(job, study, source, workers, launcher, _Announcer(study, target, display.say))
                known.merge(_trials(study, job, source, target))
            kept = _kept(study, target, about)
        story = _story(study, job, kept, target)
        display.say(story["reason"], "bold")
        if kept.user_attrs[notes.PLACE] != job.place:
            display.say("It was trained by another call that shares the study, and is tested there.")
            return {"name": base.name, "metric": target.metric, "sweep": story}
        spec = job.spec(kept.params)
        if kept.state is TrialState.PRUNED:  # it is not trained on
            rounds = {"rounds": kept.user_attrs[notes.ROUNDS], "minutes": None, "steps": None}
            spec = spec.model_copy(update={"budget": spec.budget.model_copy(update=rounds)})
        if RunFolder(out).spec.exists() and (done := _report_of(out, spec)):
            return done
        write_json(out / "sweep.json", about | {"kept": kept.number})
        take_over(job.trial_folder(kept.number), out)
    return run(spec, out, resume=True, console=console, sweep=story)


def _job(
    data: str | Path | Mapping[str, Any],
    out: Path,
    overrides: Sequence[str],
    *,
    trials: int,
    minutes: float,
    storage: str | None,
) -> Job:
    """The job of all workers; ValueError if there is no such run file, or it has no section `search`."""
    found = (as_text(data), "data", None) if isinstance(data, Mapping) else read_run_file(str(data))
    if found is None:
        raise ValueError(f"there is no run file or recipe {data}")
    text, where, folder = found
    values = parse_values(text, where, overrides).values
    job = Job(
        text=text,
        where=where,
        folder=None if folder is None else str(folder.absolute()),
        overrides=tuple(overrides),
        out=str(out.absolute()),
        place="",
        storage=storage or f"sqlite:///{(out / 'study.sqlite').absolute()}",
        study=f"{values.get('name', 'run')}-{digest(values)[:12]}",
        trials=trials,
        until=time.time() + 60 * minutes,
    )
    _ = job.space
    return job


def _checked(job: Job) -> Spec:
    """The base of all trials, after the run files of the ends of all ranges and of all choices were checked."""
    for settings in job.space.corners():
        try:
            job.spec(settings)
        except ValueError as error:
            said = str(error).removeprefix("--set: ")
            raise ValueError(f"{job.where}: {SEARCH}: with {_phrase(settings)}: {said}") from None
    if job.base.evaluate.folds:
        raise ValueError(f"{job.where}: evaluate.folds are for kshot run: sweep without them, then run what is found")
    return job.base


def _refuse_unsuited(job: Job, source: TaskSource) -> None:
    """Raise ValueError if a choice does not suit the tasks: each is tried on a few of them."""
    shapes = shapes_of(source)
    choices = {name for name, each in job.space.to_json().items() if isinstance(each, list)}
    tried: list[Settings] = []
    for settings in job.space.corners():
        chosen = {name: value for name, value in settings.items() if name in choices}
        if chosen in tried or len(tried) == TRIED_ON_TASKS:
            continue
        tried.append(chosen)
        try:
            refuse_unsuited(job.spec(settings), source, shapes)
        except ValueError as error:
            raise ValueError(f"{job.where}: {SEARCH}: with {_phrase(settings)}: {error}") from None


def _about(job: Job, out: Path) -> dict[str, Any]:
    """What sweep.json holds, which is made if it is not there; ValueError if it is of another study."""
    path = out / "sweep.json"
    if not path.exists():
        if not is_empty(out):
            raise ValueError(f"{out} holds no sweep to continue: choose another --out")
        write_json(path, {"study": job.study, "place": secrets.token_hex(6)})
    about = read_json(path)
    if about["study"] != job.study:
        raise ValueError(
            f"{out} holds a sweep of another run file, or with another 'search' or --set: choose another --out"
        )
    return about


def _note_known(study: Study, job: Job, source: TaskSource, target: Target, trials: Sequence[Trial]) -> None:
    """Note in a new study the settings of the run file, and the best that experience has within the space."""
    if notes.KNOWN in study.user_attrs:
        return
    try:
        own = [job.space.within(job.spec({}).model_dump(mode="json"))]
    except ValueError:  # the run file leaves to the search what must be chosen
        own = []
    descriptors = describe_data(source, shapes_of(source), target)
    first = [settings for settings in [*own, *from_experience(job, descriptors, trials)] if settings]
    study.set_user_attr(notes.KNOWN, [each for number, each in enumerate(first) if each not in first[:number]])


def from_experience(job: Job, descriptors: Mapping[str, float | str], trials: Sequence[Trial]) -> list[Settings]:
    """Settings within the space that did best on tasks of the same kind, by the learners that the search has.

    Errors are compared with that of the best trial on the same data.
    """
    kinds = {job.spec(settings).learner.kind for settings in job.space.corners()}
    similar = [
        trial
        for trial in trials
        if trial.plan.get("learner", {}).get("kind") in kinds
        and all(trial.descriptors.get(name) == descriptors[name] for name in ("kind", "metric"))
        and any(figure.value is not None for figure in trial.figures)
    ]
    errors: dict[str, list[float]] = {}
    ranked: list[tuple[float, int, Settings]] = []
    for trial in similar:
        errors.setdefault(_data_of(trial), []).append(_error(trial))
    for number, trial in enumerate(similar):
        if settings := job.space.within(trial.plan):
            ranked.append((_error(trial) - min(errors[_data_of(trial)]), number, settings))
    best: list[Settings] = []
    for _, _, settings in sorted(ranked, key=lambda each: each[:2]):
        if settings not in best:
            best.append(settings)
    return best[:FROM_EXPERIENCE]


def _data_of(trial: Trial) -> str:
    return trial.data_set or digest(trial.descriptors)


def _error(trial: Trial) -> float:
    target = Target(str(trial.descriptors["metric"]), bool(trial.descriptors["higher_is_better"]), 0.0)
    return min(error_of(figure.value, target) for figure in trial.figures if figure.value is not None)


class _Announcer:
    """Says the result of each trial, once."""

    def __init__(self, study: Study, target: Target, say: Callable[[str], None]) -> None:
        self.study, self.target, self.say = study, target, say
        self.seen: set[int] = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}

    def __call__(self) -> None:
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self.seen:
                self.seen.add(trial.number)
                self.say(f"trial {trial.number}: {_outcome(trial, self.target)}; {_phrase(trial.params)}")


def _outcome(trial: FrozenTrial, target: Target) -> str:
    figure, failure = notes.figure_of(trial), trial.user_attrs.get(notes.FAILURE)
    if notes.is_lost(trial):
        return "lost with its process"
    if figure is None:
        return f"failed: {failure}"
    return f"validation {target.metric} {figure}{' (stopped)' * (trial.state is TrialState.PRUNED)}"


def _phrase(settings: Mapping[str, Any]) -> str:
    """Settings in words."""
    return ", ".join(f"{path} {shown_value(value)}" for path, value in settings.items())


def _search(
    job: Job, study: Study, source: TaskSource, workers: int, launcher: Launcher, announce: Callable[[], None]
) -> None:
    """Train trials by one worker in this process, or by several elsewhere."""
    if workers == 1 and launcher == "processes":
        work(job, study, source, announce)
    else:
        with ray_workers(job, workers) if launcher == "ray" else process_workers(job, study, workers) as team:
            while team.wait():
                announce()
    while True:  # until the last trials of other calls that share the study have ended
        announce()
        elsewhere = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not elsewhere or time.time() >= job.until:
            return
        time.sleep(1)
        notes.fail_stale(study)


def _kept(study: Study, target: Target, about: Mapping[str, Any]) -> FrozenTrial:
    """The best trial on validation tasks, or that of the call that was interrupted in the test."""
    trials = study.get_trials(deepcopy=False)
    if "kept" in about:
        return trials[about["kept"]]
    best = notes.best_of(trials, target)
    if best is None:
        failures = dict.fromkeys(str(each.user_attrs.get(notes.FAILURE, "")) for each in trials)
        reason = "; ".join(filter(None, failures)) or "the time was up, or all workers ended, see their logs in --out"
        raise ValueError(f"no trial has a validation figure: {reason}")
    return best


def _story(study: Study, job: Job, kept: FrozenTrial, target: Target) -> dict[str, Any]:
    """The entry of the report on the search."""
    trials = [each for each in study.get_trials(deepcopy=False) if each.state.is_finished() and not notes.is_lost(each)]
    stopped = sum(each.state is TrialState.PRUNED for each in trials)
    return {
        "reason": f"trial {kept.number} is kept: {_phrase(kept.params)}; {_outcome(kept, target)}, the best of "
        f"{len(trials)} trials, of which {stopped} were stopped early",
        "metric": target.metric,
        "study": job.study,
        "space": job.space.to_json(),
        "trials": [
            {
                "number": each.number,
                "settings": each.params,
                "state": each.state.name,
                "figure": each.user_attrs.get(notes.FIGURE),
                "rounds": each.user_attrs.get(notes.ROUNDS, 0),
                "seconds": each.user_attrs.get(notes.SECONDS),
                "failure": each.user_attrs.get(notes.FAILURE, ""),
                "kept": each.number == kept.number,
            }
            for each in trials
        ],
    }


def _trials(study: Study, job: Job, source: TaskSource, target: Target) -> list[Trial]:
    """What experience keeps of the trials that were trained here."""
    descriptors = describe_data(source, shapes_of(source), target)
    found = []
    for each in study.get_trials(deepcopy=False):
        if each.user_attrs.get(notes.PLACE) != job.place or notes.figure_of(each) is None:
            continue
        plan = job.spec(each.params).model_dump(mode="json", include=set(PLAN_KEYS))
        course = [Figure(seconds, figure["mean"], figure["ci95"]) for seconds, figure in each.user_attrs[notes.COURSE]]
        cost = Cost(each.user_attrs[notes.SECONDS], each.user_attrs.get(notes.PARAMETERS, 0))
        name = f"sweep of {plan['learner']['kind']}"
        found.append(Trial(descriptors, plan | {"name": name}, course, None, cost, data_set=hash_of(source)))
    return found


def _report_of(out: Path, spec: Spec) -> dict[str, Any] | None:
    """The report of a sweep that has ended."""
    folder = RunFolder(out)
    return folder.read_report() if folder.has_finished(spec) else None
