"""Reports and leaderboards on the terminal; `kshot compare` also writes leaderboards as CSV and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from kshot.app.screen import Screen
from kshot.evaluation.compare import compare
from kshot.evaluation.report.conclusion import conclude
from kshot.evaluation.report.formatting import format_figure, format_value, read_figure
from kshot.evaluation.report.leaderboard import SEPARATE, board_table, boards_csv, boards_page, heading, note
from kshot.evaluation.report.parts import Table
from kshot.evaluation.report.sections import cost_pairs, rejection_pairs, result_table, tried_sentence
from kshot.evaluation.report.verdict import inference_of, trust_of, verdict_of
from kshot.files import check_writable, write_text

TONES = {"good": "green", "fair": "yellow", "bad": "bold red"}
STYLES = {"main": "bold", "": "", "muted": "dim"}


def print_table(console: Console, table: Table, columns: Sequence[int]) -> None:
    """Print some columns of a table."""
    printed = RichTable(box=None, pad_edge=False, header_style="dim")
    for index in columns:
        printed.add_column(table.columns[index].title)
    for row in table.rows:
        printed.add_row(*(escape(str(row.cells[index])) for index in columns), style=STYLES[row.emphasis])
    console.print(printed)


def pooled_lines(report: dict[str, Any]) -> list[str]:
    """rmse and R² of the learner over all queries, a line for each target."""
    labels = {"rmse": "rmse", "r2": "R²", "r2_within": "R² within units"}
    return [
        " ".join(
            filter(
                None,
                [
                    each["target"],
                    ", ".join(f"{labels[k]} {format_figure(read_figure(each, k))}" for k in labels if each.get(k)),
                ],
            )
        )
        for each in (report.get("pooled") or {}).get("learner") or []
    ]


def print_summary(report: dict[str, Any], out: Path | None, console: Console | None = None) -> None:
    """Print the test figure with the baselines, the verdict, the protocol, and where the report is."""
    console = console or Screen()
    metric, test = report["metric"], report["test"]
    if test is None:
        console.print("No round could be evaluated, so there is no test figure.")
    else:
        print_table(console, result_table(report), range(4))
        others = [f"{name} {format_figure(read_figure(test, name))}" for name in test if name not in (metric, "loss")]
        if report.get("calibration"):
            others.append(f"calibration error {format_value(report['calibration']['error'])}")
        lines = [", ".join(others)] if others else []
        lines += [f"over all queries: {line}" for line in pooled_lines(report)]
        if report["baselines"]:
            lines.append(verdict_of(report))
        lines += [sentence] if (sentence := tried_sentence(report)) else []
        lines += [f"out of scope, {label}: {value}" for label, value in rejection_pairs(report)]
        for line in lines:
            console.print(line, highlight=False, markup=False)
        for label, value in cost_pairs(report):
            console.print(f"{label}: {value}", style="dim", highlight=False)
        protocol, split = report["protocol"], report.get("split") or "test"
        kind = inference_of(report)
        if members := protocol.get("ensemble"):
            kind += f", ensemble of {members}"
        console.print(f"{kind}, {split} tasks, episodes {protocol['episodes_sha256'][:16]}…", highlight=False)
        _print_audits(report, console)
    conclusion = conclude(report)
    if conclusion.sentence != (report.get("sentence") or ""):  # which the run has printed
        console.print(conclusion.sentence, style=TONES[conclusion.tone], highlight=False, markup=False)
    for each in report.get("failures") or []:
        text = f"FAILED {each['what']}: {each['error']}"
        console.print(text, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"report: {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def _print_audits(report: dict[str, Any], console: Console) -> None:
    """Print how many audits passed and were idle, those that failed in full, and errors in the data."""
    audits = report.get("audits") or []
    for finding in (report.get("data_check") or {}).get("findings") or []:
        style = "bold red" if finding["severity"] == "error" else "yellow"
        text = f"{finding['severity'].upper()} in the data, {finding['check']}: {finding['sentence']}"
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
    console.print(trust_of(report).sentence, style="dim", highlight=False, markup=False)
    for audit in audits:
        if audit["result"] == "FAILED":
            text = f"FAILED {audit['name']}: {audit['question']} {audit['finding']}"
            text += f" Passes up to {audit['tolerance']:.3g}."
            console.print(text, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if audits and not trust_of(report).trusted:
        console.print("The learner's figures are not to be trusted.", style="bold red")


def compare_runs(folders: Sequence[Path], csv_file: Path | None, html_file: Path | None, console: Console) -> None:
    """Rank run folders, print the leaderboards, and write the requested files, which must not be in these folders."""
    compared = {folder.resolve() for folder in folders}
    for file in (csv_file, html_file):
        if file and compared & {file.resolve(), *file.resolve().parents}:
            raise ValueError(f"{file} is inside a folder that is compared; choose another place")
        if file:
            check_writable(file)
    boards = compare(folders)
    for board in boards:
        console.print(heading(board), style="bold", highlight=False, markup=False)
        console.print(f"episodes {board.episodes_sha256[:16]}…", style="dim", highlight=False)
        print_table(console, board_table(board), (0, 2, 3, 4, 5, 6))
        if text := note(board):
            console.print(text, style="dim", highlight=False)
        console.print()
    if len(boards) > 1:
        console.print(f"{len(boards)} sets of episodes. {SEPARATE}")
    if csv_file:
        write_text(csv_file, boards_csv(boards))
    if html_file:
        write_text(html_file, boards_page(boards))
