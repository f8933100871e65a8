"""`evaluate: {folds: 5}`: a run for each fold of the classes or groups, so that each is tested once, for small data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from kshot.app.environment import environment
from kshot.app.folder import RunFolder
from kshot.app.parts import audits_of, run_parts, write_common_report
from kshot.app.schema import Part
from kshot.app.spec import Spec
from kshot.evaluation.compare import differences
from kshot.evaluation.intervals import BOUNDS, Interval, interval
from kshot.evaluation.per_task import Scores, read_tasks, write_tasks
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
    folds = range(spec.evaluate.folds or 0)
    parts = {f"fold-{fold}": (f"fold {fold + 1} of {len(folds)}", spec_of_fold(spec, fold)) for fold in folds}
    with owned(out):
        reports = run_parts(out, parts, resume=resume, console=console)
        complete = all(report.get("test") for report in reports)
        tables = [read_tasks(RunFolder(out / f"fold-{fold}").tasks) for fold in folds] if complete else []
        learner = _joined([scores for scores, _ in tables]) if complete else None
        names = [name for name in tables[0][1] if all(name in table for _, table in tables)] if complete else []
        others = {name: _joined([table[name] for _, table in tables]) for name in names}
        report = _report(spec, out, reports, learner, others)
        if learner is not None:
            write_tasks(out / "tasks.csv", learner, others, report["metric"])
        return write_common_report(out, spec, report)


def _joined(folds: Sequence[Scores]) -> Scores:
    """The figures of all folds as those of one test; units of different folds are different."""
    per_task = {name: [x for each in folds for x in each.per_task[name]] for name in folds[0].per_task}
    units = joined([each.units for each in folds if each.units is not None])
    return Scores([episode for each in folds for episode in each.episodes], per_task, units)


def _figures(scores: Scores) -> dict[str, Interval]:
    return {name: interval(values, scores.units, bounds=BOUNDS.get(name)) for name, values in scores.per_task.items()}


def _report(
    spec: Spec, out: Path, reports: list[dict[str, Any]], learner: Scores | None, others: dict[str, Scores]
) -> dict[str, Any]:
    """The report of all folds: like that of one, over the test tasks of all."""
    first, metric = reports[0], reports[0]["metric"]
    outcomes = [report["outcome"] for report in reports]
    num_met = outcomes.count("TARGET_MET")
    met = num_met == len(reports)
    paired = differences(learner, others, metric) if learner is not None else {}
    return first | {
        "kshot": version("kshot"),
        "command": f"kshot run {out / 'spec.yaml'}",
        "outcome": "TARGET_MET" if met else next(outcome for outcome in outcomes if outcome != "TARGET_MET"),
        "sentence": f"The target is met on the validation tasks of {num_met} of {len(reports)} folds.",
        "reason": "" if learner is not None else "a fold gave no usable round, so there is no common figure",
        "rounds": [],
        "best_round": None,
        "val": None,
        "test": None if learner is None else _figures(learner),
        "baselines": {name: _figures(scores) for name, scores in others.items()},
        "paired": paired,
        "audits": audits_of("fold", range(len(reports)), reports),
        "trusted": all(report["trusted"] for report in reports) if learner is not None else None,
        "failures": [
            {"what": f"fold {fold}: {each['what']}", "error": each["error"]}
            for fold, report in enumerate(reports)
            for each in report.get("failures") or []
        ],
        "worst_tasks": [],
        "by_class": None,
        "by_label": None,
        "by_unit": {},
        "pooled": {},
        "shots": [],
        "calibration": None,
        "coverage": None,
        "folds": [
            {"fold": fold, "seconds": report["timing"].get("seconds")}
            | {key: report.get(key) for key in ("test", "best_round", "outcome")}
            for fold, report in enumerate(reports)
        ],
        "protocol": {key: value for key, value in first["protocol"].items() if key != "same_units_in_all_tasks"}
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
