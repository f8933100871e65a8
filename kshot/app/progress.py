"""Progress of a run: bars on a terminal, a line that is replaced in a notebook, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

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

REFRESH = 0.25
"""Seconds between updates in a notebook."""
LOG = logging.getLogger("kshot")
ACTIONS = {"Continue": "cyan", "Change": "yellow", "Rollback": "magenta", "Stop": "bold green"}


class Display(Observer):
    """Rate, loss, figure of the validation metric and time left; steps are shown on terminals and in notebooks."""

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
        self.notebook = _NotebookLine() if console.is_jupyter else None
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
        if self.notebook is not None:
            self.notebook.clear()
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
        if self.notebook is not None:
            self.notebook.show(stage, done, total, figures)

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


class _NotebookLine:
    """A line of progress in a notebook, which each update replaces; the bars of rich would need ipywidgets there."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.stage, self.started, self.shown = "", 0.0, 0.0

    def show(self, stage: str, done: int, total: int, figures: str) -> None:
        """Show the line, at most every `REFRESH` seconds; the last one of a stage always."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.started, self.shown = stage, now, 0.0
        if now - self.shown < REFRESH and done < total:
            return
        self.shown, passed = now, now - self.started
        left = f"left {_clock(passed * (total - done) / done)}" if 0 < done < total and passed else ""
        parts = f"{stage} {done}/{total}", figures.strip(), _clock(passed), left
        self._put("  ".join(filter(None, parts)))

    def clear(self) -> None:
        """Leave an empty line."""
        if self.handle is not None:
            self._put("")

    def _put(self, text: str) -> None:
        from IPython.display import display

        data = {"text/plain": text}
        if self.handle is None:
            self.handle = display(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)


def _clock(seconds: float) -> str:
    """Seconds as "0:00:00", as the bars show them."""
    return str(timedelta(seconds=round(seconds)))


class _Notes(logging.Handler):
    """Shows kshot's log messages among the lines of a run: warnings once, and others once on each console."""

    on_consoles: ClassVar[WeakKeyDictionary[Console, set[str]]] = WeakKeyDictionary()

    def __init__(self, display: Display) -> None:
        super().__init__(logging.INFO)
        self.display = display
        self.warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        seen = (
            self.warned if record.levelno > logging.INFO else self.on_consoles.setdefault(self.display.console, set())
        )
        if (text := record.getMessage()) not in seen:
            seen.add(text)
            self.display.say(text, "dim")
