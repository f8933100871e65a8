"""Tasks from a table: a task is a group of its rows (`group`), or tells N of its classes apart (`classes`).

Shape legend: n rows, F features, D targets, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import EMPTY, FractionBelowOne
from kshot.data.tables.columns import Columns, Values, moments, place_of, read_columns
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, ReadingOptions, Table
from kshot.objectives import Objective
from kshot.sources.rows import BadRows, cut_members, domains_of, group_rows, left_out_of, times_of
from kshot.tasks.class_tasks import ClassTasks, Imbalance
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.pool import OnTooFew
from kshot.tasks.preprocessor import Support
from kshot.tasks.sampling import Size
from kshot.tasks.splitting import DEFAULT_SPLIT
from kshot.types import Tree


def table(
    path: Path | str,
    *,
    group: str | None = None,
    target: str | Sequence[str] | None = None,
    classes: str | None = None,
    target_type: Literal["regression", "classification"] | None = None,
    inputs: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    kinds: Mapping[str, str] = EMPTY,
    time: str | None = None,
    domain: str | None = None,
    split: Mapping[str, Any] = DEFAULT_SPLIT,
    ways: Size = 5,
    shots: Size = 10,
    queries: Size = 10,
    train_queries: Size | None = None,
    imbalance: Imbalance | None = None,
    label_noise: FractionBelowOne = 0.0,
    on_too_few: OnTooFew = "error",
    reading: ReadingOptions = EMPTY,
    bad_rows: BadRows = "error",
    seed: int = 0,
) -> GroupTasks | ClassTasks:
    r"""Tasks from a CSV, TSV, NDJSON or Parquet file.

    With `group` and `target`, a task is a group, such as a store, patient or school: predict the target of its rows
    from `shots` of them. A target of numbers is regressed, standardised by training rows,
    $y' = (y - \mu_{\text{train}}) / \sigma_{\text{train}}$, with figures told in its own units; one of words or
    booleans is classified, with the same classes in all tasks. With `classes`, a task tells `ways` values of that
    column apart.

    Inputs are float32 (n, F). Numbers are standardised by training rows and cut at 10 deviations; a missing one
    is their mean, with a feature that says so. Words are one-hot up to 32 of them and random codes beyond, with a place
    for unknown ones. Dates are linear and cyclic.

    Args:
        path: the file.
        group: the column whose value names the group of a row.
        target: the column to predict, or several columns of numbers.
        classes: the column whose values are told apart, instead of `group` and `target`.
        target_type: "regression" or "classification"; by default what the target's column holds.
        inputs: the columns to predict from; by default all others.
        ignore: columns to leave aside.
        kinds: what columns hold, where it is not what they look like: number, boolean, category, date, or a format of
            dates such as "%d/%m/%Y".
        time: a column of dates or numbers; a group's support then comes before its query.
        domain: a column that says where a group or class belongs: for `split: {heldout: …}`, and the classes of a task
            are all of one domain.
        split: how groups or classes are cut, see `splitting`; by default 70, 15 and 15 % by a hash of the name.
        ways: classes of a task.
        shots: support rows of a task, or of each class.
        queries: query rows of a task, or of each class.
        train_queries: the same in training tasks.
        imbalance, label_noise: as in `ClassTasks`; for `classes` only.
        on_too_few: what becomes of groups or classes that are too on_too_few: error, drop or shrink.
        reading: how a file of text is written: delimiter, encoding, decimal, missing; see `Reading`.
        bad_rows: "error", or "drop" to leave rows out that lack a group or a target, or hold what they should not.
        seed: names the sequence of tasks.

    Raises:
        ValueError: what is wrong with the file or a value in it, with line and column; a column that is missing; groups
            that are too small.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "scores.csv"
        >>> rows = [f"school {s},{hours},{50 + s + 3 * hours}" for s in range(40) for hours in range(12)]
        >>> _ = path.write_text("school,hours,score\n" + "\n".join(rows))
        >>> source = table(path, group="school", target="score", shots=5, queries=5)
        >>> task = source.task("train", 0)
        >>> task.support.inputs.shape, task.support.targets.shape
        (torch.Size([5, 1]), torch.Size([5, 1]))
    """
    if (group is None) == (classes is None):
        raise ValueError(
            "a table needs group (a task is a group) or classes (a task tells classes apart), one of the two"
        )
    names = [] if target is None else [target] if isinstance(target, str) else list(target)
    if group is not None and not names:
        raise ValueError("a table with group needs a target: the column to predict")
    if classes is not None and (names or target_type or time):
        raise ValueError(
            "a table with classes takes no target, target_type or time: the classes themselves are predicted"
        )
    key = group if group is not None else str(classes)
    split = split or DEFAULT_SPLIT
    aside = [key, *names, *([split["column"]] if "column" in split else []), *([domain] if domain else [])]
    needed = None if inputs is None else [*aside, *inputs, *([time] if time else [])]
    found = open_table(path, Reading(**(reading or {})), columns=needed, ignore=ignore if inputs is None else ())
    found.need(*aside, *([time] if time else []))
    chosen = [name for name in found.frame.columns if name not in aside] if inputs is None else list(inputs)
    given = dict(kinds or {})
    found.need(*given)
    held = {name: given.get(name) or found.kind(name) for name in chosen}
    targets, encoded = _targets(found, names, target_type, given) if names else (None, {"label": key})
    keys = found.keys(key)
    found.missing(key, keys.is_null().to_numpy(), "a row needs one")
    order = np.argsort(times_of(found, time, given).values, kind="stable") if time else None
    members = group_rows(keys, found.good, order)  # before the inputs are read, which then have the memory that it took
    del keys
    raw = read_columns(found, held)
    members = members.only(found.settle(bad_rows))
    found.release(*aside[1 + len(names) :])
    parts = cut_members(members, found, split, domain, kind="group" if group else "class")
    within = domains_of(members, found, domain) if domain and classes else None
    train = np.zeros(len(found), bool)
    for rows in parts["train"].values():
        train[rows] = True
    columns = Columns.fit(raw, train, requested=inputs or ())
    if targets is not None and "mean" in encoded:
        encoded |= standardise(targets, train)
    preprocessor = TablePreprocessor(columns=columns, reading=found.reading, **encoded)
    examples = TableExamples(columns, columns.encode(raw), targets)
    common: dict[str, Any] = {
        "shots": shots,
        "queries": queries,
        "train_queries": train_queries,
        "on_too_few": on_too_few,
    }
    common |= {"seed": seed, "name": "table", "preprocessor": preprocessor, "left_out": left_out_of(found)}
    if group is not None:
        ordered: Any = "given" if time else "random"
        return GroupTasks(examples, parts, objective=preprocessor.objective, order=ordered, **common)
    options: dict[str, Any] = {"ways": ways, "imbalance": imbalance, "label_noise": label_noise, "within": within}
    return ClassTasks(examples, parts, **options, **common)


def standardise(targets: np.ndarray, train: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Standardise targets (n, D) in place by the training rows, a mask (n,); their means and standard deviations."""
    found = [moments(targets[:, place], train) for place in range(targets.shape[1])]
    mean, std = (tuple(values) for values in zip(*((mean, std or 1.0) for mean, std in found)))
    targets -= mean
    targets /= std
    return {"mean": mean, "std": std}


def _targets(
    table: Table, names: list[str], target_type: str | None, kinds: Mapping[str, str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The targets, float64 (n, D) or one-hot (n, C), and what their preprocessor needs to know."""
    held = {name: kinds.get(name) or table.kind(name) for name in names}
    target_type = target_type or ("regression" if set(held.values()) == {"number"} else "classification")
    if target_type == "regression":
        values = np.stack([table.numbers(name) for name in names], 1)
        for name, own in zip(names, values.T):
            table.missing(name, np.isnan(own), "a row needs its target")
        return values, {"targets": tuple(names), "mean": (0.0,), "std": (1.0,)}
    if len(names) > 1:
        raise ValueError(f"one target is classified at a time, got {', '.join(names)}; several must hold numbers")
    if held[names[0]] == "date":
        raise ValueError(f"{table.path}: the target {names[0]!r} holds dates; give a column of numbers or words")
    words = table.labels(names[0])
    table.missing(names[0], words.is_null().to_numpy(), "a row needs its target")
    known = tuple(words.drop_nulls().unique().sort().to_list())
    if len(known) < 2:
        raise ValueError(f"{table.path}: the target {names[0]!r} is {known[0] if known else 'missing'!r} in every row")
    return _one_hot(words, known), {"targets": tuple(names), "classes": known}


def _one_hot(words: Any, classes: Sequence[str]) -> np.ndarray:
    """Words as float32 (n, C); those that are no class are all zeros."""
    return np.eye(len(classes) + 1, len(classes), dtype=np.float32)[place_of(words, classes)]


class TableExamples:
    """Rows of a table: inputs float32 (..., F), spread out where they are taken, and targets (..., D) if it has any."""

    def __init__(self, columns: Columns, values: Values, targets: np.ndarray | None) -> None:
        self.columns, self.values = columns, values
        self.targets = None if targets is None else targets.astype(np.float32, copy=False)

    def __len__(self) -> int:
        return len(self.values.numbers)

    def take(self, rows: np.ndarray) -> Tree:
        inputs = torch.from_numpy(self.columns.spread(self.values.rows(rows)))
        return inputs if self.targets is None else (inputs, torch.from_numpy(self.targets[rows]))


@dataclass(frozen=True)
class TablePreprocessor:
    """How rows of a table become inputs and targets.

    Attributes:
        columns: of the inputs.
        reading: how the file was written.
        targets: the columns that are predicted, where tasks are groups.
        mean, std: of each target that is regressed, in its own units.
        classes: of the target that is classified.
        label: the column whose values each task tells apart, where tasks are classes.
    """

    columns: Columns
    reading: Reading
    targets: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    label: str | None = None

    @property
    def objective(self) -> Objective:
        """What the tasks ask."""
        if self.label is not None:
            return objectives.classification
        return objectives.shared_classification if self.classes else objectives.in_units(self.std, self.targets)

    def support(self, path: Path) -> Support:
        """Rows with their targets, or with a class each in the column that has the classes."""
        wanted = [self.label] if self.label is not None else list(self.targets)
        found, inputs = self._read(path, wanted)
        if self.label is not None:
            words = found.labels(self.label)
            found.missing(self.label, words.is_null().to_numpy(), "a support row needs its class")
            found.settle()
            return Support(inputs, words.to_list(), {})
        if self.classes:
            words = found.labels(self.targets[0])
            targets = _one_hot(words, self.classes)
            found.missing(self.targets[0], words.is_null().to_numpy(), "a support row needs its target")
            found.bad(
                self.targets[0],
                (targets.sum(1) == 0) & words.is_not_null().to_numpy(),
                f"is none of {', '.join(self.classes)}",
            )
            found.settle()
            return Support(inputs, torch.from_numpy(targets), {})
        values = np.stack([found.numbers(name) for name in self.targets], 1)
        for name, own in zip(self.targets, values.T):
            found.missing(name, np.isnan(own), "a support row needs its target")
        found.settle()
        return Support(inputs, torch.from_numpy(((values - self.mean) / self.std).astype(np.float32)), {})

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tensor:
        found, inputs = self._read(path, [])
        found.settle()
        return inputs

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"row": list(range(1, len(prediction) + 1))}
        if self.classes:
            chances = prediction.softmax(1)
            rows[self.targets[0]] = [self.classes[place] for place in chances.argmax(1).tolist()]
            return rows | {f"p({name})": chances[:, place].tolist() for place, name in enumerate(self.classes)}
        values = prediction.double().numpy() * self.std + self.mean
        return rows | {name: values[:, place].tolist() for place, name in enumerate(self.targets)}

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {"inputs": self.columns.describe()}
        if self.label is not None:
            return told | {"classes_of": self.label}
        if self.classes:
            return told | {"target": f"{self.targets[0]}: one of {', '.join(self.classes)}"}
        units = (f"{name}: (y − {m:.4g}) / {s:.4g}" for name, m, s in zip(self.targets, self.mean, self.std))
        return told | {"target": "; ".join(units)}

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("targets", "mean", "std", "classes", "label")}
        return {"kind": "table", "columns": self.columns.to_json(), "reading": self.reading._asdict(), **plain}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TablePreprocessor:
        plain = {name: tuple(data[name]) for name in ("targets", "mean", "std", "classes")}
        columns, reading = Columns.from_json(data["columns"]), Reading(**data["reading"])
        return cls(columns=columns, reading=reading, label=data["label"], **plain)

    def _read(self, path: Path, others: list[str]) -> tuple[Table, Tensor]:
        kinds = self.columns.kinds
        found = open_table(path, self.reading, columns=[*kinds, *others])
        values = self.columns.encode(read_columns(found, kinds))
        return found, torch.from_numpy(self.columns.spread(values))
