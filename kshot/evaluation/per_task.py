"""The figures of an evaluation task by task, as a table that stands beside the report, and back from it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

TASKS = "tasks.csv"  # the table's name in a run folder
SUBJECT = "subject"
OF = " of "  # between the metric and the name of another, in the head of its column


class PerTask(Protocol):
    """Anything with figures task by task: an `Evaluation`, or what `read_tasks` read."""

    @property
    def episodes(self) -> list[str]:
        """The hash of each episode."""

    @property
    def per_task(self) -> dict[str, list[float]]:
        """Metric -> figure of each task."""

    @property
    def subjects(self) -> np.ndarray | None:
        """Whose each task is, a number; None where each stands for itself."""


@dataclass(frozen=True)
class Scores:
    """Figures task by task, as `PerTask` has them."""

    episodes: list[str]
    per_task: dict[str, list[float]]
    subjects: np.ndarray | None = None


def write_tasks(path: Path, found: PerTask, others: Mapping[str, PerTask], metric: str) -> None:
    """Write a CSV with a row a task: its number, its episode's hash, whose it is if it is somebody's, each figure, and
    `metric` of the others.

    The others, such as baselines, were scored on the first of the same tasks; behind those their cells are empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    whose = [] if found.subjects is None else [found.subjects.tolist()]
    head = [*[SUBJECT] * len(whose), *found.per_task, *(f"{metric}{OF}{name}" for name in others)]
    writer.writerow(["task", "episode", *head])
    columns = [*found.per_task.values(), *(other.per_task[metric] for other in others.values())]
    for number, episode in enumerate(found.episodes):
        cells = [repr(column[number]) if number < len(column) else "" for column in columns]
        writer.writerow([number, episode, *(own[number] for own in whose), *cells])
    write(path, text.getvalue())


def read_tasks(path: Path) -> tuple[Scores, dict[str, Scores]]:
    """What `write_tasks` wrote: the learner's figures, and those of the others by name.

    Raises:
        ValueError: a file that is missing, or no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        episodes = list(columns.pop("episode"))
        del columns["task"]
        whose = np.array(columns.pop(SUBJECT), int) if SUBJECT in columns else None
        figures = {name: [float(cell) for cell in cells if cell] for name, cells in columns.items()}
        others = {}
        for name in [name for name in figures if OF in name]:
            metric, _, other = name.partition(OF)
            others[other] = Scores(episodes[: len(figures[name])], {metric: figures.pop(name)}, whose)
        return Scores(episodes, figures, whose), others
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: the run is not finished, or is of an older version") from None
    except (UnicodeDecodeError, csv.Error, LookupError, ValueError) as error:
        raise ValueError(f"{path} is no table of tasks that kshot wrote ({error})") from None


def write(path: Path, text: str) -> None:
    """Write a file beside its place, then rename it: it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
