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
from annotated_types import Ge, Le
from torch import Tensor

from kshot import objectives
from kshot.annotations import EMPTY, MOST, PositiveInt, Size
from kshot.argument_checks import check_arguments
from kshot.data.tables.columns import read_columns
from kshot.data.tables.frames import TableLike
from kshot.data.tables.moments import moments
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, ReadingOptions
from kshot.objectives import Objective
from kshot.sources.rows import BadRows, cut_members, left_out_of
from kshot.sources.series_files import read_series
from kshot.supplied import Seed
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.pool import OnTooFew
from kshot.tasks.preprocessor import Preprocessor, Support
from kshot.tasks.source import TaskSource
from kshot.tasks.splitting import DEFAULT_SPLIT
from kshot.types import Batch, Split, Task

Scale = Literal["support", "level", "global"]


@check_arguments
def series(
    path: Path | str | TableLike,
    *,
    time: str | None = None,
    series: str | None = None,
    value: str | None = None,
    covariates: Sequence[str] = (),
    context_length: Annotated[int, Ge(2), Le(MOST)] = 24,
    horizon: PositiveInt = 6,
    stride: PositiveInt | None = None,
    season: PositiveInt | None = None,
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
    seed: Seed = 0,
) -> SeriesTasks:
    r"""Forecast a series from a few windows of its past.

    A window is C = `context_length` steps and the H = `horizon` steps that follow. A task is a series: the support are
    consecutive windows, the query later ones whose horizons begin after the last horizon of the support. Inputs are
    float32 (n, C, 1 + V), the value before the covariates; targets (n, H).

    The loss is the mean squared error of scaled values. Metrics are mase, and mse in the units of the data for a global
    scale, else in variances of the support; see `kshot.objectives.forecast`.

    Args:
        path: a table, in a file or in memory, as of `table`.
        time: the column of dates or numbers that orders a series. Without it each row is a series, as in the files of
            the M4 competition: `series` is the column that names it, if there is one, and the other columns hold its
            values in their order; empty cells were not observed.
        series, value: the columns that name the series and hold its values, in a long file of a row per series and
            time. Without them the file is wide: each column other than `time` is a series, and empty cells were not
            observed.
        covariates: numeric columns that are known for the context.
        context_length, horizon: C and H.
        stride: steps between the starts of windows, `horizon` by default.
        season: number of steps of a season, fewer than C: 24 for hours with a daily rhythm, 1 for none. By default it
            is found in the training series, see `kshot.sources.seasons`; `describe` says which.
        scale: "support" standardises values by mean and standard deviation of the task's support, so that series of
            any scale are alike; "level" divides by the mean of its absolute values, which keeps positive values
            positive, for seasons and errors that grow with the level; "global" standardises by the training series, if
            the level of a series is informative. Covariates are always standardised by the training series.
        kinds: the format of the dates in `time`, as in {day: "%d/%m/%Y"}.
        shots, queries, train_queries: number of windows.
        bad_rows: "error", or "drop" to leave out rows without a value, or of a repeated time.
        domain, split, reading, on_too_few, seed: as in `table`.

    Raises:
        ValueError: an error in the file, with line and column; a missing column; series that are too short.

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
    if season is not None and season >= context_length:
        raise ValueError(f"the season must be shorter than the context_length, got {context_length=}, {season=}")
    split = split or DEFAULT_SPLIT
    read = read_series(
        path, Reading(**(reading or {})), time=time, series=series, value=value, covariates=covariates, domain=domain,
        column=split.get("column"), kinds=kinds or {}, bad_rows=bad_rows,
    )  # fmt: skip
    members, table, values = read.members, read.table, read.values
    parts = cut_members(members, table, split, domain, kind="group")
    train = np.repeat(np.isin(members.names, list(parts["train"])), members.sizes)
    fitted = [moments(column, train) for column in values.T]
    if season is None:
        season = read.season(list(parts["train"]), context_length - 1)
    preprocessor = SeriesPreprocessor(
        time=time, format=read.format, series=series, columns=(value, *covariates) if value is not None else (),
        context_length=context_length, horizon=horizon, stride=stride, season=season, scale=scale,
        mean=tuple(float(mean) for mean, _ in fitted), std=tuple(float(std or 1.0) for _, std in fitted),
        reading=table.reading,
    )  # fmt: skip
    starts, counts = _windows(members.sizes, context_length + horizon, stride)
    windows = dict(zip(members.names, np.split(np.arange(len(starts)), counts.cumsum()[:-1])))
    return SeriesTasks(
        WindowDataset(preprocessor.standardise(values), starts, context_length, horizon),
        {part: {name: windows[name] for name in groups} for part, groups in parts.items()},
        preprocessor=preprocessor, objective=preprocessor.objective, steps=read.steps(),
        shots=shots, queries=queries, train_queries=train_queries, on_too_few=on_too_few, seed=seed,
        left_out=left_out_of(table),
    )  # fmt: skip


class SeriesTasks(GroupTasks):
    """Tasks of `series`: groups of windows, scaled by the support of their task; `steps` describes their times."""

    forecasts = True
    unit = "series"

    def __init__(self, *args: Any, preprocessor: SeriesPreprocessor, steps: str, **options: Any) -> None:
        gap = -(-preprocessor.horizon // preprocessor.stride) - 1
        self.examples_are = (
            f"windows of {preprocessor.context_length + preprocessor.horizon} steps (context_length + horizon)"
        )
        super().__init__(*args, preprocessor=preprocessor, order="given", gap=gap, name="series", **options)
        self.scale, self.steps = preprocessor.scale, steps

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        tasks = super().stack(split, indices)
        if self.scale == "global":
            return tasks
        center_T, spread_T = support_scale(tasks.support, self.scale)
        return Task(*(scaled(batch, center_T, spread_T) for batch in tasks))

    def pretraining_batch(self, step: int, size: int) -> Batch:
        return TaskSource.pretraining_batch(self, step, size)

    def training_groups(self, most: int) -> list[Batch]:
        """The windows of up to `most` training series, each scaled as a support set of all of its windows."""
        groups = super().training_groups(most)
        if self.scale == "global":
            return groups
        return [scaled(batch, *support_scale(batch, self.scale)) for batch in groups]

    def ordered_targets(self, split: Split) -> list[np.ndarray]:
        return []  # series are sorted by time, and may well rise throughout

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"time_steps": self.steps}


def support_scale(support: Batch, scale: Scale = "support") -> tuple[Tensor, Tensor]:
    """Center and spread, each (T,), of all values in support sets (T, n, …).

    They are mean and standard deviation, 1 if values are constant; for "level" 0 and the mean of absolute values.
    """
    values_TnL = torch.cat([support.inputs[..., 0], support.targets], -1)
    weight_Tn = support.weight.to(values_TnL.dtype)
    share_Tn1 = (weight_Tn / weight_Tn.sum(-1, keepdim=True))[..., None] / values_TnL.shape[-1]
    if scale == "level":
        level_T = (values_TnL.abs() * share_Tn1).sum((-2, -1))
        return torch.zeros_like(level_T), torch.where(level_T > 0, level_T, 1.0)
    center_T = (values_TnL * share_Tn1).sum((-2, -1))
    variance_T = ((values_TnL - center_T[..., None, None]).square() * share_Tn1).sum((-2, -1))
    varies = variance_T > 1e-24 * center_T.square()
    return center_T, torch.where(varies, variance_T, 1.0).sqrt()


def scaled(batch: Batch, center: Tensor, spread: Tensor) -> Batch:
    """The batch in float32, with values, but not covariates, as (x - center) / spread; both (T,)."""
    values = (batch.inputs[..., :1] - center[..., None, None, None]) / spread[..., None, None, None]
    targets = (batch.targets - center[..., None, None]) / spread[..., None, None]
    return Batch(torch.cat([values, batch.inputs[..., 1:]], -1).float(), targets.float(), batch.weight)


class WindowDataset:
    """Windows of concatenated series, extracted when they are taken: ((..., C, 1 + V), (..., H)).

    `values` (points, 1 + V) are float64 if they are still to be scaled; `starts` (n,) are those of the windows.
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
class SeriesPreprocessor(Preprocessor):
    """Converts a series in a file into windows, and a forecast into the units of the series.

    Attributes:
        time, series, context_length, horizon, stride, season, scale: as in `series`.
        format: type of the column `time`.
        columns: value and covariates; empty for a wide file, whose one column beside the time is the value, and where
            each row is a series.
        mean, std: of value and covariates in the training series.
        reading: format of the file.
    """

    time: str | None
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
        return objectives.forecast(self.season, self.std[0] if self.scale == "global" else 1.0)

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Values (..., 1 + V) standardised by the training series, but for a value that the support scales."""
        mean, std = np.array(self.mean), np.array(self.std)
        if self.scale == "global":
            return ((values - mean) / std).astype(np.float32)
        return (values - np.r_[0.0, mean[1:]]) / np.r_[1.0, std[1:]]

    def support(self, path: Path | TableLike) -> Support:
        """All windows of one series."""
        values = self._read(path, self.context_length + self.horizon)
        starts, _ = _windows(np.array([len(values)]), self.context_length + self.horizon, self.stride)
        inputs, targets = WindowDataset(values, starts, self.context_length, self.horizon).take(np.arange(len(starts)))
        if self.scale == "global":
            return Support(inputs, targets, {})
        batch = Batch(inputs, targets, torch.ones(len(inputs)))
        center, spread = support_scale(batch, self.scale)
        batch = scaled(batch, center, spread)
        return Support(batch.inputs, batch.targets, {"center": float(center), "spread": float(spread)})

    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tensor:
        """The last context of one series, (1, C, 1 + V)."""
        inputs = torch.from_numpy(self._read(path, self.context_length)[None, -self.context_length :])
        if self.scale == "global":
            return inputs
        batch = Batch(inputs, torch.zeros(1, self.horizon), torch.ones(1))
        return scaled(batch, torch.tensor(kept["center"]).double(), torch.tensor(kept["spread"]).double()).inputs

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """The forecast value of each step ahead."""
        center, spread = (self.mean[0], self.std[0]) if self.scale == "global" else (kept["center"], kept["spread"])
        values = prediction.double() * spread + center
        steps = list(range(1, self.horizon + 1)) * len(values)
        return {"step": steps, (self.columns or ("value",))[0]: values.flatten().tolist()}

    def describe(self) -> dict[str, Any]:
        fitted = "of each support" if self.scale == "support" else f"{self.mean[0]:.4g} and {self.std[0]:.4g}"
        about = f"standardised by mean and standard deviation: {fitted}"
        inputs = {"value": "divided by the mean absolute value of each support" if self.scale == "level" else about}
        for name, m, s in list(zip(self.columns, self.mean, self.std))[1:]:
            inputs[name] = f"(x − {m:.4g}) / {s:.4g}"
        sizes = {name: getattr(self, name) for name in ("context_length", "horizon", "stride", "season")}
        return sizes | {"inputs": inputs}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "series", **asdict(self), "reading": self.reading._asdict()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SeriesPreprocessor:
        fields = {name: value for name, value in data.items() if name != "kind"}
        lists = {name: tuple(data[name]) for name in ("columns", "mean", "std")}
        return cls(**fields | lists | {"reading": Reading(**data["reading"])})

    def _read(self, path: Path | TableLike, least: int) -> np.ndarray:
        """The values (points, 1 + V) of the one series in a file, at least `least`, in the order of time."""
        if self.time is None:
            return self._read_row(path, least)
        table = open_table(path, self.reading, columns=[self.time, *self.columns] if self.columns else None)
        names = list(self.columns) or [name for name in table.frame.columns if name != self.time]
        if len(names) != 1 and not self.columns:
            raise ValueError(
                f"{table.path} must hold one series, {self.time} and a column of values; it has {', '.join(names)}"
            )
        columns = read_columns(table, {self.time: self.format, **dict.fromkeys(names, "number")})
        for name, column in columns.items():
            table.missing(name, np.isnan(column.values), "a row needs it")
        table.settle()
        order = np.argsort(columns[self.time].values, kind="stable")
        repeated = order[1:][np.diff(columns[self.time].values[order]) == 0]
        table.bad(self.time, np.isin(np.arange(len(order)), repeated), "is there twice: give one series")
        table.settle()
        return self._enough(table.path, np.stack([columns[name].values for name in names], 1)[order], least)

    def _read_row(self, path: Path | TableLike, least: int) -> np.ndarray:
        """As `_read`, where each row of a file is a series."""
        table = open_table(path, self.reading)
        if len(table) != 1:
            raise ValueError(
                f"{table.path} must hold one series, a row of values in the order of time; it has {len(table)}"
            )
        names = [name for name in table.frame.columns if name != self.series]
        columns = read_columns(table, dict.fromkeys(names, "number"))
        table.settle()
        values = np.concatenate([columns[name].values for name in names])
        return self._enough(table.path, values[~np.isnan(values), None], least)

    def _enough(self, path: Path, values: np.ndarray, least: int) -> np.ndarray:
        if len(values) < least:
            raise ValueError(f"{path} has {len(values)} values of the series; {least} are needed")
        return self.standardise(values)


def _windows(sizes: np.ndarray, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts of the windows of concatenated series, the last window at the end of its series; windows per series."""
    counts = np.maximum((sizes - length) // stride + 1, 0)
    rank_from_last = np.repeat(counts.cumsum(), counts) - 1 - np.arange(counts.sum())
    return np.repeat(sizes.cumsum(), counts) - length - stride * rank_from_last, counts
