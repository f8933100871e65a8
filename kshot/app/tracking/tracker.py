"""What a tracker is, for those of kshot and of users. Importing this module imports no library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

LIBRARIES = ("tensorboard", "mlflow", "wandb")
"""The kinds of kshot, each of which needs the library of the same name."""

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Plain = str | int | float | bool


class TrackedRun(NamedTuple):
    """The run that a tracker is made for, which a factory is supplied with.

    Attributes:
        name: of the run: that of its folder, after that of the run file if they differ.
        folder: the run folder.
        id: the `Tracker.id` under which the run was tracked before it was resumed; None for a new one.
        pretrain_steps: steps of pretraining before the first one of meta-training.
    """

    name: str
    folder: Path
    id: str | None
    pretrain_steps: int = 0


class Tracker(ABC):
    """Receives what a run measures. What a call was given is kept when it returns, also if the process is killed.

    Any call may raise any exception, as where a server is away: the run warns once and goes on without the tracker.

    Attributes:
        id: names the run to the library; a resumed run continues under it.
    """

    id: str

    @abstractmethod
    def params(self, values: Mapping[str, Plain]) -> None:
        """The run file, as flat names such as "train.outer_lr"; called once by each process of a run."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int, time: float) -> None:
        """Figures after an outer step, such as "train/loss" or "val/accuracy", or after one of pretraining.

        Args:
            values: those of pretraining have names that begin with "pretrain/".
            step: grows from call to call, in pretraining and in meta-training by themselves.
            time: seconds since the epoch.
        """

    def report(self, folder: Path, figures: Mapping[str, Figure]) -> None:  # noqa: B027 — may do nothing
        """The end of a run: its folder has `report.html` and `report.json`; and the charts of the report by name."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Called last, in any case; `finished` is whether the run came to its end."""


def require(library: str) -> None:
    """Raise ValueError if a library is not installed."""
    if find_spec(library) is None:
        raise ValueError(f"track: {library} is not installed: pip install 'kshot[track]'")
