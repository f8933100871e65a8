"""`kshot data check`: the findings on the tasks of a run file, in the terminal, as JSON, and as a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from kshot.app.build import build_source
from kshot.app.screen import Screen
from kshot.app.spec import Spec
from kshot.app.suitability import refuse_unsuited
from kshot.bounded import home_expanded
from kshot.checking.check import check
from kshot.checking.duplicates import content_hashes
from kshot.checking.findings import Checked, Finding, Sizes, parts_of
from kshot.evaluation.report.report import picture, render, to_json
from kshot.evaluation.report.style import BLUE, MUTED, ORANGE, canvas, quiet
from kshot.evaluation.report.task_pictures import Example, classification_examples
from kshot.files import check_writable, write_text
from kshot.tasks.pool import plural
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Split, Task, Tree, tree_leaves, tree_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
TONES = {"ok": "good", "note": "note", "warning": "fair", "error": "bad"}
SENTENCES = {
    "ok": "Nothing was found that would impede a run.",
    "note": "Nothing was found that would impede a run; see the notes.",
    "warning": "A run would work, but read the warnings before you trust its figures.",
    "error": "A run would fail, or its figures would be worthless: correct the errors first.",
}
BARS = "▁▂▃▄▅▆▇█"
HEADER = ("split", "classes or groups", "tasks", "examples", "smallest", "median", "largest")
SHOWN_TASKS, SHOWN_EXAMPLES, SHOWN_VALUES = 3, 6, 8
"""Number of tasks on the page, of examples of each set, and of values of an example."""


def check_run_file(
    spec: Spec, *, num_examples: int, num_tasks: int, json_file: Path | None, html_file: Path | None, console: Console
) -> Checked:
    """Check the tasks of a run file, print the findings, and write them to files if given.

    Raises:
        ValueError: a source that cannot be opened, or an output file that the run file reads.
    """
    read = set()
    for leaf in tree_leaves(spec.source.model_dump()):
        if isinstance(leaf, (str, Path)):
            with suppress(ValueError, RuntimeError):  # text that is no path, such as one with a null character
                read.add(home_expanded(leaf).resolve())
    for file in (json_file, html_file):
        if file and file.resolve() in read:
            raise ValueError(f"{file} is data that the run file names, and is never written over; choose another file")
        if file:
            check_writable(file)
    source = build_source(spec)
    stderr = Screen(stderr=True)
    columns = TextColumn("decoding images"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bars:
        bar = bars.add_task("", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total, visible=True)

        checked = check(source, num_examples=num_examples, num_tasks=num_tasks, progress=progress)
    if checked.worst != "error":  # else the tasks may be unusable
        try:
            refuse_unsuited(spec, source)
        except ValueError as error:
            checked = checked._replace(findings=[Finding("error", "learner", f"{error}."), *checked.findings])
    _print(spec.name, checked, console)
    for kind, file, rendered in (("JSON", json_file, report_text), ("page", html_file, page)):
        if file:
            write_text(file, rendered(spec, source, checked))
            console.print(f"{kind}: {file}", highlight=False, markup=False, soft_wrap=True)
    return checked


def report_text(spec: Spec, source: TaskSource, checked: Checked) -> str:
    return json.dumps(report(spec, source, checked), indent=2, ensure_ascii=False) + "\n"


def report(spec: Spec, source: TaskSource, checked: Checked) -> dict[str, Any]:
    """The result of a check as JSON."""
    about = {"kshot": version("kshot"), "name": spec.name, "worst": checked.worst, "looked_at": checked.looked_at}
    findings = [finding._asdict() for finding in checked.findings]
    splits = [_statistics(sizes) for sizes in checked.sizes]
    plain: dict[str, Any] = to_json(about | {"findings": findings, "splits": splits, "source": source.describe()})
    return plain


def _statistics(sizes: Sizes) -> dict[str, Any]:
    """The sizes of a split with summary statistics; the base of all three renderings."""
    counts = sizes.counts
    about = {"source": sizes.source or None, "split": sizes.split, "kind": sizes.kind, "count": len(counts) or None}
    about |= {"tasks": sizes.num_tasks, "examples": sum(counts) if counts else None}
    if not counts:
        return about
    extremes = {"smallest": min(counts), "median": statistics.median(counts), "largest": max(counts)}
    return about | extremes | {"histogram": _histogram(counts)}


def _title(sizes: Sizes) -> str:
    return f"{sizes.source}, {sizes.split}" if sizes.source else sizes.split


def _row(sizes: Sizes) -> list[str]:
    """The row of a split in the table of sizes, under `HEADER`."""
    about = _statistics(sizes)
    tasks = "unlimited" if sizes.num_tasks is None else f"{sizes.num_tasks:,}"
    if not sizes.counts:
        return [_title(sizes), "", tasks, "", "", "", ""]
    members = f"{about['count']:,} {plural(sizes.kind) if about['count'] != 1 else sizes.kind}"
    values = (about[name] for name in HEADER[3:])
    return [_title(sizes), members, tasks, *(f"{v:,.4g}" if v % 1 else f"{int(v):,}" for v in values)]


def _print(name: str, checked: Checked, console: Console) -> None:
    console.print(f"[bold]{escape(name)}[/]", highlight=False)
    table = Table(*HEADER, "sizes", box=None, pad_edge=False, header_style="dim")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for sizes in checked.sizes:
        counts = [bar["count"] for bar in _histogram(sizes.counts)] if sizes.counts else []
        bars = "".join(BARS[-(-7 * count // max(counts))] if count else " " for count in counts)
        table.add_row(*map(escape, _row(sizes)), bars)
    console.print(table)
    console.print()
    columns = Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold")
    lines = Table.grid(*columns, padding=(0, 2))
    for finding in checked.findings:
        colour = COLOURS[finding.severity]
        lines.add_row(f"[{colour}]{finding.severity}[/]", escape(finding.check), escape(finding.sentence))
    console.print(lines, highlight=False)
    console.print()
    console.print(f"[dim]{escape(checked.looked_at)}[/] {SENTENCES[checked.worst]}", highlight=False)


def page(spec: Spec, source: TaskSource, checked: Checked) -> str:
    """The result of a check as a page with a few tasks; with those of the first source of a mixture in test."""
    shown = next(part.source for part in parts_of(source) if "test" in part.splits)
    tasks, split = _first_tasks(shown)
    figures = []
    if any(sizes.counts for sizes in checked.sizes):
        caption = f"Number of {plural(checked.sizes[0].kind)} by number of examples."
        figures = [picture("sizes", _histograms(checked.sizes))._replace(caption=caption)]
    figure, caption = _figure(shown, tasks)
    worst, findings = checked.worst, [f._asdict() | {"tone": TONES[f.severity]} for f in checked.findings]
    values = {
        "name": spec.name, "version": version("kshot"), "tone": TONES[worst], "worst": worst,
        "sentence": SENTENCES[worst], "looked_at": checked.looked_at, "findings": findings, "header": HEADER,
        "rows": [_row(sizes) for sizes in checked.sizes], "figures": figures, "split": split,
        "tasks": picture("tasks", figure)._replace(caption=caption) if figure else None,
        "listed": [] if figure else [_table(shown, split, task) for task in tasks],
    }  # fmt: skip
    return render(Path(__file__).parent / "check.html.j2", values)


def _histogram(counts: Sequence[int]) -> list[dict[str, int]]:
    """Up to 10 bars of integer sizes: from, to (inclusive), and the number of members."""
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // 10)
    numbers = np.bincount((np.array(counts) - low) // width).tolist()
    starts = range(low, high + 1, width)
    return [{"from": s, "to": min(s + width - 1, high), "count": count} for s, count in zip(starts, numbers)]


def _histograms(sizes: Sequence[Sizes]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    sizes = [split for split in sizes if split.counts]
    across = min(3, len(sizes))
    down = -(-len(sizes) // across)
    figure = canvas(2.1 * down)
    for number, split in enumerate(sizes):
        axes = figure.add_subplot(down, across, number + 1)
        quiet(axes, _title(split))
        bars = _histogram(split.counts)
        left = [bar["from"] - 0.5 for bar in bars]
        width = [bar["to"] - bar["from"] + 1 for bar in bars]
        axes.bar(left, [bar["count"] for bar in bars], width, align="edge", color=BLUE, edgecolor="white")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if len(bars) == 1:
            axes.set_xlim(left[0] - 1, left[0] + 2)
        axes.set_xlabel("examples", fontsize=9, color=MUTED)
        if number % across == 0:
            axes.set_ylabel(plural(split.kind), fontsize=9, color=MUTED)
    return figure


def _first_tasks(source: TaskSource) -> tuple[list[Task], Split]:
    """The first tasks that can be drawn, of test if it has any, and their split."""
    for split in reversed(SPLITS):
        tasks: list[Task] = []
        for index in range(20):
            with suppress(ValueError):  # one of the findings
                tasks.append(source.task(split, index))
            if len(tasks) == SHOWN_TASKS:
                break
        if tasks:
            return tasks, split
    return [], "test"


def _figure(source: TaskSource, tasks: Sequence[Task]) -> tuple[Figure | None, str]:
    """A figure of tasks of images, series or curves, and its caption."""
    inputs = tasks[0].support.inputs if tasks else None
    if not isinstance(inputs, torch.Tensor):
        return None, ""
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3) and source.objective.task_specific_classes:
        figure = classification_examples([Example(task, None) for task in tasks])
        return figure, "A column is a class: the support set above, the query set below."
    if source.forecasts:
        return _curves(tasks, windows=True), "Each line is a window: its context pale, its horizon strong."
    if inputs.ndim == 2 and inputs.shape[1] == 1 and tasks[0].support.targets.shape[1:] == (1,):
        return _curves(tasks, windows=False), "Each point is an example: its target over its input."
    return None, ""


def _curves(tasks: Sequence[Task], *, windows: bool) -> Figure:
    figure = canvas(2.8)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for number, (axes, task) in enumerate(zip(panels, tasks), 1):
        quiet(axes, f"task {number}")
        for name, batch, colour in (("query", task.query, BLUE), ("support", task.support, ORANGE)):
            real = batch.weight > 0
            x, y = batch.inputs[real], batch.targets[real]
            if not windows:
                axes.plot(x[:, 0], y[:, 0], "o", color=colour, markersize=4, label=name)
                continue
            for row, (past, future) in enumerate(zip(x[:SHOWN_EXAMPLES, :, 0], y[:SHOWN_EXAMPLES])):
                axes.plot(range(-len(past) + 1, 1), past, color=colour, alpha=0.3, linewidth=1)
                joined = torch.cat([past[-1:], future])
                axes.plot(range(len(joined)), joined, color=colour, linewidth=1.6, label=None if row else name)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure


def _table(source: TaskSource, split: Split, task: Task) -> dict[str, Any]:
    """The first examples of a task as a table."""
    texts = _texts(source, split)
    columns = source.preprocessor.input_columns if source.preprocessor else None
    names = columns.features[:SHOWN_VALUES] if columns else ["input"]
    rows = [
        [part, _target(source, batch.targets[row]), *_input(source, batch.inputs, row, texts)]
        for part, batch in zip(Task._fields, task)
        for row in (batch.weight > 0).nonzero()[:SHOWN_EXAMPLES, 0].tolist()
    ]
    fits = bool(rows) and max(map(len, rows)) == len(names) + 2
    return {"header": ["set", "target", *(names if fits else ["input"])], "rows": rows}


def _target(source: TaskSource, target: torch.Tensor) -> str:
    shown = source.preprocessor.show_target(target) if source.preprocessor else None
    if shown is not None:
        return shown
    if source.objective.task_specific_classes:
        return f"class {int(target.argmax()) + 1}"
    return ", ".join(f"{value:.3g}" for value in target.flatten()[:SHOWN_VALUES].tolist())


def _texts(source: TaskSource, split: Split) -> dict[bytes, str]:
    """The texts of a split by the hash of their inputs."""
    if source.texts is None:
        return {}
    examples: Any = source
    rows = np.concatenate(list(source.members(split).values()))
    chunks = np.array_split(rows, -(-len(rows) // 512))
    keys = [key for chunk in chunks for key in content_hashes(examples.examples.take(chunk))]
    return {key: source.texts[row] for key, row in zip(keys, rows.tolist())}


def _input(source: TaskSource, inputs: Tree, row: int, texts: Mapping[bytes, str]) -> list[str]:
    if source.preprocessor is not None and not isinstance(inputs, dict):
        shown = source.preprocessor.show_input(inputs[row])
        if shown is not None:
            return [shown]
    if texts:
        return [texts[content_hashes(tree_map(lambda leaf: leaf[row : row + 1], inputs))[0]]]
    numbers = torch.cat([leaf[row].flatten().double() for leaf in tree_leaves(inputs)])
    values = [f"{value:.3g}" for value in numbers[:SHOWN_VALUES].tolist()]
    if source.preprocessor is not None and source.preprocessor.input_columns is not None:
        return values
    return [", ".join(values) + (", …" if len(numbers) > SHOWN_VALUES else "")]
