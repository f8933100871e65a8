"""Tasks from time series: each series is a task, from a window of the past to the values that follow.

Shape legend: n windows, T tasks, C context steps, H horizon steps, V covariates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from kshot import objectives
from kshot.annotations import EMPTY, PositiveInt
from kshot.data.tables.columns import moments, read_columns
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, ReadingOptions, Table
from kshot.objectives import Objective
from kshot.sources.rows import BadRows, Members, cut_members, group_rows, left_out_of
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.pool import OnTooFew
from kshot.tasks.preprocessor import Support
from kshot.tasks.sampling import Size
from kshot.tasks.source import TaskSource
from kshot.tasks.splitting import DEFAULT_SPLIT
from kshot.types import Batch, Split, Task

Scale = Literal["support", "global"]


def series(
    path: Path | str,
    *,
    time: str,
    series: str | None = None,
    value: str | None = None,
    covariates: Sequence[str] = (),
    context_length: Annotated[int, Ge(2)] = 24,
    horizon: PositiveInt = 6,
    stride: PositiveInt | None = None,
    season: PositiveInt = 1,
    scale: Scale = "support",
    kinds: Mapping[str, str] = EMPTY,
    domain: str | None = None,
    split: Mapping[str, Any] = DEFAULT_SPLIT,
    shots: Size = 5,
    queries: Size = 5,
    train_queries: Size | None = None,
    on_too_few: OnTooFew = "error",
    reading: ReadingOptions = EMPTY,
    bad_rows: BadRows = "error",
    seed: int = 0,
) -> SeriesTasks:
    r"""Forecast a series from a few windows of its past.

    The file is long, a row a series and time with columns `series` and `value`; or, without those, wide: each column
    other than `time` is a series, and an empty cell was not observed.

    A window is C steps of context and the H that follow, and windows lie `stride` steps apart. A task is a series: the
    support are windows that follow each other, the query are later ones, whose horizons begin where the last horizon
    of the support has ended. Inputs are float32 (n, C, 1 + V), the value before the covariates; targets (n, H).

    Args:
        path: a CSV, TSV, NDJSON or Parquet file.
        time: the column of dates or numbers that orders a series.
        series: the column that names the series.
        value: the column to forecast.
        covariates: columns of numbers that are known for the context.
        context_length: C.
        horizon: H.
        stride: steps from one window to the next, `horizon` by default.
        season: steps of a season, for the metric: 24 for hours with a daily rhythm, 1 for none.
        scale: "support" takes the mean of the task's support from all its values and divides them by its standard
            deviation, so that series of any size are alike; "global" does so by the training series, for series whose
            level tells something. Covariates are always standardised by the training series.
        kinds: how the dates in `time` are written, as in {day: "%d/%m/%Y"}.
        domain: a column that says where a series belongs, for `split: {heldout: …}`.
        split: how series are cut, see `splitting`; by default 70, 15 and 15 % by a hash of the name.
        shots: support windows.
        queries: query windows.
        train_queries: the same in training tasks.
        on_too_few: what becomes of series with too few windows: error, drop or shrink.
        reading: how a file of text is written; see `Reading`.
        bad_rows: "error", or "drop" to leave out rows that lack a value, or repeat a time.
        seed: names the sequence of tasks.

    The loss is the mean squared error of the scaled values. Metrics are mase, and mse in the data's own units where the
    scale is global, else in variances of the support; see `kshot.objectives.forecast`.

    Raises:
        ValueError: what is wrong with the file or a value in it, with line and column; a column that is missing; series
            that are too short.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "load.csv"
        >>> rows = [f"meter {m},{t},{m + np.sin(t):.4f}" for m in range(40) for t in range(60)]
        >>> _ = path.write_text("meter,hour,load\n" + "\n".join(rows))
        >>> columns = {"series": "meter", "time": "hour", "value": "load"}
        >>> source = series(path, **columns, context_length=12, horizon=4, shots=2, queries=2)
        >>> task = source.task("train", 0)
        >>> task.support.inputs.shape, task.query.targets.shape
        (torch.Size([2, 12, 1]), torch.Size([2, 4]))
    """
    stride = horizon if stride is None else stride
    if context_length < 1 or horizon < 1 or stride < 1 or not 1 <= season < context_length:
        raise ValueError(
            "context_length, horizon and stride must be at least 1 and the season shorter than the context_length, got "
            f"{context_length=}, {horizon=}, {stride=}, {season=}"
        )
    if (series is None) != (value is None):
        raise ValueError("a long file needs series and value, a wide one neither: name both columns or none")
    if series is None and (covariates or domain):
        raise ValueError("a wide file has no covariates or domain; write it long, a row a series and time")
    split = split or DEFAULT_SPLIT
    found, names = _open(Path(path), Reading(**(reading or {})), time, series, value, covariates, domain, split)
    columns = read_columns(found, {time: (kinds or {}).get(time) or found.kind(time), **dict.fromkeys(names, "number")})
    times, values = columns[time].values, [columns[name].values for name in names]
    if columns[time].kind == "category":
        raise ValueError(f"{found.path}: the time column {time!r} holds words; it needs dates or numbers")
    found.missing(time, np.isnan(times), "a row needs its time")
    if series is None:
        members, times, flat, place = _wide(found, time, names, times, values, bad_rows)
        own = flat[:, None]
    else:
        for name, column in zip(names, values):
            found.missing(name, np.isnan(column), "a row needs it")
        keys = found.keys(series)
        found.missing(series, keys.is_null().to_numpy(), "a row needs one")
        order = np.argsort(times, kind="stable")
        _mark_repeated(found, time, group_rows(keys, found.good, order), times)
        members = group_rows(keys, found.settle(bad_rows), order)
        own, times, place = np.stack(values, 1)[members.flat], times[members.flat], members.flat
    parts = cut_members(members, found, split, domain, kind="group")
    train = np.repeat(np.isin(members.names, list(parts["train"])), members.sizes)
    own = own.astype(np.float64)
    fitted = [moments(column, train) for column in own.T]
    mean, std = (np.array(each) for each in zip(*((mean, std or 1.0) for mean, std in fitted)))
    steps = _steps(members, times, found, place)
    preprocessor = SeriesPreprocessor(
        time=time,
        format=columns[time].format or columns[time].kind,
        series=series,
        columns=tuple(names) if series is not None else (),
        context_length=context_length,
        horizon=horizon,
        stride=stride,
        season=season,
        scale=scale,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        reading=found.reading,
    )
    windows, counts = _windows(members.sizes, context_length + horizon, stride)
    bounds = np.concatenate([[0], counts.cumsum()])
    number = dict(zip(members.names, range(len(members.names))))
    groups: dict[Split, dict[str, np.ndarray]] = {
        part: {name: np.arange(bounds[number[name]], bounds[number[name] + 1]) for name in own_names}
        for part, own_names in parts.items()
    }
    source = SeriesTasks(
        WindowDataset(preprocessor.standardise(own), windows, context_length, horizon),
        groups,
        objective=preprocessor.objective,
        shots=shots,
        queries=queries,
        train_queries=train_queries,
        order="given",
        gap=-(-horizon // stride) - 1,
        on_too_few=on_too_few,
        seed=seed,
        name="series",
        preprocessor=preprocessor,
        left_out=left_out_of(found),
    )
    source.scale, source.steps = scale, steps
    return source


class SeriesTasks(GroupTasks):
    """Tasks of `series`: groups of windows, scaled by the support of their task.

    Attributes:
        scale: "support" or "global".
        steps: what the time from one value to the next is, in words.
    """

    scale: Scale = "global"
    steps: str = ""

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        tasks = super().stack(split, indices)
        if self.scale == "global":
            return tasks
        center_T, spread_T = support_scale(tasks.support)
        return Task(*(scaled(batch, center_T, spread_T) for batch in tasks))

    def pretraining_batch(self, step: int, size: int) -> Batch:
        return TaskSource.pretraining_batch(self, step, size)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"time_steps": self.steps}


def support_scale(support: Batch) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (T,), of all values in the support sets (T, n, …); 1 where nothing moves."""
    values_TnL = torch.cat([support.inputs[..., 0], support.targets], -1)
    weight_Tn = support.weight.to(values_TnL.dtype)
    share_Tn1 = (weight_Tn / weight_Tn.sum(-1, keepdim=True))[..., None] / values_TnL.shape[-1]
    center_T = (values_TnL * share_Tn1).sum((-2, -1))
    variance_T = ((values_TnL - center_T[..., None, None]).square() * share_Tn1).sum((-2, -1))
    moves = variance_T > 1e-24 * center_T.square()
    return center_T, torch.where(moves, variance_T, 1.0).sqrt()


def scaled(batch: Batch, center: Tensor, spread: Tensor) -> Batch:
    """A batch in float32 whose values, but not its covariates, are (x - center) / spread; both (T,)."""
    values = (batch.inputs[..., :1] - center[..., None, None, None]) / spread[..., None, None, None]
    targets = (batch.targets - center[..., None, None]) / spread[..., None, None]
    return Batch(torch.cat([values, batch.inputs[..., 1:]], -1).float(), targets.float(), batch.weight)


class WindowDataset:
    """Windows of series that lie end to end, cut out where they are taken: ((..., C, 1 + V), (..., H)).

    Args:
        values: (points, 1 + V), the value and its covariates; float64 where they are still to be scaled.
        starts: int64 (n,), where each window begins.
        context_length, horizon: C and H.
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray, context_length: int, horizon: int) -> None:
        self.values, self.starts = values, starts
        self._context, self._horizon = np.arange(context_length), np.arange(context_length, context_length + horizon)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        start = self.starts[rows][..., None]
        inputs, targets = self.values[start + self._context], self.values[start + self._horizon, 0]
        return torch.from_numpy(inputs), torch.from_numpy(targets)


@dataclass(frozen=True)
class SeriesPreprocessor:
    """How a series in a file becomes windows, and a forecast values in the series' own units.

    Attributes:
        time: the column of times; `format` says what it holds.
        series: the column that names the series; None for a wide file.
        columns: the value and the covariates; none for a wide file, whose one column beside the time is the value.
        context_length, horizon, stride, season, scale: as in `series`.
        mean, std: of value and covariates in the training series.
        reading: how the file was written.
    """

    time: str
    format: str
    series: str | None
    columns: tuple[str, ...]
    context_length: int
    horizon: int
    stride: int
    season: int
    scale: Scale
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reading: Reading

    @property
    def objective(self) -> Objective:
        """What the tasks ask."""
        return objectives.forecast(self.season, self.std[0] if self.scale == "global" else 1.0)

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Values (..., 1 + V) by the training series; the value is left as it is where the support scales it."""
        mean, std = np.array(self.mean), np.array(self.std)
        if self.scale == "support":
            mean, std = np.r_[0.0, mean[1:]], np.r_[1.0, std[1:]]
        return (values - mean) / std if self.scale == "support" else ((values - mean) / std).astype(np.float32)

    def support(self, path: Path) -> Support:
        """All windows of the one series in a file."""
        values = self._read(path, self.context_length + self.horizon)
        starts, _ = _windows(np.array([len(values)]), self.context_length + self.horizon, self.stride)
        inputs, targets = WindowDataset(values, starts, self.context_length, self.horizon).take(np.arange(len(starts)))
        if self.scale == "global":
            return Support(inputs, targets, {})
        batch = Batch(inputs, targets, torch.ones(len(inputs)))
        center, spread = support_scale(batch)
        batch = scaled(batch, center, spread)
        return Support(batch.inputs, batch.targets, {"center": float(center), "spread": float(spread)})

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tensor:
        """The last context of the one series in a file, (1, C, 1 + V)."""
        inputs = torch.from_numpy(self._read(path, self.context_length)[None, -self.context_length :])
        if self.scale == "global":
            return inputs
        batch = Batch(inputs, torch.zeros(1, self.horizon), torch.ones(1))
        return scaled(batch, torch.tensor(kept["center"]).double(), torch.tensor(kept["spread"]).double()).inputs

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """The steps ahead, and the value forecast for each."""
        center, spread = (kept["center"], kept["spread"]) if self.scale == "support" else (self.mean[0], self.std[0])
        values = prediction.double() * spread + center
        steps = list(range(1, self.horizon + 1)) * len(values)
        return {"step": steps, (self.columns or ("value",))[0]: values.flatten().tolist()}

    def describe(self) -> dict[str, Any]:
        how = "each support's own" if self.scale == "support" else f"{self.mean[0]:.4g} and {self.std[0]:.4g}"
        return {
            "context_length": self.context_length,
            "horizon": self.horizon,
            "stride": self.stride,
            "season": self.season,
            "inputs": {"value": f"less a mean, by a standard deviation: {how}"}
            | {name: f"(x − {m:.4g}) / {s:.4g}" for name, m, s in list(zip(self.columns, self.mean, self.std))[1:]},
        }

    def to_json(self) -> dict[str, Any]:
        return {"kind": "series", **asdict(self), "reading": self.reading._asdict()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SeriesPreprocessor:
        plain: dict[str, Any] = {
            name: tuple(own) if isinstance(own, list) else own for name, own in data.items() if name != "kind"
        }
        return cls(**plain | {"reading": Reading(**data["reading"])})

    def _read(self, path: Path, least: int) -> np.ndarray:
        """The values (points, 1 + V) of the one series in a file, in the order of time."""
        found = open_table(path, self.reading, columns=[self.time, *self.columns] if self.columns else None)
        names = list(self.columns) or [name for name in found.frame.columns if name != self.time]
        if len(names) != 1 and not self.columns:
            raise ValueError(
                f"{path} must hold one series, {self.time} and a column of values; it has {', '.join(names)}"
            )
        columns = read_columns(found, {self.time: self.format, **dict.fromkeys(names, "number")})
        for name, column in columns.items():
            found.missing(name, np.isnan(column.values), "a row needs it")
        found.settle()
        order = np.argsort(columns[self.time].values, kind="stable")
        times = columns[self.time].values[order]
        found.bad(
            self.time, np.isin(np.arange(len(times)), order[1:][np.diff(times) == 0]), "is there twice: give one series"
        )
        found.settle()
        if len(found) < least:
            raise ValueError(f"{path} has {len(found)} values of the series; {least} are needed")
        return self.standardise(np.stack([columns[name].values for name in names], 1)[order])


def _open(
    path: Path,
    reading: Reading,
    time: str,
    series: str | None,
    value: str | None,
    covariates: Sequence[str],
    domain: str | None,
    split: Mapping[str, Any],
) -> tuple[Table, list[str]]:
    """The table, and the names of its columns of numbers."""
    if series is None or value is None:
        found = open_table(path, reading)
        found.need(time)
        return found, [name for name in found.frame.columns if name != time]
    more = [*([domain] if domain else []), *([split["column"]] if "column" in split else [])]
    return open_table(path, reading, columns=[series, time, value, *covariates, *more]), [value, *covariates]


def _wide(
    table: Table, time: str, names: list[str], times: np.ndarray, values: list[np.ndarray], bad_rows: BadRows
) -> tuple[Members, np.ndarray, np.ndarray, np.ndarray]:
    """Series that stand side by side: their places end to end, the times and the values there, and their rows."""
    order = np.argsort(times, kind="stable")
    _mark_repeated(table, time, Members([""], order, np.array([len(order)])), times)
    order = order[table.settle(bad_rows)[order]]
    kept = [column[order] for column in values]
    known = [~np.isnan(column) for column in kept]
    sizes = np.array([own.sum() for own in known])
    if not sizes.all():
        raise ValueError(
            f"{table.path}: column {names[int(np.argmin(sizes))]!r} holds no value; leave it out of the file"
        )
    rows = np.concatenate([order[own] for own in known])
    flat = np.concatenate([column[own] for column, own in zip(kept, known)])
    return Members(names, np.arange(len(flat)), sizes), times[rows], flat, rows


def _mark_repeated(table: Table, time: str, members: Members, times: np.ndarray) -> None:
    """Rows whose series has a value at their time already are bad."""
    own = times[members.flat]
    repeated = np.flatnonzero(np.diff(own) == 0) + 1
    firsts = members.sizes.cumsum()[:-1]
    repeated = repeated[~np.isin(repeated, firsts)]
    where = np.zeros(len(table), bool)
    where[members.flat[repeated]] = True
    table.bad(time, where, "is there twice in one series; keep one value a time")


def _windows(sizes: np.ndarray, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the windows of series that lie end to end begin, the last of each at its end, and how many each has."""
    counts = np.maximum((sizes - length) // stride + 1, 0)
    ends = sizes.cumsum()
    rank_from_last = np.repeat(counts.cumsum(), counts) - 1 - np.arange(counts.sum())
    return np.repeat(ends, counts) - length - stride * rank_from_last, counts


def _steps(members: Members, times: np.ndarray, table: Table, rows: np.ndarray) -> str:
    """What the time from one value to the next is, in words."""
    inside = np.ones(len(times), bool)
    inside[np.concatenate([[0], members.sizes.cumsum()[:-1]])] = False
    steps = np.diff(times, prepend=times[0])[inside]
    if not len(steps):
        return "no series has two values"
    kinds, counts = np.unique(steps, return_counts=True)
    usual = kinds[counts.argmax()]
    if len(kinds) == 1:
        return f"{usual:g} throughout"
    odd = np.flatnonzero(inside)[steps != usual]
    member = members.sizes.cumsum().searchsorted(odd, side="right")
    first = f"the first before {table.place(int(rows[odd[0]]))}, in series {members.names[member[0]]!r}"
    others = f"{len(odd):,} others in {len(np.unique(member)):,} series"
    return f"{usual:g} in {counts.max() / len(steps):.1%} of steps; {others}, {first}"
