"""Progress of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from kshot.deciding.decisions import Decision, Round
from kshot.deciding.loop import Observer
from kshot.training.fit import Progress as OuterProgress

LOG = logging.getLogger("kshot")
ACTIONS = {"Continue": "cyan", "Change": "yellow", "Rollback": "magenta", "Stop": "bold green"}


class Display(Observer):
    """Bars with rate, loss, figure of the validation metric and time left; steps are not shown without a terminal."""

    def __init__(self, console: Console, metric: str) -> None:
        self.console, self.metric = console, metric
        self.bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.notes = _Notes(self)
        self.bar: TaskID | None = None
        self.stage = self.validation = ""

    def __enter__(self) -> Display:
        self.bars.start()
        LOG.setLevel(logging.INFO)
        LOG.addHandler(self.notes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.bars.stop()
        LOG.removeHandler(self.notes)

    def say(self, text: str, style: str = "") -> None:
        """Print a line without markup."""
        self.console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def advance(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """Show that `done` of `total` steps of a stage are done."""
        if stage != self.stage or self.bar is None:
            if self.bar is not None:
                self.bars.remove_task(self.bar)
            self.stage, self.bar = stage, self.bars.add_task(stage, total=total, figures="")
        self.bars.update(self.bar, completed=done, total=total, figures=figures)

    def step(self, progress: OuterProgress, end: int, stage: str = "train") -> None:
        figures = f"{progress.rate:.1f} steps/s  loss {progress.loss:.3f}{self.validation}"
        self.advance(stage, progress.step, end, figures)

    def task(self, done: int, total: int) -> None:
        self.advance("validate", done, total, self.validation.strip())

    def decided(self, round: Round, decision: Decision) -> None:
        figure = round.val.get(self.metric)
        if figure is not None:
            self.validation = f"  val {self.metric} {figure.mean:.3f}"
        action = type(decision).__name__
        self.console.print(
            f"[dim]round {round.number:>2}[/]  step {round.step:>6}  [{ACTIONS[action]}]{action.lower():<8}[/]  "
            + escape(decision.reason),
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def fetching(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show the progress of downloads: a bar for each file on a terminal, a line for each elsewhere."""
    columns = BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bars = Progress(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int | None) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(escape(name), total=total)
            if not console.is_terminal:
                size = "" if total is None else f", {decimal(total)}"
                console.print(f"fetching {escape(name)}{size}", highlight=False, soft_wrap=True)
        bars.update(tasks[name], completed=done, total=total)

    with bars:
        yield show


class _Notes(logging.Handler):
    """Shows kshot's log messages, each once, among the lines of a run."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.INFO)
        self.display = display
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self.seen:
            self.seen.add(text)
            self.display.say(text, "dim")
