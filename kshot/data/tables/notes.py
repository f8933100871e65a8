"""What is perhaps not meant as it is understood: row numbers, outliers, mixed columns, classes written as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kshot.data.tables.columns import Raw
from kshot.data.tables.moments import extremes
from kshot.data.tables.table import Table

FEWEST_NUMBERED = 20
"""Rows of a table in which a column that numbers them is recognised."""

NUMBERINGS = {"index", "row", "rowid", "row_id", "rowname", "rownames", "row_names", "row.names", "__index_level_0__"}
"""Names of columns, in small letters, that number the rows of the table from which these were taken."""


def row_numbers(raw: Mapping[str, Raw]) -> set[str]:
    """The columns that number the rows, as the index that pandas or R writes, of this table or of one with more rows.

    That is a column of whole numbers from about 0, that increases from row to row, mostly by 1; or one of different
    whole numbers in any order that has one of the `NUMBERINGS` as a name, or one that pandas gives to a column without.
    """
    numbers = {name: column.values for name, column in raw.items() if column.kind == "number"}
    return {name for name, values in numbers.items() if _numbers_rows(name.casefold(), values)}


def _numbers_rows(name: str, values: np.ndarray) -> bool:
    if len(values) < FEWEST_NUMBERED or not (values == np.floor(values)).all():
        return False
    if name in NUMBERINGS or name.startswith("unnamed:"):
        return len(np.unique(values)) == len(values)
    steps = np.diff(values)
    return bool(0 <= values[0] < FEWEST_NUMBERED and (steps > 0).all() and (steps == 1).mean() >= 0.5)


def notes_on_targets(table: Table, names: Sequence[str], targets: np.ndarray) -> list[str]:
    """Sentences about numeric targets that are perhaps classes."""
    notes = []
    for name, column in zip(names, targets.T):
        if len(values := np.unique(column[~np.isnan(column)])) == 2:
            notes.append(
                f"{table.path}, target {name!r}: it has two values, {values[0]:g} and {values[1]:g}, and is predicted "
                "as a number. If they are classes, write target_type: classification, else target_type: regression"
            )
    return notes


def notes_on_columns(
    table: Table, raw: Mapping[str, Raw], kinds: Mapping[str, str], given: Mapping[str, str]
) -> list[str]:
    """Sentences about columns that were perhaps not understood as they are meant."""
    notes = []
    for name, column in raw.items():
        if column.kind == "number" and (far := extremes(column.values, ~np.isnan(column.values))).any():
            value, place = column.values[far][0], table.place(int(far.argmax()), name)
            notes.append(
                f"{place}: {value:g} is more than 100 times as far from the median as the other values are; it is left "
                f"out of their scale and clipped ({far.sum():,} such). Correct it if it is an error"
            )
        share = table.share_of_numbers(name) if kinds[name] == "category" and name not in given else 0.0
        if share > 0.5:
            notes.append(
                f"{table.path}, column {name!r}: it is treated as words, though {share:.0%} of its values are numbers. "
                f"Correct the others or list them in reading.missing, or confirm by kinds: {{{name}: category}}"
            )
    return notes
