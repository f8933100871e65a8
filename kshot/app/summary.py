"""The end of a run as a table on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kshot.evaluation.verdict import failed, verdict


def print_summary(report: dict[str, Any], out: Path) -> None:
    """Print the test figure beside the baselines, the verdict, and where the report lies."""
    console = Console()
    metric = report["metric"]
    if report["test"] is None:
        console.print("No round could be evaluated, so there is no test figure.")
    else:
        table = Table("", f"test {metric}", "± 95 %", "tasks", box=None, pad_edge=False)
        rows = {report["protocol"]["learner"]["kind"]: report["test"], **report["baselines"]}
        for number, (name, figures) in enumerate(rows.items()):
            found = figures[metric]
            style = "bold" if number == 0 else "dim"
            label = name.replace("_", " ")
            table.add_row(label, f"{found['mean']:.4f}", f"{found['ci95']:.4f}", str(found["tasks"]), style=style)
        console.print(table)
        if report["baselines"]:
            said = verdict(report["test"], report["baselines"], metric, report["higher_is_better"], failed(report))
            console.print(said, highlight=False)
        print_audits(report["audits"])
    console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def print_audits(audits: list[dict[str, Any]]) -> None:
    """Print what an evaluation was audited for; what failed is told in full."""
    results = [audit["result"] for audit in audits]
    names = ", ".join(audit["name"] for audit in audits if audit["result"] == "PASSED")
    print(f"audits: {results.count('PASSED')} passed ({names}), {results.count('NOT_APPLICABLE')} not applicable")
    for audit in audits:
        if audit["result"] == "FAILED":
            print(f"FAILED {audit['name']}: {audit['asks']} {audit['found']} Passes up to {audit['tolerance']:.3g}.")
    if "FAILED" in results:
        print("The figures above are not to be trusted.")
