"""Runs in TensorBoard: event files, which `tensorboard --logdir runs` shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.app.tracking.tracker import Plain, TrackedRun, Tracker, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tensorboard(run: TrackedRun, *, folder: str | None = None) -> Tracker:
    """Write event files of TensorBoard.

    Args:
        run: supplied by the run.
        folder: where a folder with the name of the run is made; by default they are in the run folder.
    """
    require("tensorboard")
    return _TensorBoard(run.folder / "tensorboard" if folder is None else Path(folder) / run.name)


class _TensorBoard(Tracker):
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id, self.writer, self.step = str(folder), SummaryWriter(folder), 0

    def params(self, values: Mapping[str, Plain]) -> None:
        rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
        self.writer.add_text("run file", "\n".join(["| key | value |", "| --- | --- |", *rows]), 0)
        self.writer.flush()

    def metrics(self, values: Mapping[str, float], step: int, time: float) -> None:
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, walltime=time)
        self.writer.flush()

    def report(self, folder: Path, figures: Mapping[str, Figure]) -> None:
        for name, figure in figures.items():
            self.writer.add_figure(name, figure, self.step, close=False)
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()
