"""Tasks from a table: a task is a group of its rows (`group`), or classifies N values of a column (`classes`).

Shape legend: n rows, F features, D targets, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import EMPTY, FractionBelowOne, Size, Ways
from kshot.argument_checks import check_arguments
from kshot.data.tables.columns import Columns, Raw, Values, describe_raw, kind_of, missing_in, place_of, read_columns
from kshot.data.tables.frames import TableLike
from kshot.data.tables.moments import extremes, moments
from kshot.data.tables.notes import notes_on_columns, notes_on_targets, row_numbers
from kshot.data.tables.numerals import Style
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, ReadingOptions, Table
from kshot.data.text.files import words_of
from kshot.objectives import Objective
from kshot.sources.rows import (
    BadRows,
    PlainTable,
    cut_members,
    domains_of,
    group_rows,
    left_out_of,
    refuse_several_groups,
    split_of_rows,
    times_of,
    unit_name,
)
from kshot.supplied import Seed
from kshot.tasks.class_tasks import ClassTasks, Imbalance
from kshot.tasks.group_tasks import GroupTasks, Order
from kshot.tasks.pool import OnTooFew
from kshot.tasks.preprocessor import Preprocessor, Support
from kshot.tasks.sampling import shots_for
from kshot.tasks.splitting import DEFAULT_SPLIT, by_rows
from kshot.types import Tree

log = logging.getLogger(__name__)


@check_arguments
def table(
    path: Path | str | TableLike,
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
    ways: Ways | None = None,
    train_ways: Ways | None = None,
    test_ways: Ways | None = None,
    shots: Size | None = None,
    queries: Size = 10,
    train_queries: Size | None = None,
    imbalance: Imbalance | None = None,
    label_noise: FractionBelowOne = 0.0,
    on_too_few: OnTooFew = "error",
    reading: ReadingOptions = EMPTY,
    bad_rows: BadRows = "error",
    seed: Seed = 0,
) -> GroupTasks | ClassTasks:
    r"""Tasks from a table: a file, a DataFrame of pandas or polars, or the result of an SQL query.

    With `target` alone, a task is `shots` and `queries` random rows of the table, each split having rows of its own.
    With `group` and `target`, a task is a group, such as a store, patient or school: predict the target of its rows
    from `shots` of them. Numeric targets are regressed, standardised by training rows,
    $y' = (y - \mu_{\text{train}}) / \sigma_{\text{train}}$, with metrics in their own units; words and booleans are
    classified, with the same classes in all tasks. With `classes`, a task classifies `ways` values of that column.

    Inputs are float32 (n, F). Numbers are standardised by training rows and clipped at 10 deviations; missing ones
    become the mean, with an indicator feature. Words are one-hot up to 32 distinct ones and random codes beyond, with a
    code for unknown ones. Dates are linear and cyclic features.

    Args:
        path: the file (CSV, TSV, NDJSON, JSON, Parquet, Excel), the table in memory (see `TableLike`), or the URL of a
            database, with `reading: {query: …}`.
        group, target: the column that names the group of a row, and that to predict, or several numeric columns.
        classes: the column of classes, instead of `group` and `target`.
        target_type: "regression" or "classification"; by default according to the column of the target.
        inputs: the columns to predict from; by default all others, but for `ignore`, and one that numbers the rows.
        kinds: types of columns that are not detected correctly: number, boolean, category, date, or a format of dates
            such as "%d/%m/%Y".
        time: a column of dates or numbers; the support of a group then precedes its query.
        domain: the column with the domain of a group or class: for `split: {heldout: …}`, and so that the classes of a
            task come from one domain.
        split: see `kshot.tasks.splitting`; by default 70, 15 and 15 % of the groups or classes; of the rows with a
            target alone, where it is always {rows: …}.
        shots, queries, train_queries: number of rows of a task, or of each class; shots are by default 10, or half the
            rows of the median group or class if these are fewer.
        ways, train_ways, test_ways, imbalance, label_noise: as in `ClassTasks`; for `classes` only.
        on_too_few, seed: as in `ClassTasks`.
        reading: format of text files: delimiter, encoding, decimal, missing; see `Reading`.
        bad_rows: "error", or "drop" to leave out rows without a group or target, or with invalid values.

    Raises:
        ValueError: an error in the file, with line and column; a missing column; groups with too few rows.

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
    names = [] if target is None else [target] if isinstance(target, str) else list(target)
    if (group and classes) or not (group or classes or names):
        raise ValueError(
            "a table needs either group (a task is a group), classes (a task classifies values of the column), or a "
            "target alone (a task is random rows of the table)"
        )
    is_whole = not (group or classes)
    if is_whole:
        split = split_of_rows(split)
        if time or domain:
            raise ValueError("time and domain are for a table with group or classes: they order or divide these")
    if group is not None and not names:
        raise ValueError("a table with group needs a target: the column to predict")
    if classes is not None and (names or target_type or time):
        without = "no target, target_type or time"
        raise ValueError(f"a table with classes takes {without}: the classes themselves are predicted")
    key = group or classes or names[0]
    split, kinds, format = split or DEFAULT_SPLIT, dict(kinds or {}), Reading(**(reading or {}))
    special = list(dict.fromkeys([key, *names, *(name for name in (split.get("column"), domain) if name)]))
    times = [time] if time else []
    if inputs is None:
        opened = open_table(path, format, ignore=ignore)
    else:
        opened = open_table(path, format, columns=[*special, *inputs, *times])
    opened.need(*special, *times, *kinds)
    input_names = [name for name in opened.frame.columns if name not in special] if inputs is None else list(inputs)
    input_kinds = {name: kinds.get(name) or opened.kind(name) for name in input_names}
    understood: dict[str, str] = {}
    targets, encoding = _targets(opened, names, target_type, kinds, understood) if names else (None, {"label": key})
    keys = opened.keys(key)
    if is_whole:
        keys = keys.is_null() & False  # one group of all rows
    opened.missing(key, keys.is_null().to_numpy(), "a row needs one")
    order = np.argsort(times_of(opened, time, kinds).values, kind="stable") if time else None
    members = group_rows(keys, opened.good, order)  # before the inputs are read, to free the memory of the keys
    del keys
    raw = read_columns(opened, input_kinds)
    notes = notes_on_columns(opened, raw, input_kinds, kinds)
    if inputs is None:
        for name in sorted(row_numbers(raw).difference({time, *kinds})):
            del raw[name]
            notes.append(f"{opened.path}, column {name!r} numbers the rows: it is left out, unless inputs list it")
    understood |= {name: describe_raw(column) for name, column in raw.items()}
    if targets is not None and "mean" in encoding and target_type is None:
        notes += notes_on_targets(opened, names, targets)
    members = members.only(opened.settle(bad_rows))
    opened.release(*(name for name in special if name not in (key, *names)))
    if shots is None:
        shots = shots_for(members.sizes)
    if is_whole:
        parts = by_rows({"": members.flat}, split["rows"], seed=split.get("seed", 0))
        parts = {part: {f"rows of {part}": rows[""]} for part, rows in parts.items()}
    else:
        parts = cut_members(members, opened, split, domain, kind="group" if group else "class")
    within = domains_of(members, opened, domain) if domain and classes else None
    train = np.zeros(len(opened), bool)
    for rows in parts["train"].values():
        train[rows] = True
    columns = Columns.fit(raw, train, requested=inputs or ())
    if targets is not None and "mean" in encoding:
        mean, std = zip(*(moments(column, train) for column in targets.T))
        encoding |= {"mean": mean, "std": tuple(value or 1.0 for value in std)}
        targets -= encoding["mean"]
        targets /= encoding["std"]
    preprocessor = TablePreprocessor(columns=columns, reading=opened.reading, group=group, **encoding)
    examples = TableDataset(columns, columns.encode(raw), targets)
    options: dict[str, Any] = {
        "shots": shots, "queries": queries, "train_queries": train_queries, "on_too_few": on_too_few, "seed": seed,
        "name": "table", "preprocessor": preprocessor, "left_out": left_out_of(opened),
    }  # fmt: skip
    source: GroupTasks | ClassTasks
    if is_whole:
        source = PlainTable(examples, parts, objective=preprocessor.objective, **options)
    elif group is not None:
        order_of_rows: Order = "given" if time else "random"
        source = GroupTasks(examples, parts, objective=preprocessor.objective, order=order_of_rows, **options)
        source.unit = unit_name(group)
    else:
        options |= {
            "ways": ways,
            "train_ways": train_ways,
            "test_ways": test_ways,
            "same_classes": "rows" in split,
            "imbalance": imbalance,
            "label_noise": label_noise,
            "within": within,
        }
        source = ClassTasks(examples, parts, **options)
    source.understood, source.notes = understood, notes
    for name, how in understood.items():
        log.info("%s: %s", name, how)
    for note in notes:
        log.warning("%s", note)
    return source


def _targets(
    table: Table, names: list[str], target_type: str | None, kinds: Mapping[str, str], understood: dict[str, str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The targets, float64 (n, D) or one-hot (n, C), and the arguments of their `TablePreprocessor`.

    How they are understood is added to `understood`.
    """
    words_wanted = target_type == "classification"
    found = {name: kinds.get(name) or ("category" if words_wanted else table.kind(name)) for name in names}
    are_numbers = {kind_of(kind) for kind in found.values()} == {"number"}
    target_type = target_type or ("regression" if are_numbers else "classification")
    if target_type == "regression":
        formats = tuple(kind if Style.parse(kind) else "" for kind in found.values())
        values = _numbers(table, names, "a row needs its target", formats)
        for name, column, format in zip(names, values.T, formats):
            understood[name] = f"target, {describe_raw(Raw('number', column, format or None))}"
            if name not in kinds:
                table.bad(
                    name, extremes(column, ~np.isnan(column)),
                    "is more than 100 times as far from the median as the other targets are, and would hide all else: "
                    f"correct it, or confirm by kinds: {{{name}: number}} that it is right",
                )  # fmt: skip
        return values, {"targets": tuple(names), "mean": (), "std": (), "formats": formats}
    if len(names) > 1:
        raise ValueError(f"one target is classified at a time, got {', '.join(names)}; several must hold numbers")
    if kind_of(found[names[0]]) == "date":
        raise ValueError(f"{table.path}: the target {names[0]!r} holds dates; give a column of numbers or words")
    if not words_wanted and names[0] not in kinds and (share := table.share_of_numbers(names[0])) > 0.5:
        raise ValueError(
            f"{table.path}: {share:.0%} of the targets {names[0]!r} are numbers, and the others are not. Correct those "
            "or list them in reading.missing, or set target_type: classification if all of them are names of classes"
        )
    words = words_of(table, names[0], "a row needs its target")
    understood[names[0]] = f"target, {describe_raw(Raw('category', words))}"
    classes = tuple(words.drop_nulls().unique().sort().to_list())
    if len(classes) < 2:
        value = repr(classes[0] if classes else "missing")
        raise ValueError(f"{table.path}: the target {names[0]!r} is {value} in every row")
    return _one_hot(words, classes), {"targets": tuple(names), "classes": classes}


def _numbers(table: Table, names: Sequence[str], why: str, formats: Sequence[str] = ()) -> np.ndarray:
    """Numeric columns (n, D) in the formats that they are written in; missing values are errors of their rows."""
    formats = formats or [""] * len(names)
    values = np.stack([table.numbers(name, format or None) for name, format in zip(names, formats)], 1)
    for name, column in zip(names, values.T):
        table.missing(name, np.isnan(column), why)
    return values


def _one_hot(words: Any, classes: Sequence[str]) -> np.ndarray:
    """Words as float32 (n, C); all zeros for those that are no class."""
    return np.eye(len(classes) + 1, len(classes), dtype=np.float32)[place_of(words, classes)]


class TableDataset:
    """Rows of a table: inputs float32 (..., F), expanded when they are taken, and targets (..., D) if there are any."""

    def __init__(self, columns: Columns, values: Values, targets: np.ndarray | None) -> None:
        self.columns, self.values = columns, values
        self.targets = None if targets is None else targets.astype(np.float32, copy=False)

    def __len__(self) -> int:
        return len(self.values.numbers)

    def take(self, rows: np.ndarray) -> Tree:
        inputs = torch.from_numpy(self.columns.spread(self.values.rows(rows)))
        return inputs if self.targets is None else (inputs, torch.from_numpy(self.targets[rows]))


@dataclass(frozen=True)
class TablePreprocessor(Preprocessor):
    """Converts rows of a table into inputs and targets.

    Attributes:
        columns: of the inputs.
        targets, mean, std: the columns to predict, if tasks are groups, and the scale of regressed ones.
        classes: of the classified target.
        label: the column of classes, if tasks classify its values.
        formats: how the regressed targets are written, such as "1.234,5 €"; empty for plain numbers.
        group: the column of groups, of which a support file may hold one.
    """

    columns: Columns
    reading: Reading
    targets: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    label: str | None = None
    formats: tuple[str, ...] = ()
    group: str | None = None

    @property
    def input_columns(self) -> Columns:  # type: ignore[override]
        return self.columns

    @property
    def objective(self) -> Objective:
        if self.label is not None:
            return objectives.classification
        return objectives.shared_classification if self.classes else objectives.in_units(self.std, self.targets)

    def support(self, path: Path | TableLike) -> Support:
        """Rows with their targets, or with the class of each in the column `label`."""
        columns = self.targets if self.label is None else (self.label,)
        table, inputs = self._read(path, columns)
        if self.group is not None:
            refuse_several_groups(path, self.group, self.reading)
        if self.label is None and not self.classes:
            values = _numbers(table, columns, "a support row needs its target", self.formats)
            targets = ((values - self.mean) / self.std).astype(np.float32)
        else:
            words = words_of(table, columns[0], f"a support row needs its {'target' if self.classes else 'class'}")
            if self.label is None:
                targets = _one_hot(words, self.classes)
                unknown = (targets.sum(1) == 0) & words.is_not_null().to_numpy()
                table.bad(columns[0], unknown, f"is none of {', '.join(self.classes)}")
        table.settle()
        return Support(inputs, torch.from_numpy(targets) if self.label is None else words.to_list(), {})

    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tensor:
        table, inputs = self._read(path, ())
        table.settle()
        return inputs

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"row": list(range(1, len(prediction) + 1))}
        if self.classes:
            probabilities = prediction.softmax(1)
            rows[self.targets[0]] = [self.classes[number] for number in probabilities.argmax(1).tolist()]
            return rows | {f"p({name})": column.tolist() for name, column in zip(self.classes, probabilities.T)}
        values = prediction.double().numpy() * self.std + self.mean
        return rows | {name: column.tolist() for name, column in zip(self.targets, values.T)}

    def describe(self) -> dict[str, Any]:
        about: dict[str, Any] = {"inputs": self.columns.describe()}
        if self.label is not None:
            return about | {"classes_of": self.label}
        if self.classes:
            return about | {"target": f"{self.targets[0]}: one of {', '.join(self.classes)}"}
        units = (f"{name}: (y − {m:.4g}) / {s:.4g}" for name, m, s in zip(self.targets, self.mean, self.std))
        return about | {"target": "; ".join(units)}

    def to_json(self) -> dict[str, Any]:
        plain = {
            name: getattr(self, name) for name in ("targets", "mean", "std", "classes", "label", "formats", "group")
        }
        return {"kind": "table", "columns": self.columns.to_json(), "reading": self.reading._asdict(), **plain}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TablePreprocessor:
        plain = {name: tuple(data.get(name, ())) for name in ("targets", "mean", "std", "classes", "formats")}
        columns, reading = Columns.from_json(data["columns"]), Reading(**data["reading"])
        return cls(columns=columns, reading=reading, label=data["label"], group=data.get("group"), **plain)

    def _read(self, path: Path | TableLike, others: Sequence[str]) -> tuple[Table, Tensor]:
        """The table, with further columns, and its inputs."""
        kinds = self.columns.kinds
        table = open_table(path, self.reading, columns=[*kinds, *others])
        raw = read_columns(table, kinds)
        for name in self.columns.without_gaps:
            if count := missing_in(raw[name]):
                log.warning("%s: %d missing values of %r are replaced by the training mean", table.path, count, name)
        values = self.columns.encode(raw)
        return table, torch.from_numpy(self.columns.spread(values))
