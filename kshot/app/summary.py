"""The end of a run or an evaluation as a table on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kshot.evaluation.report.report import cost_lines, rejection_lines
from kshot.evaluation.report.verdict import difference_to, failed, over, read, verdict, written


def print_summary(report: dict[str, Any], out: Path | None) -> None:
    """Print the test figure beside the baselines, the verdict, the protocol, and where the report lies."""
    console = Console()
    metric, split = report["metric"], report.get("split") or "test"
    if report["test"] is None:
        console.print("No round could be evaluated, so there is no test figure.")
    else:
        paired = report.get("paired") or {}
        table = Table("", f"{split} {metric}", "over", "learner less it, paired", box=None, pad_edge=False)
        protocol = report["protocol"]
        rows = {protocol["learner"]["kind"]: report["test"], **report["baselines"]}
        for number, (name, figures) in enumerate(rows.items()):
            style = "bold" if number == 0 else "dim"
            figure = written(read(figures, metric))
            table.add_row(
                name.replace("_", " "), figure, over(figures, metric), difference_to(paired, name), style=style
            )
        console.print(table)
        others = [
            f"{name} {written(read(report['test'], name))}" for name in report["test"] if name not in (metric, "loss")
        ]
        calibration = report.get("calibration")
        if calibration:
            others.append(f"calibration error {calibration['error']:.3f}")
        if others:
            console.print(", ".join(others), highlight=False)
        if report["baselines"]:
            said = verdict(
                report["test"], report["baselines"], metric, report["higher_is_better"], paired, failed(report)
            )
            console.print(said, highlight=False)
        for name, value in rejection_lines(report.get("rejection") or {}):
            console.print(f"{name}: {value}", highlight=False)
        for name, value in cost_lines(report.get("cost") or {}):
            console.print(f"[dim]{name}: {value}[/]", highlight=False)
        kind = "inductive" if protocol["inductive"] else "transductive"
        console.print(f"{kind}, {split} tasks, episodes {protocol['episodes_sha256'][:16]}…", highlight=False)
        _print_audits(report.get("audits") or [], console)
    if out is not None:
        console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def _print_audits(audits: list[dict[str, Any]], console: Console) -> None:
    """What the figures were audited for; what failed is told in full."""
    results = [audit["result"] for audit in audits]
    names = ", ".join(audit["name"] for audit in audits if audit["result"] == "PASSED")
    count = f"{results.count('PASSED')} passed ({names}), {results.count('NOT_APPLICABLE')} not applicable"
    console.print(f"[dim]audits: {count}[/]", highlight=False)
    for audit in audits:
        if audit["result"] == "FAILED":
            failed_ = f"FAILED {audit['name']}: {audit['asks']} {audit['found']} Passes up to {audit['tolerance']:.3g}."
            console.print(failed_, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if "FAILED" in results:
        console.print("The learner's figures are not to be trusted.", style="bold red")
