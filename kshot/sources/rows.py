"""What sources of tables share: rows by group or class, their splits and domains, and the order of time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kshot.data.tables.columns import Raw, read_columns
from kshot.data.tables.frames import TableLike
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, Table
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.splitting import DEFAULT_SPLIT, cut_rows
from kshot.types import Split

BadRows = Literal["error", "drop"]


class Members(NamedTuple):
    """The groups or classes of a table: member g has the rows `flat[starts[g] : starts[g] + sizes[g]]`."""

    names: list[str]
    flat: np.ndarray
    sizes: np.ndarray

    def only(self, mask: np.ndarray) -> Members:
        """Without the rows that a mask (rows of the table,) excludes, and without members that have no others."""
        keep = mask[self.flat]
        if keep.all():
            return self
        sizes = np.bincount(np.repeat(np.arange(len(self.sizes)), self.sizes)[keep], minlength=len(self.sizes))
        names = [name for name, size in zip(self.names, sizes.tolist()) if size]
        return Members(names, self.flat[keep], sizes[sizes > 0])

    def items(self) -> dict[str, np.ndarray]:
        return dict(zip(self.names, np.split(self.flat, self.sizes.cumsum()[:-1])))


def group_rows(keys: Any, mask: np.ndarray, order: np.ndarray | None = None) -> Members:
    """The rows of each key (n,), a polars Series, without those that a mask (n,) excludes.

    `order` are the row numbers (n,), such as by time; by default rows are in the order of the table.
    """
    import polars as pl

    rows = np.arange(len(keys), dtype=np.uint32) if order is None else order
    if order is not None or not mask.all():
        rows = rows[mask[rows]]
        keys = keys.gather(rows)
    grouped = pl.DataFrame({"key": keys, "row": rows}).group_by("key", maintain_order=True).agg("row")
    flat, sizes = grouped["row"].explode().to_numpy(), grouped["row"].list.len().to_numpy()
    return Members(grouped["key"].cast(pl.String).to_list(), flat.astype(np.int64), sizes.astype(np.int64))


def cut_members(
    members: Members, table: Table, split: Mapping[str, Any], domain: str | None, *, kind: str
) -> dict[Split, dict[str, np.ndarray]]:
    """Split groups or classes: for each split, name to rows."""
    values = distinct_values(members, table, split["column"]) if "column" in split else None
    domains = domains_of(members, table, domain) if "heldout" in split and domain else None
    return cut_rows(members.items(), split, kind=kind, values=values, domains=domains)


def domains_of(members: Members, table: Table, column: str) -> dict[str, str]:
    """The domain of each group or class; ValueError if the rows of one have several domains, or none."""
    domains = distinct_values(members, table, column)
    for name, values in domains.items():
        if len(values) != 1 or None in values:
            listed = ", ".join(sorted(map(str, values))[:3])
            raise ValueError(
                f"{table.path}, column {column!r}: the rows of {name!r} have {listed}; they need one and the same"
            )
    return {name: values[0] for name, values in domains.items()}


def distinct_values(members: Members, table: Table, column: str) -> dict[str, list[str]]:
    """The distinct values of a column in the rows of each member, sorted."""
    import polars as pl

    number = np.repeat(np.arange(len(members.names)), members.sizes)
    frame = pl.DataFrame({"member": number, "value": table.labels(column).gather(members.flat)})
    values = frame.group_by("member").agg(pl.col("value").unique().sort()).sort("member")
    return dict(zip(members.names, values["value"].to_list()))


def times_of(table: Table, time: str, kinds: Mapping[str, str]) -> Raw:
    """A column of dates, as seconds since 1970, or of numbers; rows without one are bad."""
    (raw,) = read_columns(table, {time: kinds.get(time) or table.kind(time)}).values()
    if raw.kind not in ("number", "date"):
        raise ValueError(f"{table.path}: the time column {time!r} holds words; it needs dates or numbers")
    table.missing(time, np.isnan(raw.values), "a row needs its time")
    return raw


def left_out_of(table: Table) -> dict[str, int]:
    """The number of bad rows of a table, by reason; empty if there are none."""
    count, first = table.dropped["rows"], table.dropped["first"]
    return {f"bad rows, the first: {first[0]}": count} if count else {}


def unit_name(column: str) -> str:
    """The noun for the groups of a column, for reports.

    Example:
        >>> unit_name("patient_id"), unit_name("Subject"), unit_name("id")
        ('patient', 'subject', 'id')
    """
    return re.sub(r"[\s_.-]*(?<![a-z0-9])(id|nr|no|code)$", "", column.lower().replace("_", " ")).strip() or column


class PlainTable(GroupTasks):
    """Tasks of random rows of one table: the rows of each split are one group. The units are the query rows."""

    unit = "row"

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The query rows (T, Q) of each task, which other tasks share; -1 where it has fewer."""
        pool, (_, positions_TK, shots_T, taken_T) = self._pool(split), self._drawn(split, indices)
        columns = shots_T[:, None] + np.arange(self.queries[split].high)
        real = columns < taken_T[:, None]
        return np.where(real, pool.flat[np.take_along_axis(positions_TK, np.where(real, columns, 0), 1)], -1)

    def unit_names(self, split: Split) -> Sequence[str]:
        return [f"row {number}" for number in range(1, len(self.examples) + 1)]


def split_of_rows(split: Mapping[str, Any]) -> Mapping[str, Any]:
    """The split of a table without groups or classes: of its rows, by default 70, 15 and 15 %."""
    if split in (None, {}, DEFAULT_SPLIT):
        return {"rows": [0.7, 0.15, 0.15]}
    if "rows" not in split or set(split) > {"rows", "seed"}:
        raise ValueError(
            f"a table without group or classes is split by its rows, as in split: {{rows: [0.7, 0.15, 0.15]}}; got "
            f"{dict(split)}"
        )
    return split


def refuse_several_groups(path: Path | TableLike, group: str, reading: Reading) -> None:
    """Raise ValueError if a support set has the column of groups, and rows of several."""
    try:
        table = open_table(path, reading, columns=[group])
    except ValueError:  # it has no such column
        return
    groups = table.labels(group).drop_nulls().unique(maintain_order=True)
    if len(groups) > 1:
        named = ", ".join(map(repr, groups[:4].to_list())) + (", …" if len(groups) > 4 else "")
        raise ValueError(
            f"{table.path}: a support set is of one {group}, and these rows are of {len(groups)}: {named}. Adapt to "
            "each by itself"
        )
