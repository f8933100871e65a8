"""Leaderboards as tables of finished strings, as pages, and as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kshot.evaluation.compare import Board, Line
from kshot.evaluation.intervals import Interval
from kshot.evaluation.report.charts import board_chart
from kshot.evaluation.report.formatting import better, format_count, format_difference, format_figure, format_sample
from kshot.evaluation.report.parts import Column, Row, Section, Table
from kshot.evaluation.report.report import picture, render_sections
from kshot.files import csv_text

SEPARATE = "Figures on different episodes are not comparable and are never ranked together."

COSTS = ("num_parameters", "state_size", "state_bytes", "adapt_flops", "predict_flops")


def heading(board: Board) -> str:
    return f"{board.metric} ({better(board.higher_is_better)}) on {board.num_tasks} tasks: {board.source}"


def note(board: Board) -> str:
    """How to read the ranking; empty for a single entry."""
    if len(board.lines) == 1:
        return ""
    ties = [line.entry.name for line in board.lines if line.tied]
    sentences = [
        f"Not significantly worse than the best: {', '.join(ties)}."
        if ties
        else "The best is significantly better than all others.",
        "Differences are paired over the same tasks, with 95 % intervals; one is significant if its p value, corrected "
        "for all pairs by Holm, is below 0.05.",
    ]
    if any(line.entry.figure.num_seeds == 1 for line in board.lines):
        sentences.append("For runs of one seed, another training may change the order.")
    if len({line.entry.inductive for line in board.lines}) > 1:
        sentences.append(
            "Transductive figures use the other queries of a task and are not comparable with inductive ones."
        )
    return " ".join(sentences)


def board_table(board: Board) -> Table:
    """A row for each entry; the best is emphasised, and those significantly worse are muted."""
    titles = ("run", "learner", "figure", "sample", "difference to best (paired)", "protocol", "time to adapt")
    columns = [*map(Column, titles), Column("parameters", "n"), Column("FLOPs to adapt", "n")]
    return Table(columns, [_row(line) for line in board.lines], "board")


def _row(line: Line) -> Row:
    entry, figure = line.entry, line.entry.figure
    several = figure.num_seeds > 1
    sample = figure._asdict() if several else {"mean": figure.mean, "num_tasks": figure.num_tasks}
    difference = "best"
    if line.behind is not None:
        behind = Interval(*line.behind[:3])
        difference = format_difference(behind, line.p) if math.isfinite(behind.ci95) else "too few tasks to tell"
    adapt_ms, flops = (entry.cost.get("adapt_ms") or {}).get("median"), entry.cost.get("adapt_flops")
    cells = [
        entry.name,
        entry.learner,
        format_figure(Interval(figure.mean, figure.ci95 if several else figure.ci95_tasks, figure.num_tasks)),
        format_sample({entry.metric: sample}, entry.metric),
        difference,
        ("inductive" if entry.inductive else "transductive") + (", not to be trusted" * (not entry.trusted)),
        "–" if adapt_ms is None else f"{adapt_ms:.3g} ms",
        f"{entry.cost['num_parameters']:,}" if "num_parameters" in entry.cost else "–",
        "–" if flops is None else format_count(flops),
    ]
    return Row(cells, "main" if line.behind is None else "" if line.tied else "muted")


def boards_page(boards: Sequence[Board]) -> str:
    """The boards as a self-contained page."""
    sections = [
        Section(
            heading(board),
            [f"Episodes {board.episodes_sha256}"],
            [picture("board", board_chart(board))] if len(board.lines) > 1 else [],
            board_table(board),
            note=note(board),
        )
        for board in boards
    ]
    text = [f"{len(boards)} sets of episodes. {SEPARATE}"] if len(boards) > 1 else []
    return render_sections("compare", "Runs on the same episodes", text, sections)


def boards_csv(boards: Sequence[Board]) -> str:
    """The boards as CSV with a row for each run, with unrounded numbers."""
    rows = [_record(board, rank, line) for board in boards for rank, line in enumerate(board.lines, 1)]
    known = ([None if value != value else value for value in row.values()] for row in rows)
    return csv_text([list(rows[0]), *known])


def _record(board: Board, rank: int, line: Line) -> dict[str, Any]:
    entry, figure, difference = line.entry, line.entry.figure, line.behind
    times = entry.cost.get("adapt_ms") or {}
    return {
        "run": entry.name,
        "folder": entry.folder,
        "learner": entry.learner,
        "source": board.source,
        "metric": board.metric,
        "episodes_sha256": board.episodes_sha256,
        "rank": rank,
        "mean": figure.mean,
        "ci95_seeds": figure.ci95,
        "num_seeds": figure.num_seeds,
        "ci95_tasks": figure.ci95_tasks,
        "num_tasks": figure.num_tasks,
        "inductive": entry.inductive,
        "difference_to_best": difference and difference.mean,
        "difference_to_best_ci95": difference and difference.ci95,
        "p_holm": line.p,
        "adapt_ms": times.get("median"),
        "adapt_ms_p95": times.get("p95"),
        **{name: entry.cost.get(name) for name in COSTS},
    }
