"""`kshot auto`: describe the data, rank plans by experience, race them, keep the best or a simple baseline, test once.

A folder of `kshot auto` is a run folder of the plan that was kept, with two things besides:

plans/          a run folder for each plan, without a test
choice.jsonl    the log of the race, from which it is resumed
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from kshot.app.auto.descriptors import default_target, describe_data, describe_simple
from kshot.app.auto.plans import BASELINE, Plan, baseline_plan, plans_for
from kshot.app.auto.race import Entrant, Race
from kshot.app.auto.ranking import expect
from kshot.app.build import build_source, shapes_of
from kshot.app.folder import RunFolder
from kshot.app.progress import Display
from kshot.app.run import run
from kshot.app.screen import Screen
from kshot.app.spec import Spec, parse_spec, recipes
from kshot.data.text_files import read_text
from kshot.deciding.decisions import EventLog
from kshot.deciding.experience import Experience
from kshot.deciding.trial import Cost, Figure, Trial
from kshot.evaluation.baselines import Baseline, of_fields, without_model
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target
from kshot.files import copy_folder, is_empty, owned, whole_file
from kshot.limits import limits
from kshot.tasks.read_log import during
from kshot.yaml_files import parse_yaml

log = logging.getLogger(__name__)

FOR_SIMPLE, FOR_TEST = 0.2, 0.15
"""Shares of the time: at most the former for the simple baselines; the latter is kept for the test."""
TESTED = 3
"""Simple baselines that are tested beside the plan that is kept: the best on validation tasks."""
NOTHING = ["learner={kind: nearest_centroid}", "model=null", "pretrain=null", "train={}", "policy=null"]
"""Overrides by which the rest of a run file can be checked before there is a plan."""


@dataclass(frozen=True)
class _Question:
    """A run file without a plan.

    Attributes:
        text, where, folder: YAML, its name in errors, and the folder of the file.
        overrides: `PATH=VALUE`, each set in the file.
        target: target to be met; None if the file has none.
    """

    text: str
    where: str
    folder: Path | None
    overrides: tuple[str, ...]
    target: str | None

    @classmethod
    def of(cls, data: str | Path, overrides: Sequence[str]) -> _Question:
        """Read a recipe, a run file or a data set; ValueError if it is none."""
        text, where, folder = _read(data)
        values, _ = parse_yaml(text, where)
        given = dict(values) if isinstance(values, dict) else {}
        if isinstance(learner := given.get("learner"), dict) and Path(where).suffix:
            log.info("the learner %s of %s is one of many that may be tried", learner.get("kind"), where)
        target = next((each.partition("=")[2] for each in overrides if each.startswith("target=")), given.get("target"))
        named = [] if "name" in given else [f"name={json.dumps(_name(where))}"]
        return cls(text, where, folder, (*named, *overrides), target)

    def spec(self, plan: Plan | None = None, **sections: Any) -> Spec:
        """The run file with a plan, and with other sections."""
        overrides = [*self.overrides, *NOTHING, *(f"{name}={json.dumps(each)}" for name, each in sections.items())]
        if plan is not None:
            overrides += plan.overrides
        return parse_spec(self.text, self.where, overrides, self.folder)


def auto(
    data: str | Path,
    out: Path,
    *,
    minutes: float = 15.0,
    overrides: Sequence[str] = (),
    resume: bool = False,
    console: Console | None = None,
    experience: Experience | None = None,
) -> dict[str, Any]:
    """Find a learner for the tasks of a run file, or of a data set, within a time limit; return the report.

    Args:
        data: a run file or recipe, whose learner, model and training are left out of account; or a table, or a folder
            of images in one folder for each class.
        out: folder for the result.
        minutes: time for all but the end of the final test.
        overrides: `PATH=VALUE`, each sets a key of the run file.
        resume: whether to go on with an interrupted call in `out`.
        experience: what was tried on other data sets; by default the user's, and what comes with kshot.

    Raises:
        ValueError: the data cannot be used, or `out` is not empty.
    """
    question, known = _Question.of(data, overrides), experience or Experience()
    base = question.spec(target=question.target or "loss <= 0")
    with owned(out), Display(console or Screen(), "") as display:
        if not resume and not is_empty(out):
            raise ValueError(f"{out} already exists and is not empty: choose another --out, or go on by --resume")
        source = build_source(base)
        shapes = shapes_of(source)
        target = Target.parse(question.target) if question.target else default_target(source)
        race = Race(
            folder=out / "plans",
            seconds=60 * minutes * (1 - FOR_TEST),
            source=source,
            target=target,
            make_spec=lambda plan, budget: question.spec(plan, target=str(target), budget=budget),
            log=EventLog(out / "choice.jsonl"),
            say=display.say,
        )
        plans = plans_for(source.objective, shapes, forecasts=bool(source.forecasts))
        race.restore(plans)
        display.say(f"{base.name}: {minutes:g} minutes for simple baselines and {len(plans)} plans", "bold")
        simple = _simple(race, base.evaluate.num_val_tasks)
        descriptors = describe_data(source, shapes, target) | describe_simple(simple, target)
        expected = expect([plan.name for plan in plans], descriptors, known.trials())
        race.run(sorted(plans, key=lambda plan: -expected[plan.name].gain), expected)
        kept, reason = _choose(race, simple)
        display.say(reason, "bold")
        for entrant in race.entrants.values():
            if entrant.course:
                known.add(_trial(entrant, descriptors))
        bound = target if question.target or not simple else _level(simple, target)
        spec = question.spec(
            kept.plan,
            target=str(bound),
            budget={"rounds": kept.rounds, "minutes": None},
            baselines=_tested_baselines(race, kept, simple, base, 60 * minutes * FOR_TEST),
        )
        folder = race.folder / kept.plan.slug
        if kept.plan.learner["kind"] == BASELINE and not folder.exists():
            RunFolder(folder).start(spec, shapes, source.preprocessor.to_json() if source.preprocessor else None)
        _take_over(folder, out)
        race.log.record("kept", plan=kept.plan.name)
    choice = _story(race, kept, simple, reason, minutes)
    return run(spec, out, resume=True, console=console, choice=choice)


def _read(data: str | Path) -> tuple[str, str, Path | None]:
    """The text of a run file, its name in errors, and its folder."""
    path = Path(data)
    if str(data) in recipes():
        return recipes()[str(data)], f"recipe {data}", None
    if path.suffix in (".yaml", ".yml") and path.exists():
        return read_text(path, most=limits().yaml_bytes), str(path), path.parent
    if path.is_dir() or path.is_file():
        kind = "images" if path.is_dir() else "table"
        return yaml.safe_dump({"source": {"kind": kind, "path": str(path.resolve())}}), str(path), None
    raise ValueError(f"there is no run file, recipe, table or folder of images {data}")


def _name(where: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(where).stem).strip("-._") or "auto"


def _simple(race: Race, num_tasks: int) -> dict[str, Interval]:
    """The validation figures of the simple baselines, of which each that was tried is in the race, too."""
    source, candidates = race.source, without_model(race.source) | of_fields(race.source)
    limit = FOR_SIMPLE * race.seconds
    for name in candidates:
        if name in race.entrants:
            continue  # before an interruption
        race.entrants[name] = Entrant(baseline_plan(name))

        def measure(name: str = name) -> dict[str, Any]:
            learner = Baseline(name, source.objective)
            with during(source, "tuning"):
                learner.fit_to_training(source)
                figures = evaluate(learner, source, split="val", num_tasks=num_tasks, audit=False).metrics
            figure = race.target.of(figures)
            if not math.isfinite(figure.mean):
                raise ValueError(f"its {race.target.metric} is not finite")
            return {"figure": figure._asdict(), "finished": True}

        race.time(race.entrants[name], measure, max(limit - race.spent, limit / len(candidates)))
    figures = {name: race.entrants[name].figure for name in candidates if name in race.entrants}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _choose(race: Race, simple: Mapping[str, Interval]) -> tuple[Entrant, str]:
    """The entrant to keep and the reason: a plan only if it is better than the best simple baseline."""
    ranked = race.ranked()
    if not ranked:
        failures = "; ".join(f"{each.plan.name}: {each.failure}" for each in race.entrants.values())
        raise ValueError(f"no plan and no baseline suits these data: {failures}")
    metric, best = race.target.metric, ranked[0]
    baselines = [each for each in ranked if each.plan.name in simple]
    if not baselines:
        return best, f"kept: {best.plan.name}, validation {metric} {best.figure}; there is no simple baseline"
    one = baselines[0]
    if best.figure is not None and one.figure is not None and best.figure.mean == one.figure.mean:
        best = one  # the simpler of equal ones
    if best is one:
        other = next((each for each in ranked if each.plan.name not in simple), None)
        beside = f"; the best plan, {other.plan.name}, has {other.figure}" if other else ""
        return one, f"kept: the simple baseline {one.plan.name}, validation {metric} {one.figure}{beside}"
    beside = f"the best simple baseline, {one.plan.name}, has {one.figure}"
    return best, f"kept: {best.plan.name}, validation {metric} {best.figure}; {beside}"


def _take_over(plan: Path, out: Path) -> None:
    """Copy the run folder of a plan into `out`, the run file last."""
    for item in sorted(plan.iterdir(), key=lambda item: item.name == "spec.yaml"):
        if item.name.startswith(".") or (out / item.name).exists():
            continue
        if item.is_dir():
            copy_folder(item, out / item.name)
        else:
            with whole_file(out / item.name) as temporary:
                shutil.copyfile(item, temporary)


def _tested_baselines(
    race: Race, kept: Entrant, simple: Mapping[str, Interval], base: Spec, seconds: float
) -> dict[str, Any]:
    """The section `baselines` of the final test: the best simple ones, on as many tasks as the time allows."""
    names = [each.plan.name for each in race.ranked() if each.plan.name in simple][:TESTED]
    per_task = sum(race.entrants[name].seconds for name in names) / base.evaluate.num_val_tasks
    most = max(int(seconds / max(per_task, 1e-9)), base.evaluate.num_val_tasks)
    num_tasks = min(base.evaluate.num_test_tasks, most)
    names += ["pretrained_centroid"] * (kept.plan.pretrain is not None and race.target.metric == "accuracy")
    return {"names": names, "num_test_tasks": num_tasks, "budget": 0.0}


def _level(simple: Mapping[str, Interval], target: Target) -> Target:
    """The target to be as good as the best simple baseline on validation tasks."""
    best = (max if target.at_least else min)(figure.mean for figure in simple.values())
    return replace(target, value=float(f"{best:.4g}"))


def _trial(entrant: Entrant, descriptors: Mapping[str, float | str]) -> Trial:
    """What experience keeps of a plan."""
    figures = [Figure(seconds, figure.mean, figure.ci95) for seconds, figure in entrant.course]
    simple = descriptors.get("simple_value")
    return Trial(
        descriptors=descriptors,
        plan=entrant.plan.to_json(),
        figures=figures,
        baseline=simple if isinstance(simple, float) else None,
        cost=Cost(entrant.seconds, entrant.parameters),
    )


def _story(race: Race, kept: Entrant, simple: Mapping[str, Interval], reason: str, minutes: float) -> dict[str, Any]:
    """The entry of the report on how the plan was chosen."""
    entrants = [
        {
            "name": each.plan.name,
            "simple": each.plan.name in simple,
            "kept": each is kept,
            "seconds": each.seconds,
            "course": [[seconds, figure._asdict()] for seconds, figure in each.course],
            "expected": each.expected.value(race.target) if each.expected else None,
            "similar": each.expected.weight if each.expected else 0.0,
            "failure": each.failure,
        }
        for each in race.entrants.values()
    ]
    return {"reason": reason, "minutes": minutes, "metric": race.target.metric, "entrants": entrants}
