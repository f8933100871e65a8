"""`evaluate: {folds: 5}`: a run for each fold of the classes or groups, so that each is tested once, for small data."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kshot.app.environment import environment
from kshot.app.final_evaluation import units_entry
from kshot.app.folder import RunFolder
from kshot.app.parts import audits_of, failures_of, run_parts, write_common_report
from kshot.app.schema import Part
from kshot.app.spec import Spec
from kshot.evaluation.by_unit import UNITS, by_unit, write_by_unit
from kshot.evaluation.compare import differences
from kshot.evaluation.per_task import TASKS, Scores, figures_beside, figures_of, read_tasks, write_tasks
from kshot.evaluation.report.breakdowns import units_chart
from kshot.evaluation.report.report import to_json
from kshot.evaluation.report.verdict import best_baseline
from kshot.evaluation.units import describe_units, joined
from kshot.files import owned


def spec_of_fold(spec: Spec, fold: int) -> Spec:
    """The run file of one fold; ValueError if its source cannot be split into folds.

    The test tasks are shared among the folds.
    """
    folds = spec.evaluate.folds
    assert folds is not None
    split = getattr(spec.source, "split", None)
    if not isinstance(spec.source, Part) or "split" not in type(spec.source).model_fields:
        raise ValueError(f"evaluate.folds needs a source with a key 'split', which {spec.source.kind} has not")
    if split is not None and not set(split) <= {"ratio", "seed", "exact"}:
        raise ValueError(f"evaluate.folds replaces the source's split, {dict(split)}: leave out one of them")
    seed = {"seed": split["seed"]} if split and "seed" in split else {}
    source = spec.source.model_copy(update={"split": {"folds": folds, "fold": fold, **seed}})
    num_tasks = max(2, -(-spec.evaluate.num_test_tasks // folds))
    evaluate = spec.evaluate.model_copy(update={"folds": None, "num_test_tasks": num_tasks})
    return spec.model_copy(update={"source": source, "evaluate": evaluate})


def run_folds(spec: Spec, out: Path, *, resume: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Execute a run file once for each fold, in the folders out/fold-0, out/fold-1…, and report on all of them.

    With `resume`, finished folds are not repeated. Raises ValueError as `run`.
    """
    count = spec.evaluate.folds or 0
    parts = {f"fold-{fold}": (title_of_fold(fold, count), spec_of_fold(spec, fold)) for fold in range(count)}
    with owned(out):
        reports = run_parts(out, parts, resume=resume, console=console)
        return report_on_folds(spec, out, reports, ["kshot", "run"])


def kept_in(report: Mapping[str, Any]) -> str | None:
    """What `kshot auto` has kept, by the report; None if the report is of another command."""
    entrants = (report.get("choice") or {}).get("entrants") or []
    return next((str(each["name"]) for each in entrants if each["kept"]), None)


def title_of_fold(fold: int, count: int) -> str:
    """What is shown before the run of a fold."""
    return f"fold {fold + 1} of {count}"


def report_on_folds(
    spec: Spec,
    out: Path,
    reports: list[dict[str, Any]],
    command: Sequence[str],
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the report on the folds in `out`, whose reports are given, and return it.

    Args:
        command: what made them from a run file, which is its next argument.
        changes: entries of the report that are not those of a run of each fold.
    """
    complete = all(report.get("test") for report in reports)
    tables = [read_tasks(RunFolder(out / f"fold-{fold}").tasks) for fold in range(len(reports))] if complete else []
    names = [name for name in tables[0][1] if all(name in table for _, table in tables)] if complete else []
    beside = min((len(table[name].episodes) for _, table in tables for name in names), default=0)
    learner = _joined([scores for scores, _ in tables], beside) if complete else None
    others = {name: _joined([table[name] for _, table in tables], beside, all_tasks=False) for name in names}
    again = {"source.split": getattr(spec.source, "split", None), "evaluate": spec.evaluate.model_dump(mode="json")}
    overrides = [word for key, value in again.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = [*command, str(out / "fold-0" / "spec.yaml"), *overrides]
    report = _report(reports, learner, others) | {"command": shlex.join(words)} | dict(changes or {})
    figures: dict[str, Any] = {}
    if learner is not None:
        metric, higher = report["metric"], report["higher_is_better"]
        write_tasks(out / TASKS, learner, others, metric)
        if learner.units is not None and (units := by_unit(learner, metric, others, higher_is_better=higher)):
            unit, best = learner.units.unit, best_baseline(to_json(report["baselines"]), metric, higher)
            write_by_unit(out / UNITS, units, unit, metric)
            report["by_unit"] = units_entry(units, unit)
            figures["units"] = units_chart(units, unit, metric, higher_is_better=higher, beside=best and best[0])
    return write_common_report(out, report, figures)


def _joined(folds: Sequence[Scores], beside: int, *, all_tasks: bool = True) -> Scores:
    """The figures of all folds as those of one test; units of different folds are different.

    First are the first `beside` tasks of each fold, on which baselines were evaluated too; then, of `all_tasks`, the
    others.
    """
    units = joined([each.units for each in folds if each.units is not None])
    place = np.concatenate([np.arange(len(each.episodes)) for each in folds])
    order = np.argsort(place >= beside, kind="stable")
    order = order if all_tasks else order[: beside * len(folds)]
    episodes = [episode for each in folds for episode in each.episodes]
    per_task = {name: [x for each in folds for x in each.per_task[name]] for name in folds[0].per_task}
    return Scores(
        [episodes[task] for task in order],
        {name: [values[task] for task in order] for name, values in per_task.items()},
        units and units._replace(numbers=units.numbers[order]),
    )


def _report(reports: list[dict[str, Any]], learner: Scores | None, others: dict[str, Scores]) -> dict[str, Any]:
    """The report of all folds: like that of one, over the test tasks of all."""
    first, metric = reports[0], reports[0]["metric"]
    outcomes = [report["outcome"] for report in reports]
    num_met = outcomes.count("TARGET_MET")
    met = num_met == len(reports)
    paired = differences(learner, others, metric) if learner is not None else {}
    chosen, about = kept_in(first) is not None, first["baselines_about"]
    return first | {
        "kshot": version("kshot"),
        "outcome": "TARGET_MET" if met else next(outcome for outcome in outcomes if outcome != "TARGET_MET"),
        "sentence": f"The target is met on the validation tasks of {num_met} of {len(reports)} folds.",
        "reason": "" if learner is not None else "a fold gave no usable round, so there is no common figure",
        "rounds": [],
        "best_round": None,
        "val": None,
        "test": None if learner is None else figures_of(learner),
        "beside": None if learner is None else figures_beside(learner, others),
        "baselines": {name: figures_of(scores) for name, scores in others.items()},
        "baselines_about": about | ({"learner": "what kshot auto kept in each fold"} if chosen else {}),
        "paired": paired,
        "audits": audits_of("fold", range(len(reports)), reports),
        "trusted": all(report["trusted"] for report in reports) if learner is not None else None,
        "failures": failures_of("fold", range(len(reports)), reports),
        "worst_tasks": [],
        "by_class": None,
        "by_label": None,
        "by_unit": {},
        "pooled": {},
        "shots": [],
        "calibration": None,
        "coverage": None,
        "folds": [
            {"fold": fold, "seconds": report["timing"].get("seconds"), "kept": kept_in(report)}
            | {key: report.get(key) for key in ("test", "best_round", "outcome")}
            for fold, report in enumerate(reports)
        ],
        "protocol": {key: value for key, value in first["protocol"].items() if key != "same_units_in_all_tasks"}
        | ({"learner": {"kind": "auto"}, "model": None} if chosen else {})
        | describe_units(learner.units if learner is not None else None)
        | {
            "folds": len(reports),
            "episodes_sha256": hashlib.sha256(" ".join(learner.episodes if learner else ()).encode()).hexdigest(),
            "num_test_tasks": 0 if learner is None else len(learner.episodes),
            "selection": "one checkpoint for each fold, selected on its validation tasks; each class or group is "
            "tested once, by a learner that was neither trained nor selected on it",
        },
        "environment": environment(),
        "timing": {"seconds": sum(report["timing"].get("seconds") or 0.0 for report in reports)},
    }
