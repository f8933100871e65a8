"""`kshot data check`: what is wrong with the tasks of a run file, in the terminal, as JSON, and as a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kshot.app.build import build_source
from kshot.app.spec import Spec
from kshot.checking.check import Checked, Sizes, check
from kshot.checking.duplicates import content_hashes
from kshot.evaluation.per_task import write
from kshot.evaluation.report.report import picture, render, to_json
from kshot.evaluation.report.style import BLUE, MUTED, ORANGE, canvas, quiet
from kshot.evaluation.report.task_pictures import Example, classification_examples
from kshot.sources.corpus import Corpus
from kshot.sources.series import SeriesTasks
from kshot.sources.table import TablePreprocessor
from kshot.sources.text import TextTasks
from kshot.tasks.mixture import Mixture
from kshot.tasks.pool import plural
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Batch, Split, Task, tree_leaves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
TONES = {"ok": "good", "note": "note", "warning": "fair", "error": "bad"}
SENTENCES = {
    "ok": "Nothing was found that stands in the way of a run.",
    "note": "Nothing stands in the way of a run; the notes are worth a look.",
    "warning": "A run would work, but read the warnings before you trust its figures.",
    "error": "A run would fail, or its figures would be worthless: mend the errors first.",
}
BARS = "▁▂▃▄▅▆▇█"
DRAWN, LINES, CELLS = 3, 6, 8
"""Tasks drawn on the page, examples of support and of query shown of each, and numbers of an example."""


def check_run_file(
    spec: Spec, *, examples: int, tasks: int, json_file: Path | None, html_file: Path | None, console: Console
) -> Checked:
    """Check the tasks of a run file, print what was found, and write the files that were asked for.

    Raises:
        ValueError: a source that cannot be opened, or a file to write that the run file reads.
    """
    read = {
        Path(leaf).expanduser().resolve()
        for leaf in tree_leaves(spec.source.model_dump())
        if isinstance(leaf, (str, Path))
    }
    for file in (json_file, html_file):
        if file and file.resolve() in read:
            raise ValueError(f"{file} is data that the run file names, and is never written over; choose another file")
    source = build_source(spec)
    notes = Console(stderr=True)
    columns = TextColumn("decoding images"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bars:
        bar = bars.add_task("", total=None, visible=False)
        found = check(
            source,
            examples=examples,
            tasks=tasks,
            progress=lambda done, total: bars.update(bar, completed=done, total=total, visible=True),
        )
    _print(spec.name, found, console)
    if json_file:
        write(json_file, json.dumps(report(spec, source, found), indent=2, ensure_ascii=False) + "\n")
        console.print(f"JSON: {json_file}", highlight=False, markup=False, soft_wrap=True)
    if html_file:
        write(html_file, page(spec, source, found))
        console.print(f"page: {html_file}", highlight=False, markup=False, soft_wrap=True)
    return found


def report(spec: Spec, source: TaskSource, found: Checked) -> dict[str, Any]:
    """What was found as JSON knows it."""
    sizes = [
        {
            "source": own.source or None,
            "split": own.split,
            "kind": own.kind,
            "count": len(own.counts) or None,
            "tasks": own.tasks,
            "examples": sum(own.counts) if own.counts else None,
            **(
                {"smallest": min(own.counts), "median": statistics.median(own.counts), "largest": max(own.counts)}
                | {"histogram": _histogram(own.counts)}
                if own.counts
                else {}
            ),
        }
        for own in found.sizes
    ]
    about = {"kshot": version("kshot"), "name": spec.name, "worst": found.worst, "looked_at": found.looked_at}
    findings = [finding._asdict() for finding in found.findings]
    plain: dict[str, Any] = to_json(about | {"findings": findings, "splits": sizes, "source": source.describe()})
    return plain


def page(spec: Spec, source: TaskSource, found: Checked) -> str:
    """What was found as one page, with a few tasks drawn."""
    while isinstance(source, Mixture):  # one of its sources is drawn
        source = source.sources[source.source_of("test", 0)]
    drawn = _drawn(source)
    figures = []
    if any(own.counts for own in found.sizes):
        caption = f"How many {plural(found.sizes[0].kind)} have how many examples."
        figures = [picture("sizes", _histograms(found.sizes))._replace(caption=caption)]
    figure, caption = _pictured(source, drawn)
    return render(
        Path(__file__).parent / "check.html.j2",
        {
            "name": spec.name,
            "version": version("kshot"),
            "tone": TONES[found.worst],
            "worst": found.worst,
            "sentence": SENTENCES[found.worst],
            "looked_at": found.looked_at,
            "findings": [finding._asdict() | {"tone": TONES[finding.severity]} for finding in found.findings],
            "header": _HEADER,
            "rows": [_row(own) for own in found.sizes],
            "figures": figures,
            "tasks": picture("tasks", figure)._replace(caption=caption) if figure else None,
            "listed": [] if figure else [_listed(source, task) for task in drawn],
            "split": drawn[0][0] if drawn else "",
        },
    )


_HEADER = ("split", "classes or groups", "tasks", "examples", "smallest", "median", "largest")


def _row(own: Sizes) -> list[str]:
    """A line of the table of sizes."""
    name = f"{own.source}, {own.split}" if own.source else own.split
    tasks = "without end" if own.tasks is None else f"{own.tasks:,}"
    if not own.counts:
        return [name, "", tasks, "", "", "", ""]
    sizes = (sum(own.counts), min(own.counts), statistics.median(own.counts), max(own.counts))
    many = f"{len(own.counts):,} {plural(own.kind) if len(own.counts) != 1 else own.kind}"
    return [
        name,
        many,
        "any number" if own.tasks is None else tasks,
        *(f"{size:,.4g}" if size % 1 else f"{int(size):,}" for size in sizes),
    ]


def _print(name: str, found: Checked, console: Console) -> None:
    console.print(f"[bold]{escape(name)}[/]", highlight=False)
    table = Table(*_HEADER, "sizes", box=None, pad_edge=False, header_style="dim")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for own in found.sizes:
        counts = [bar["count"] for bar in _histogram(own.counts)] if own.counts else []
        bars = "".join(BARS[-(-7 * count // max(counts))] if count else " " for count in counts)
        table.add_row(*map(escape, _row(own)), bars)
    console.print(table)
    console.print()
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for finding in found.findings:
        colour = COLOURS[finding.severity]
        lines.add_row(f"[{colour}]{finding.severity}[/]", escape(finding.check), escape(finding.sentence))
    console.print(lines, highlight=False)
    console.print()
    console.print(f"[dim]{escape(found.looked_at)}[/] {SENTENCES[found.worst]}", highlight=False)


def _histogram(counts: Sequence[int]) -> list[dict[str, int]]:
    """Up to 10 bars of whole sizes: from, to (inclusive), and how many are of these sizes."""
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // 10)
    places = np.bincount((np.array(counts) - low) // width)
    return [
        {"from": low + place * width, "to": min(low + (place + 1) * width - 1, high), "count": count}
        for place, count in enumerate(places.tolist())
    ]


def _histograms(sizes: Sequence[Sizes]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    sizes = [own for own in sizes if own.counts]
    across = min(3, len(sizes))
    down = -(-len(sizes) // across)
    figure = canvas(2.1 * down)
    for place, own in enumerate(sizes):
        axes = figure.add_subplot(down, across, place + 1)
        quiet(axes, f"{own.source}, {own.split}" if own.source else own.split)
        bars = _histogram(own.counts)
        left = [bar["from"] - 0.5 for bar in bars]
        width = [bar["to"] - bar["from"] + 1 for bar in bars]
        axes.bar(left, [bar["count"] for bar in bars], width, align="edge", color=BLUE, edgecolor="white")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if len(bars) == 1:
            axes.set_xlim(left[0] - 1, left[0] + 2)
        axes.set_xlabel("examples", fontsize=9, color=MUTED)
        if place % across == 0:
            axes.set_ylabel(plural(own.kind), fontsize=9, color=MUTED)
    return figure


def _drawn(source: TaskSource) -> list[tuple[Split, Task]]:
    """The first tasks that can be drawn, of test where it has any."""
    for split in reversed(SPLITS):
        tasks: list[tuple[Split, Task]] = []
        for index in range(20):
            try:
                tasks.append((split, source.task(split, index)))
            except ValueError:  # told among the findings
                continue
            if len(tasks) == DRAWN:
                break
        if tasks:
            return tasks
    return []


def _pictured(source: TaskSource, drawn: Sequence[tuple[Split, Task]]) -> tuple[Figure | None, str]:
    """Tasks as a figure, where they are images, series or curves; and what stands under it."""
    tasks = [task for _, task in drawn]
    inputs = tasks[0].support.inputs if tasks else None
    if not isinstance(inputs, torch.Tensor):
        return None, ""
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3) and source.objective.task_specific_classes:
        return (
            classification_examples([Example(task, None) for task in tasks]),
            "A column is a class: above what a learner is shown, below what it is asked.",
        )
    if isinstance(source, SeriesTasks):
        return (
            _curves(tasks, windows=True),
            "Each line is a window: pale what comes before, strong what is to be forecast.",
        )
    if inputs.ndim == 2 and inputs.shape[1] == 1 and tasks[0].support.targets.shape[1:] == (1,):
        return _curves(tasks, windows=False), "Each point is an example: its input across, its target up."
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
            for row, (past, future) in enumerate(zip(x[:LINES, :, 0], y[:LINES])):
                axes.plot(range(-len(past) + 1, 1), past, color=colour, alpha=0.3, linewidth=1)
                joined = torch.cat([past[-1:], future])
                axes.plot(range(len(joined)), joined, color=colour, linewidth=1.6, label=None if row else name)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure


def _listed(source: TaskSource, drawn: tuple[Split, Task]) -> dict[str, Any]:
    """A task as a table of its first examples."""
    split, task = drawn
    texts = _texts(source, split) if isinstance(source, TextTasks) else {}
    header, rows = ["set", "target"], []
    preprocessor = source.preprocessor
    names = preprocessor.columns.features[:CELLS] if isinstance(preprocessor, TablePreprocessor) else ["input"]
    for part, batch in zip(Task._fields, task):
        kept = (batch.weight > 0).nonzero()[:LINES, 0].tolist()
        rows += [
            [part, _target(source, preprocessor, batch, row), *_input(source, preprocessor, batch, row, texts)]
            for row in kept
        ]
    width = max((len(row) for row in rows), default=2)
    header += names if len(names) == width - 2 else ["input"]
    return {"header": header, "rows": rows}


def _target(source: TaskSource, preprocessor: Preprocessor | None, batch: Batch, row: int) -> str:
    target = batch.targets[row]
    if isinstance(source, Corpus):
        return source.vocabulary.decode(target[target >= 0].numpy())
    if source.objective.task_specific_classes:
        return f"class {int(target.argmax()) + 1}"
    if isinstance(preprocessor, TablePreprocessor) and preprocessor.classes:
        return preprocessor.classes[int(target.argmax())]
    return ", ".join(f"{value:.3g}" for value in target.flatten()[:CELLS].tolist())


def _texts(source: TextTasks, split: Split) -> dict[bytes, str]:
    """The text behind the content of each example of a split."""
    rows = np.concatenate(list(source.classes(split).values()))
    chunks = np.array_split(rows, -(-len(rows) // 512))
    keys = [key for chunk in chunks for key in content_hashes(source.examples.take(chunk))]
    return dict(zip(keys, (source.texts[row] for row in rows.tolist())))


def _input(
    source: TaskSource, preprocessor: Preprocessor | None, batch: Batch, row: int, texts: Mapping[bytes, str]
) -> list[str]:
    if isinstance(source, Corpus):
        own = batch.inputs[row]
        return [source.vocabulary.decode(own[own > 0].numpy())]
    leaves = [leaf[row].flatten() for leaf in tree_leaves(batch.inputs)]
    numbers = torch.cat([leaf.double() for leaf in leaves])[:CELLS].tolist()
    if isinstance(preprocessor, TablePreprocessor):
        return [f"{value:.3g}" for value in numbers]
    if texts:
        return [texts[content_hashes(batch.inputs[row : row + 1])[0]]]
    more = ", …" if sum(map(len, leaves)) > CELLS else ""
    return [", ".join(f"{value:.3g}" for value in numbers) + more]
