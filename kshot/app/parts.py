"""Runs of several parts, such as seeds or folds: each in a folder of its own, and one report on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kshot.app.folder import RunFolder
from kshot.app.run import run
from kshot.app.screen import Screen
from kshot.app.spec import Spec
from kshot.evaluation.compare import read_report
from kshot.evaluation.report import charts
from kshot.evaluation.report.formatting import learner_name
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.report.verdict import best_baseline
from kshot.files import is_empty

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_parts(
    out: Path, parts: Mapping[str, tuple[str, Spec]], *, resume: bool, console: Console | None
) -> list[dict[str, Any]]:
    """Execute each part, folder name -> (title, run file), in its folder in `out`, and return their reports.

    The caller holds `out` (`owned`) until it has written the common report, so that no other process writes one. With
    `resume`, finished parts are not repeated. Raises ValueError as `run`, and if `out` is not empty otherwise.
    """
    console = console or Screen()
    if not is_empty(out) and not resume:
        raise ValueError(f"{out} already exists and is not empty: choose another --out, or resume it by --resume")
    for name, (title, spec) in parts.items():
        folder = RunFolder(out / name)
        if not folder.has_finished(spec):
            console.rule(title, align="left", style="dim")
            run(spec, folder.path, resume=folder.path.exists(), console=console)
    return [read_report(out / name) for name in parts]


def write_common_report(
    out: Path, report: Mapping[str, Any], figures: Mapping[str, Figure] | None = None
) -> dict[str, Any]:
    """Write the report on all parts, with the chart of the baselines and others, and return it as it is written."""
    plain: dict[str, Any] = to_json(report)
    metric, baselines, higher = plain["metric"], plain["baselines"], plain["higher_is_better"]
    figures = dict(figures or {})
    if plain["test"] and best_baseline(baselines, metric, higher):
        learner = learner_name(plain["protocol"].get("learner"))
        figures["baselines"] = charts.baselines_chart(
            plain["test"], baselines, metric, higher_is_better=higher, learner=learner
        )
    write_report(out, plain, [], figures)
    return plain


def audits_of(part: str, numbers: Iterable[int], reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The audits of the first of several parts (`part` is "seed" or "fold"), replaced by those that another failed."""
    audits = {audit["name"]: audit for audit in reports[0].get("audits") or []}
    for number, report in reversed(list(zip(numbers, reports))):
        failed = [audit for audit in report.get("audits") or [] if audit["result"] == "FAILED"]
        audits |= {
            audit["name"]: audit | {"finding": f"{part.capitalize()} {number}: {audit['finding']}"} for audit in failed
        }
    return list(audits.values())


def failures_of(part: str, numbers: Iterable[int], reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What failed after the training of each of several parts (`part` is "seed" or "fold")."""
    return [
        {"what": f"{part} {number}: {each['what']}", "error": each["error"]}
        for number, report in zip(numbers, reports)
        for each in report.get("failures") or []
    ]
