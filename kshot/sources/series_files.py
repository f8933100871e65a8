"""Files of series, in three forms: a row for each series and time, a column for each series, or a row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kshot.data.tables.columns import read_columns
from kshot.data.tables.frames import TableLike
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, Table
from kshot.sources.rows import BadRows, Members, group_rows
from kshot.sources.seasons import find_season


class SeriesFile(NamedTuple):
    """The series of a file, concatenated, each in the order of time.

    Attributes:
        table: the file; splits by column and domains are read from it.
        members: the series, whose `flat` are rows of the table, or numbers of the values of a wide file.
        times: of the values, (points,): numbers, or seconds since 1970.
        values: value and covariates, float64 (points, 1 + V).
        rows: of the values in the table, (points,).
        format: type of the column of times.
        dated: whether times are dates.
    """

    table: Table
    members: Members
    times: np.ndarray
    values: np.ndarray
    rows: np.ndarray
    format: str
    dated: bool

    def season(self, names: Sequence[str], longest: int) -> int:
        """The season of the series with the given names, found in their values and, for dates, the step of time."""
        ends = self.members.sizes.cumsum()[:-1]
        cut = zip(np.split(self.values[:, 0], ends), np.split(self.times, ends))
        of_series = dict(zip(self.members.names, cut))
        chosen = [of_series[name] for name in names]
        steps = np.concatenate([np.diff(times) for _, times in chosen])
        step = float(np.median(steps)) if self.dated and len(steps) else None
        return find_season([values for values, _ in chosen], longest, step)

    def steps(self) -> str:
        """A description of the time between consecutive values."""
        return _steps(self.members, self.times, self.table, self.rows)


def read_series(
    path: Path | str | TableLike,
    reading: Reading,
    *,
    time: str | None,
    series: str | None,
    value: str | None,
    covariates: Sequence[str],
    domain: str | None,
    column: str | None,
    kinds: Mapping[str, str],
    bad_rows: BadRows,
) -> SeriesFile:
    """Read a file of series; the arguments are those of `kshot.sources.series`, and `column` that of the split.

    Raises:
        ValueError: columns that fit none of the three forms, and errors in the file.
    """
    _check_columns(time, series, value, covariates, domain)
    others = [name for name in (domain, column) if name]
    if time is None:
        table = open_table(path, reading)
        table.need(*[name for name in (series, *others) if name])
        names = [name for name in table.frame.columns if name not in (series, *others)]
        columns = read_columns(table, dict.fromkeys(names, "number"))
        values = [columns[name].values for name in names]
        return SeriesFile(table, *_in_rows(table, series, values, bad_rows), "number", False)
    if series is None or value is None:
        table = open_table(path, reading)
        table.need(time)
        names = [name for name in table.frame.columns if name != time]
    else:
        names = [value, *covariates]
        table = open_table(path, reading, columns=[series, time, *names, *others])
    columns = read_columns(table, {time: kinds.get(time) or table.kind(time), **dict.fromkeys(names, "number")})
    times, values = columns[time].values, [columns[name].values for name in names]
    if columns[time].kind == "category":
        raise ValueError(f"{table.path}: the time column {time!r} holds words; it needs dates or numbers")
    about = columns[time].format or columns[time].kind, columns[time].kind == "date"
    table.missing(time, np.isnan(times), "a row needs its time")
    if series is None:
        return SeriesFile(table, *_wide(table, time, names, times, values, bad_rows), *about)
    for name, each in zip(names, values):
        table.missing(name, np.isnan(each), "a row needs it")
    keys = table.keys(series)
    table.missing(series, keys.is_null().to_numpy(), "a row needs one")
    order = np.argsort(times, kind="stable")
    _mark_repeated(table, time, group_rows(keys, table.good, order), times)
    members = group_rows(keys, table.settle(bad_rows), order)
    rows = members.flat
    return SeriesFile(table, members, times[rows], np.stack(values, 1)[rows].astype(np.float64), rows, *about)


def _check_columns(
    time: str | None, series: str | None, value: str | None, covariates: Sequence[str], domain: str | None
) -> None:
    """Raise ValueError if the columns fit none of the three forms of files."""
    if time is None:
        if value is not None or covariates:
            raise ValueError(
                "without time, each row is a series and all its columns are values: leave out value and covariates, or "
                "name the column of times"
            )
        return
    if (series is None) != (value is None):
        raise ValueError("a long file needs series and value, a wide one neither: name both columns or none")
    if series is None and (covariates or domain):
        raise ValueError("a wide file has no covariates or domain; write it long, with a row per series and time")


def _in_rows(
    table: Table, series: str | None, values: list[np.ndarray], bad_rows: BadRows
) -> tuple[Members, np.ndarray, np.ndarray, np.ndarray]:
    """The series of a file with one in each row, concatenated: members, positions, values, and rows of the table."""
    if series is not None:
        keys = table.keys(series)
        table.missing(series, keys.is_null().to_numpy(), "a row needs one")
        table.bad(series, ~keys.is_first_distinct().to_numpy(), "is there twice; keep one row for each series")
    good = table.settle(bad_rows)
    cells = np.stack(values, 1)[good]
    rows = np.flatnonzero(good)
    known = ~np.isnan(cells)
    names = [f"row {row + 1}" for row in rows] if series is None else [str(keys[int(row)]) for row in rows]
    if not known.any(1).all():
        raise ValueError(f"{table.path}: series {names[int(np.argmin(known.any(1)))]!r} holds no value; leave it out")
    sizes = known.sum(1)
    of_point = np.repeat(rows, sizes)
    times = np.nonzero(known)[1].astype(np.float64)
    return Members(names, of_point, sizes), times, cells[known][:, None].astype(np.float64), of_point


def _wide(
    table: Table, time: str, names: list[str], times: np.ndarray, values: list[np.ndarray], bad_rows: BadRows
) -> tuple[Members, np.ndarray, np.ndarray, np.ndarray]:
    """The series of a wide file, concatenated: members, times, values, and rows of the table."""
    order = np.argsort(times, kind="stable")
    _mark_repeated(table, time, Members([""], order, np.array([len(order)])), times)
    order = order[table.settle(bad_rows)[order]]
    sorted_values = [column[order] for column in values]
    known = [~np.isnan(column) for column in sorted_values]
    sizes = np.array([mask.sum() for mask in known])
    if not sizes.all():
        raise ValueError(
            f"{table.path}: column {names[int(np.argmin(sizes))]!r} holds no value; leave it out of the file"
        )
    rows = np.concatenate([order[mask] for mask in known])
    flat = np.concatenate([column[mask] for column, mask in zip(sorted_values, known)])
    return Members(names, np.arange(len(flat)), sizes), times[rows], flat[:, None].astype(np.float64), rows


def _mark_repeated(table: Table, time: str, members: Members, times: np.ndarray) -> None:
    """Mark rows as bad whose series has a value at their time already."""
    repeated = np.flatnonzero(np.diff(times[members.flat]) == 0) + 1
    repeated = repeated[~np.isin(repeated, members.sizes.cumsum()[:-1])]
    mask = np.zeros(len(table), bool)
    mask[members.flat[repeated]] = True
    table.bad(time, mask, "is there twice in one series; keep one value a time")


def _rounded(steps: np.ndarray) -> np.ndarray:
    """Steps that differ by less than a millionth of the median, as one."""
    unit = 1e-6 * max(float(np.median(np.abs(steps))), np.finfo(np.float64).tiny)
    return np.where(np.abs(steps) < 1e9 * unit, np.round(steps / unit) * unit, steps)


def _steps(members: Members, times: np.ndarray, table: Table, rows: np.ndarray) -> str:
    """A description of the time between consecutive values."""
    inside = np.ones(len(times), bool)
    inside[np.concatenate([[0], members.sizes.cumsum()[:-1]])] = False
    steps = np.diff(times, prepend=times[0])[inside]
    if not len(steps):
        return "no series has two values"
    steps = _rounded(steps)  # times in fractions of a year, for example, are rounded
    distinct, counts = np.unique(steps, return_counts=True)
    usual = distinct[counts.argmax()]
    if len(distinct) == 1:
        return f"{usual:g} throughout"
    irregular = np.flatnonzero(inside)[steps != usual]
    member = members.sizes.cumsum().searchsorted(irregular, side="right")
    first = f"the first before {table.place(int(rows[irregular[0]]))}, in series {members.names[member[0]]!r}"
    others = f"{len(irregular):,} others in {len(np.unique(member)):,} series"
    return f"{usual:g} in {counts.max() / len(steps):.1%} of steps; {others}, {first}"
