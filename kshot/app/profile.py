"""`kshot run --profile`: where the time of a training goes, by its own ranges and by torch's profiler."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from kshot.files import write_text
from kshot.training.timing import NAMES, Name, measuring

WARM_UP, RECORDED = 5, 5
"""Outer steps before the measurement, and those that torch's profiler then records."""
PREFIX = "kshot: "
MOST = 10


class Profile:
    """Measures a training from its sixth step on to the end of that round, its validation and checkpoint included.

    torch's profiler records the first five of these steps and the second validation task, for `trace.json.gz`. The
    clock of the ranges runs all the time, so that the profiler, which slows down what it records, has little part in
    the shares; starting and stopping it has none. On an accelerator, each range waits for the work that it queued.

    Args:
        folder: for `trace.json.gz`, a trace for Perfetto or chrome://tracing, and `table.txt`.
        console: where the table is shown.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.seconds: dict[Name, float] = defaultdict(float)
        self.calls: dict[Name, int] = defaultdict(int)
        self.total = 0.0
        self._begun: float | None = None
        self._validations = 0  # before it began
        self._within: list[float] = []  # for each open range, the seconds of the ranges in it
        self._overhead = 0.0  # seconds of the profiler, which are of no range
        self._seen: dict[Name, int] = defaultdict(int)
        self._profiler: profile | None = None
        self._traces: list[dict[str, Any]] = []
        self._operators: list[Any] = []
        self._ended = False

    @contextmanager
    def measured(self, name: Name) -> Iterator[None]:
        """A context that is a range; see `kshot.training.timing`."""
        if self._ended:
            yield
            return
        self._seen[name] += 1
        if name == "outer step" and self._begun is None and self._seen[name] > WARM_UP:
            self._begun, self._validations = time.perf_counter(), self._seen["validation"]
            self._record()
        elif self._begun is None:
            yield
            return
        elif name == "validation":
            self._keep_recorded()  # of a round with fewer steps
            self._seen["validation task"] = 0
        elif name == "validation task" and self._seen[name] == 2:
            self._record()
        _synchronize()
        started = time.perf_counter()
        self._within.append(0.0)
        try:
            with record_function(PREFIX + name) if self._profiler else nullcontext():
                yield
                _synchronize()
        finally:
            seconds = time.perf_counter() - started
            self.seconds[name] += seconds - self._within.pop()
            self.calls[name] += 1
            if self._within:
                self._within[-1] += seconds
            self._after(name)

    def _after(self, name: Name) -> None:
        if name == "validation task" or (name == "outer step" and self._seen[name] == WARM_UP + RECORDED):
            self._keep_recorded()
        if name == "checkpoint" and self._seen["validation"] > self._validations:
            self.end()

    @contextmanager
    def _left_out(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self._overhead += seconds
        if self._within:
            self._within[-1] += seconds

    def _record(self) -> None:
        device = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines on standard error
        with self._left_out():
            self._profiler = profile(activities=[ProfilerActivity.CPU, *device])
            self._profiler.start()

    def _keep_recorded(self) -> None:
        """Stop the profiler, and keep its trace and the times of operators in steps."""
        if self._profiler is None:
            return
        with self._left_out():
            self._profiler.stop()
            if not self._traces:
                self._operators = list(self._profiler.key_averages())
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "trace.json"
                self._profiler.export_chrome_trace(str(path))
                self._traces.append(json.loads(path.read_text(encoding="utf-8", errors="replace")))
            self._profiler = None

    def end(self) -> None:
        """End the measurement, write both files and show the table; does nothing after the first call."""
        if self._ended:
            return
        self._ended = True
        self._keep_recorded()
        if self._begun is None:
            self.console.print(f"Nothing was profiled: a profile begins after {WARM_UP} outer steps.", style="dim")
            return
        self.total = time.perf_counter() - self._begun - self._overhead
        self.folder.mkdir(exist_ok=True)
        trace = self._traces[0] | {"traceEvents": [event for each in self._traces for event in each["traceEvents"]]}
        with gzip.open(self.folder / "trace.json.gz", "wt", encoding="utf-8") as file:
            json.dump(trace, file)
        text = StringIO()
        for table in (self._shares(), self._most_expensive()):
            Console(file=text, width=110, force_jupyter=False).print(table)
            self.console.print(table)
        write_text(self.folder / "table.txt", text.getvalue())
        self.console.print(f"trace: {self.folder / 'trace.json.gz'}", highlight=False, markup=False, soft_wrap=True)

    def rows(self) -> list[tuple[str, float, int]]:
        """What was done, its seconds and how often, in the order of a step; the last row is all else."""
        rows = [(NAMES[name], self.seconds[name], self.calls[name]) for name in NAMES if name in self.calls]
        return [*rows, ("all else, such as logs", self.total - sum(self.seconds.values()), 1)]

    def _shares(self) -> Table:
        steps = self.calls["outer step"]
        table = Table(title=f"Where the time goes: {self.total:.2f} s, {steps} outer steps and what followed them")
        for name in ("what", "share", "seconds", "times", "ms each"):
            table.add_column(name, justify="left" if name == "what" else "right")
        for about, seconds, calls in self.rows():
            share = f"{seconds / self.total:.1%}"
            table.add_row(about, share, f"{seconds:.3f}", str(calls), f"{1000 * seconds / calls:.2f}")
        return table

    def _most_expensive(self) -> Table:
        """The operators with the most time of their own in the recorded steps."""
        own = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        found = [each for each in self._operators if "::" in each.key]
        total = sum(getattr(each, own) for each in found) or 1.0
        table = Table(title=f"The {MOST} most expensive operators of {min(RECORDED, self.calls['outer step'])} steps")
        for name in ("operator", "share", "ms", "calls"):
            table.add_column(name, justify="left" if name == "operator" else "right")
        for each in sorted(found, key=lambda each: -getattr(each, own))[:MOST]:
            micros = getattr(each, own)
            table.add_row(each.key[:70], f"{micros / total:.1%}", f"{micros / 1000:.2f}", str(each.count))
        return table


@contextmanager
def profiled(run_folder: Path, console: Console) -> Iterator[Profile]:
    """A context whose training is profiled, into the folder `profile` of a run folder."""
    found = Profile(run_folder / "profile", console)
    with measuring(found):
        try:
            yield found
        finally:
            found.end()


def _synchronize() -> None:
    """Wait for what was queued on an accelerator, which else counts where it is waited for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
