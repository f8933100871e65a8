"""An evaluation's figures task by task: the CSV table beside its report, and their means."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import zip_longest
from pathlib import Path

import numpy as np

from kshot.bounded import open_file, parse_json
from kshot.evaluation.evaluate import Evaluation
from kshot.evaluation.intervals import BOUNDS, Interval, interval
from kshot.evaluation.units import Units
from kshot.files import csv_text, write_text

TASKS, REPORT = "tasks.csv", "report.json"  # names of the table and of the report in a run folder
UNIT = "unit: "  # before what a unit is called, in the header of its column
OF = " of "  # between the metric and the name of another learner, in the header of its column


@dataclass(frozen=True)
class Scores:
    """Figures task by task, read from a table; the attributes are as in `Evaluation`."""

    episodes: list[str]
    per_task: dict[str, list[float]]
    units: Units | None = None


PerTask = Evaluation | Scores


def figures_of(scores: PerTask, num_tasks: int | None = None) -> dict[str, Interval]:
    """The figure of each metric over all tasks, or over the first ones, with its interval over units."""
    units = scores.units and scores.units.first(len(scores.episodes) if num_tasks is None else num_tasks)
    return {
        name: interval(values[:num_tasks], units, bounds=BOUNDS.get(name)) for name, values in scores.per_task.items()
    }


def figures_beside(scores: PerTask, others: Mapping[str, PerTask]) -> dict[str, Interval] | None:
    """The figures on the tasks that others were evaluated on; None if these are all."""
    count = min((len(each.episodes) for each in others.values()), default=len(scores.episodes))
    return figures_of(scores, count) if count < len(scores.episodes) else None


def write_tasks(path: Path, evaluation: PerTask, others: Mapping[str, PerTask], metric: str) -> None:
    """Write a CSV with one row per task: its number, episode hash, units if it has any, and figures.

    Args:
        others: name -> evaluation of another learner, such as a baseline, on the first of the same tasks; its cells
            are empty for the remaining ones, and only `metric` is written.
    """
    units, header = [], []
    if evaluation.units is not None:
        header = [UNIT + evaluation.units.unit]
        units = [[_cell(evaluation.units, task) for task in range(len(evaluation.episodes))]]
    header += [*evaluation.per_task, *(f"{metric}{OF}{name}" for name in others)]
    columns = [*evaluation.per_task.values(), *(other.per_task[metric] for other in others.values())]
    cells = zip_longest(evaluation.episodes, *units, *columns, fillvalue="")
    write_text(path, csv_text([["task", "episode", *header], *([task, *row] for task, row in enumerate(cells))]))


def read_tasks(path: Path) -> tuple[Scores, dict[str, Scores]]:
    """The learner's figures in a file of `write_tasks`, and the others' by name; ValueError if it is none."""
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        episodes = list(columns.pop("episode"))
        del columns["task"]
        unit = next((name for name in columns if name.startswith(UNIT)), None)
        units = None if unit is None else _read_units(columns.pop(unit), unit.removeprefix(UNIT))
        figures = {name: [float(cell) for cell in cells if cell] for name, cells in columns.items()}
        others = {}
        for name in [name for name in figures if OF in name]:
            metric, _, other = name.partition(OF)
            values = figures.pop(name)
            others[other] = Scores(episodes[: len(values)], {metric: values}, units and units.first(len(values)))
        return Scores(episodes, figures, units), others
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: the run is not finished, or was made by an older version") from None
    except (UnicodeDecodeError, csv.Error, LookupError, ValueError) as error:
        raise ValueError(f"{path} is not a table of tasks written by kshot ({error})") from None


def _cell(units: Units, task: int) -> str:
    """The unit of a task, or the list of its units as JSON."""
    names = units.of_task(task)
    return names[0] if units.numbers.ndim == 1 else json.dumps(names, ensure_ascii=False)


def _read_units(cells: Sequence[str], unit: str) -> Units:
    several = all(cell.startswith("[") for cell in cells)
    of_tasks = [parse_json(cell) if several else [cell] for cell in cells]
    width = max(map(len, of_tasks))
    number = {name: position for position, name in enumerate(dict.fromkeys(n for names in of_tasks for n in names))}
    numbers = np.array([[number[name] for name in names] + [-1] * (width - len(names)) for names in of_tasks])
    return Units(numbers if several else numbers[:, 0], unit, list(number))
