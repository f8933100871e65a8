"""`kshot compare`: leaderboards over run folders, on the terminal, as CSV, and as a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kshot.evaluation.compare import Board, Line, compare
from kshot.evaluation.intervals import Interval
from kshot.evaluation.per_task import write
from kshot.evaluation.report.charts import board_chart
from kshot.evaluation.report.report import picture, render, scaled
from kshot.evaluation.report.verdict import over, written

APART = "Figures on other episodes do not compare, and are never ranked together."


def compare_runs(folders: Sequence[Path], csv_file: Path | None, html_file: Path | None, console: Console) -> None:
    """Rank run folders, print the boards, and write the files that were asked for.

    Raises:
        ValueError: a folder without a finished run, or a file to write that lies in one of them.
    """
    inside = {folder.resolve() for folder in folders}
    for file in (csv_file, html_file):
        if file and inside & {file.resolve(), *file.resolve().parents}:
            raise ValueError(f"{file} lies in a folder that is compared, and nothing is written there")
    boards = compare(folders)
    for board in boards:
        _print(board, console)
    if len(boards) > 1:
        console.print(f"{len(boards)} sets of episodes. {APART}")
    if csv_file:
        write(csv_file, _csv(boards))
    if html_file:
        write(html_file, page(boards))


def heading(board: Board) -> str:
    """What a board ranks, and on which tasks."""
    better = "higher" if board.higher_is_better else "lower"
    return f"{board.metric} ({better} is better) on {board.num_tasks} tasks: {board.source}"


def behind(line: Line) -> str:
    """The difference to the best in words."""
    if line.behind is None:
        return "best"
    found = line.behind
    if not math.isfinite(found.ci95):
        return "too few tasks to tell"
    text = f"{'+' * (found.mean > 0)}{written(Interval(found.mean, found.ci95, found.num_tasks))}"
    return f"{text}, may be noise" if line.tied else text


def note(board: Board) -> str:
    """What may be said of the ranking."""
    if len(board.lines) == 1:
        return ""
    ties = [line.entry.name for line in board.lines if line.tied]
    said = f"Not shown to be worse than the best: {', '.join(ties)}." if ties else "The best is shown to be so."
    several = all(line.entry.figure.num_seeds > 1 for line in board.lines)
    seeds = "" if several else " Where there is one seed, another training may change the order."
    if len({line.entry.inductive for line in board.lines}) > 1:
        seeds += " Transductive figures come of seeing the other queries too, and do not compare with inductive ones."
    return (
        f"{said} Differences are paired over the same tasks, ± 95 %; a difference counts where its p value, by Holm's "
        f"correction for all pairs, is below 0.05.{seeds}"
    )


def _row(line: Line) -> dict[str, str]:
    """A line's cells, finished for a person."""
    entry, figure = line.entry, line.entry.figure
    several = figure.num_seeds > 1
    shown = Interval(figure.mean, figure.ci95 if several else figure.ci95_tasks, figure.num_tasks)
    kept: dict[str, Any] = {"mean": figure.mean, "num_tasks": figure.num_tasks}
    if several:
        kept |= {"num_seeds": figure.num_seeds, "ci95_tasks": figure.ci95_tasks}
    flops, times = entry.cost.get("adapt_flops"), entry.cost.get("adapt_ms") or {}
    return {
        "run": entry.name,
        "learner": entry.learner,
        "figure": written(shown),
        "over": over({entry.metric: kept}, entry.metric),
        "behind": behind(line),
        "mode": ("inductive" if entry.inductive else "transductive") + (", not to be trusted" * (not entry.trusted)),
        "adapt": f"{times['median']:.3g} ms" if times.get("median") is not None else "–",
        "parameters": f"{entry.cost['parameters']:,}" if "parameters" in entry.cost else "–",
        "operations": "–" if flops is None else scaled(flops),
    }


COLUMNS = {
    "run": "run",
    "learner": "learner",
    "figure": "figure",
    "over": "± over",
    "behind": "less the best, paired",
    "mode": "protocol",
    "adapt": "adapts in",
    "parameters": "parameters",
    "operations": "FLOPs to adapt",
}
"""Of the page; a terminal has room for fewer."""

ON_TERMINAL = ("run", "figure", "over", "behind", "mode", "adapt")


def _print(board: Board, console: Console) -> None:
    console.print(f"[bold]{heading(board)}[/]", highlight=False)
    console.print(f"episodes {board.episodes_sha256[:16]}…", style="dim", highlight=False)
    table = Table(*(COLUMNS[key] for key in ON_TERMINAL), box=None, pad_edge=False, header_style="dim")
    for number, line in enumerate(board.lines):
        row = _row(line) | {
            "over": f"{line.entry.figure.num_seeds} seeds" if line.entry.figure.num_seeds > 1 else "tasks"
        }
        style = "bold" if number == 0 else "" if line.tied else "dim"
        table.add_row(*(row[key] for key in ON_TERMINAL), style=style)
    console.print(table)
    if said := note(board):
        console.print(said, style="dim", highlight=False)
    console.print()


def _csv(boards: Sequence[Board]) -> str:
    """A row a run, all numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [
        "run",
        "folder",
        "learner",
        "tasks_of",
        "metric",
        "episodes_sha256",
        "rank",
        "mean",
        "ci95_seeds",
        "num_seeds",
    ]
    names += [
        "ci95_tasks",
        "num_tasks",
        "inductive",
        "less_best",
        "less_best_ci95",
        "p_holm",
        "adapt_ms",
        "adapt_ms_p95",
    ]
    costs = ["parameters", "state_numbers", "state_bytes", "adapt_flops", "predict_flops"]
    writer.writerow(names + costs)
    for board in boards:
        for rank, line in enumerate(board.lines, 1):
            entry, figure = line.entry, line.entry.figure
            times, gap = entry.cost.get("adapt_ms") or {}, line.behind
            cells = [entry.name, entry.folder, entry.learner, board.source, board.metric, board.episodes_sha256, rank]
            cells += [figure.mean, figure.ci95, figure.num_seeds, figure.ci95_tasks, figure.num_tasks, entry.inductive]
            cells += [gap and gap.mean, gap and gap.ci95, line.p, times.get("median"), times.get("p95")]
            cells += [entry.cost.get(name) for name in costs]
            writer.writerow("" if cell is None or cell != cell else cell for cell in cells)
    return text.getvalue()


def page(boards: Sequence[Board]) -> str:
    """The boards as one page that needs nothing but a browser."""
    shown = [
        {
            "heading": heading(board),
            "episodes": board.episodes_sha256,
            "note": note(board),
            "rows": [_row(line) | {"best": line.behind is None, "tied": line.tied} for line in board.lines],
            "figure": picture("board", board_chart(board)) if len(board.lines) > 1 else None,
        }
        for board in boards
    ]
    about = {
        "version": version("kshot"),
        "boards": shown,
        "columns": COLUMNS,
        "apart": APART if len(boards) > 1 else "",
    }
    return render(Path(__file__).parent / "compare.html.j2", about)
