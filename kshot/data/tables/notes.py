"""What is perhaps not meant as it is understood: row numbers, outliers, mixed columns, classes written as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kshot.data.tables.columns import Raw
from kshot.data.tables.moments import extremes
from kshot.data.tables.table import Table

FEWEST_NUMBERED = 20
"""Rows of a table in which a column that numbers them is recognised."""


def row_numbers(raw: Mapping[str, Raw]) -> set[str]:
    """The columns that are 0, 1, 2, … or 1, 2, 3, …, as that which a DataFrame writes as its index."""
    numbers = {name: column.values for name, column in raw.items() if column.kind == "number"}
    return {
        name
        for name, values in numbers.items()
        if len(values) >= FEWEST_NUMBERED and values[0] in (0, 1) and (np.diff(values) == 1).all()
    }


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
