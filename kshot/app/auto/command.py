"""`kshot auto`: describe the data, rank plans by experience, race them, keep the best or a simple baseline, test once.

A folder of `kshot auto` is a run folder of the plan that was kept, with two things besides:

plans/          a run folder for each plan, without a test
choice.jsonl    the log of the race, from which it is resumed

With `evaluate: {folds: 5}` there is such a folder for each fold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kshot.annotations import PositiveFloat
from kshot.app.auto.cross_validation import cross_validate, further_splits
from kshot.app.auto.descriptors import default_target, describe_data, describe_simple
from kshot.app.auto.mixing import mix
from kshot.app.auto.plans import MIXTURE, plans_for
from kshot.app.auto.question import Data, Question
from kshot.app.auto.race import Entrant, Race
from kshot.app.auto.ranking import expect
from kshot.app.auto.simple import measure_simple
from kshot.app.build import build_source, shapes_of
from kshot.app.execute import Report
from kshot.app.folder import RunFolder, run_folder, take_over
from kshot.app.folds import kept_in, report_on_folds, title_of_fold
from kshot.app.in_memory import hash_of
from kshot.app.progress import Display
from kshot.app.run import NO_TARGET, check_data, run
from kshot.app.screen import Screen
from kshot.app.spec import Spec
from kshot.argument_checks import check_arguments
from kshot.deciding.decisions import EventLog
from kshot.deciding.experience import Experience, shipped_trials
from kshot.deciding.trial import Cost, Figure, Trial
from kshot.evaluation.target import Target
from kshot.evaluation.units import count_of
from kshot.files import is_empty, owned

FOR_SPLITS, FOR_MIXTURE, FOR_TEST = 0.3, 0.08, 0.15
"""Shares of the time: for a cross-validation, if there are few groups; for a mixture, at most; and for the test."""
TESTED = 3
"""Simple baselines that are tested beside the plan that is kept: the best on validation tasks."""


@check_arguments
def auto(
    data: Data,
    out: str | Path | None = None,
    *,
    minutes: PositiveFloat = 15.0,
    overrides: Sequence[str] = (),
    resume: bool = False,
    console: Console | None = None,
    experience: Experience | None = None,
) -> Report:
    """Find a learner for the tasks of a run file, or of a data set, within a time limit; return the report.

    Simple baselines are measured first. The plans for the kind of task are then ranked by what experience expects of
    them, and get time by successive halving on validation tasks. The best of them are mixed. The best plan, or the
    mixture, is kept if it is better than the best simple baseline, otherwise that baseline is; what is kept is tested
    once. With `evaluate: {folds: 5}` in the run file, or as an override, all of that is done once for each fold of the
    classes or groups, in a fifth of the time, and each of them is tested once.

    Args:
        data: a run file, its values, or a recipe, whose learner, model and training are left out of account; or a
            table, in a file or a DataFrame; or a folder with a folder of images or texts for each class; or any source
            of tasks.
        out: folder for the result, which `kshot.load` opens; by default a new one in runs/.
        minutes: time for all but the end of the final test.
        overrides: `PATH=VALUE`, each sets a key of the run file.
        resume: whether to continue an interrupted call in `out`.
        experience: what was tried on other data sets; by default the user's, and what comes with kshot.

    Raises:
        ValueError: the data cannot be used, or `out` is not empty.

    Example:
        >>> report = auto("patients.yaml", minutes=15)  # doctest: +SKIP
        >>> report["choice"]["reason"]  # doctest: +SKIP
        'kept: boosted_residual, validation mse 0.412 ± 0.031 (100 tasks); the best simple baseline, mixed_model, has …'
    """
    if resume and out is None:
        raise ValueError("resume needs the folder of the interrupted call: out")
    question, known = Question.of(data, overrides), experience or Experience()
    base = question.base()
    with run_folder(None if out is None else Path(out), f"auto-{base.name}") as folder:
        find = _auto_in_folds if base.evaluate.folds else _auto
        screen = console or Screen()
        return Report(find(question, folder, known, minutes=minutes, resume=resume, console=screen), folder)


def _auto(
    question: Question,
    out: Path,
    known: Experience,
    *,
    minutes: float,
    resume: bool,
    console: Console,
    fold: bool = False,
) -> dict[str, Any]:
    """Choose, test what is kept, and return the report.

    In a fold, what the user has tried is not asked, as it may be of these data, and of what is tested here; and all
    simple baselines are tested, as another fold may have others as the best.
    """
    base = question.base()
    with owned(out), Display(console, "") as display:
        _check_empty(out, resume)
        race = start(question, base, out, 60 * minutes * (1 - FOR_MIXTURE - FOR_TEST), display.say)
        checked = check_data(race.source, display)
        descriptors = measure(race, base.evaluate.num_val_tasks)
        expected = expect([plan.name for plan in race.plans], descriptors, shipped_trials() if fold else known.trials())
        chosen, num_tasks = bool(race.log.of("kept")), base.evaluate.num_val_tasks
        splits = further_splits(base, race.source) if len(race.plans) + len(race.simple) > 1 else []
        for_splits = 60 * minutes * FOR_SPLITS if splits else 0.0
        if not chosen:  # else an interrupted call has chosen, and may have copied the plan
            race.seconds -= for_splits
            race.run(sorted(race.plans, key=lambda plan: -expected[plan.name].gain), expected)
        cross_validate(race, splits, question, num_tasks, 0.0 if chosen else for_splits)
        if not chosen:
            mix(race, num_tasks, 60 * minutes * FOR_MIXTURE)
        for name, expectation in expected.items():
            if name in race.entrants:
                race.entrants[name].expected = expectation
        kept, reason = _choose(race)
        race.log.record("kept", plan=kept.plan.name)
        display.say(reason, "bold")
        known.merge(_trials(race, descriptors))
        source, bound = race.source, race.target if question.target else _level(race)
        spec = question.spec(
            kept.plan,
            target=str(bound),
            budget={"rounds": kept.rounds, "minutes": None},
            baselines=_tested_baselines(race, kept, base, 60 * minutes * FOR_TEST, None if fold else TESTED),
        )
        folder = race.folder / kept.plan.slug
        if kept.simple and not folder.exists():
            encoding = source.preprocessor.to_json() if source.preprocessor else None
            with owned(folder):
                RunFolder(folder).start(spec, shapes_of(source), encoding)
        take_over(folder, out)
    story = _story(race, kept, reason, minutes, question.target)
    return run(spec, out, resume=True, console=console, choice=story, checked=checked)


def _auto_in_folds(
    question: Question, out: Path, known: Experience, *, minutes: float, resume: bool, console: Console
) -> dict[str, Any]:
    """A choice and a test in each fold, with an equal share of the time, and a report on all of them."""
    base, reports = question.base(), list[dict[str, Any]]()
    count = base.evaluate.folds or 0
    questions = [question.of_fold(fold) for fold in range(count)]
    with owned(out):
        _check_empty(out, resume)
        for fold, each in enumerate(questions):
            folder = RunFolder(out / f"fold-{fold}")
            if (report := folder.read_report()) is None:
                console.rule(title_of_fold(fold, count), align="left", style="dim")
                report = _auto(
                    each, folder.path, known, minutes=minutes / count, resume=True, console=console, fold=True
                )
            reports.append(report)
        counts = Counter(kept_in(report) for report in reports).most_common()
        reason = "kept: " + ", ".join(f"{name} in {count_of(number, 'fold')}" for name, number in counts)
        about = {"reason": reason, "minutes": minutes, "target": question.target, "metric": reports[0]["metric"]}
        changes: dict[str, Any] = {"choice": about | {"entrants": []}, "cost": {}}
        if question.target is None:
            changes |= {"reason": reason, "sentence": NO_TARGET, "target": None}
        return report_on_folds(base, out, reports, ["kshot", "auto", "--minutes", f"{minutes:g}"], changes)


def _check_empty(out: Path, resume: bool) -> None:
    if not resume and not is_empty(out):
        raise ValueError(f"{out} already exists and is not empty: choose another --out, or continue by --resume")


def collect(
    data: Data,
    out: Path,
    *,
    minutes: float,
    data_set: str,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Trial]:
    """Try all plans on a data set, without a test, and return what experience keeps of them.

    Args:
        data, out, overrides: as in `auto`; what an interrupted call has tried in `out` is not tried again. `data` may
            be the values of a run file.
        minutes: time for all plans together.
        data_set: name of the data set, which is published.
    """
    question = Question.of(data, overrides)
    with owned(out):
        race = start(question, base := question.base(), out, 60 * minutes, say)
        descriptors = measure(race, base.evaluate.num_val_tasks)
        race.run(race.plans, starters=len(race.plans), shortest=0.0)
        return _trials(race, descriptors, data_set)


def start(question: Question, base: Spec, out: Path, seconds: float, say: Callable[[str], None]) -> Race:
    """A race before its first entrant."""
    source = build_source(base)
    shapes = shapes_of(source)
    target = Target.parse(question.target) if question.target else default_target(source)
    plans = plans_for(source.objective, shapes, forecasts=bool(source.forecasts))
    race = Race(
        folder=out / "plans",
        seconds=seconds,
        source=source,
        target=target,
        plans=plans,
        make_spec=lambda plan, budget: question.spec(plan, target=str(target), budget=budget),
        log=EventLog(out / "choice.jsonl"),
        say=say,
    )
    race.restore()
    say(f"{base.name}: {seconds / 60:.1f} minutes for simple baselines and {len(plans)} plans")
    return race


def measure(race: Race, num_tasks: int) -> dict[str, float | str]:
    """Measure the simple baselines of a race, and return the descriptors of the data."""
    measure_simple(race, num_tasks)
    descriptors = describe_data(race.source, shapes_of(race.source), race.target)
    return descriptors | describe_simple(race.simple, race.target)


def _choose(race: Race) -> tuple[Entrant, str]:
    """The entrant to keep and the reason: a plan only if it is better than the best simple baseline."""
    simple = [each for each in race.ranked() if each.simple]
    plans = [each for each in race.ranked() if not each.simple]
    if not simple and not plans:
        failures = "; ".join(f"{each.plan.name}: {each.failure}" for each in race.entrants.values() if each.failure)
        raise ValueError(f"no plan and no baseline suits these data: {failures}")
    best = race.ranked([*simple[:1], *plans[:1]])[0]  # of equal ones the simple one
    said = (
        f"kept: {'the simple baseline ' * best.simple}{best.plan.about}, validation {race.target.metric} {best.figure}"
    )
    if not best.simple:
        other = f"the best simple baseline, {simple[0].plan.name}" if simple else ""
    else:
        other = f"the best plan, {plans[0].plan.name}" if plans else ""
    beside = (plans if best.simple else simple)[:1]
    said += f"; {other}, has {beside[0].figure}" if beside else ""
    seeming = max((*simple, *plans), key=race.measured_gain)
    if race.measured_gain(seeming) > race.measured_gain(best):
        less = 1 - math.exp(race.gain(seeming) - race.gain(best))
        figure = "" if seeming in beside else f", {seeming.figure},"
        said += (
            f"; the figure of {seeming.plan.name}{figure} is better, but with what experience knows of similar data "
            f"sets {best.plan.name} is expected to have {less:.0%} less error"
        )
    if best.figure is not None and best.figure.num_units == 1:
        said += f"; all validation tasks are of one {best.figure.unit}, so that plans were compared by experience alone"
    return best, said


def _tested_baselines(race: Race, kept: Entrant, base: Spec, seconds: float, count: int | None) -> dict[str, Any]:
    """The section `baselines` of the final test: the best simple ones, on as many tasks as the time allows."""
    others = race.ranked([each for each in race.entrants.values() if each.simple and each not in race.compared])
    names = [each.plan.name for each in (*race.ranked(), *others) if each.simple][:count]
    per_task = sum(race.entrants[name].seconds for name in names) / base.evaluate.num_val_tasks
    most = max(int(seconds / max(per_task, 1e-9)), base.evaluate.num_val_tasks)
    num_tasks = min(base.evaluate.num_test_tasks, most)
    names += ["pretrained_centroid"] * (kept.plan.pretrain is not None and race.target.metric == "accuracy")
    return {"names": names, "num_test_tasks": num_tasks, "budget": 0.0}


def _level(race: Race) -> Target:
    """The target where none is given: to be no worse than the interval of the best simple baseline, if there is one."""
    simple = [each for each in race.ranked() if each.simple]
    if not simple or simple[0].figure is None:
        return race.target
    low, high = simple[0].figure.low, simple[0].figure.high
    end, outward = (low, math.floor) if race.target.at_least else (high, math.ceil)
    if not math.isfinite(end):
        end = simple[0].figure.mean
    unit = 10.0 ** (math.floor(math.log10(abs(end) or 1.0)) - 3)
    return replace(race.target, value=float(f"{outward(end / unit) * unit:.6g}"))


def _trials(race: Race, descriptors: Mapping[str, float | str], data_set: str = "") -> list[Trial]:
    """What experience keeps of a race: the plans and simple baselines, and no mixture of them."""
    simple = [each.course[-1][1].mean for each in race.entrants.values() if each.simple and each.course]
    best = max if race.target.at_least else min
    return [
        Trial(
            descriptors=descriptors,
            plan=entrant.plan.to_json(),
            figures=[Figure(seconds, figure.mean, figure.ci95) for seconds, figure in entrant.course],
            baseline=best(simple, default=None),
            cost=Cost(entrant.seconds, entrant.parameters),
            data_set=data_set or hash_of(race.source),
        )
        for entrant in race.entrants.values()
        if entrant.course and entrant.plan.learner["kind"] != MIXTURE
    ]


def _story(race: Race, kept: Entrant, reason: str, minutes: float, target: str | None) -> dict[str, Any]:
    """The entry of the report on how the plan was chosen."""
    entrants = [
        {
            "name": each.plan.name,
            "about": each.plan.about,
            "simple": each.simple,
            "kept": each is kept,
            "seconds": each.seconds,
            "figure": each.figure and each.figure._asdict(),
            "splits": 1 + len(race.splits) if each in race.compared else 1,
            "course": [[seconds, figure._asdict()] for seconds, figure in each.course],
            "expected": each.expected.value(race.target) if each.expected else None,
            "similar": each.expected.weight if each.expected else 0.0,
            "failure": each.failure,
        }
        for each in race.entrants.values()
    ]
    about = {"reason": reason, "minutes": minutes, "target": target, "metric": race.target.metric}
    return about | {"entrants": entrants}
