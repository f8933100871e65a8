"""Encoded rows of a table as a reader knows them: the inverse of `Columns.encode`, as far as there is one."""

from __future__ import annotations

import numpy as np

from kshot.data.tables.columns import ONE_HOT, Column, Columns, Values

MISSING = "missing"


def shown(columns: Columns, values: Values) -> dict[str, list[str]]:
    """The text of each column for rows of values (n, ...), by its name; without columns that have no inverse.

    Numbers are as in the file, but for those that were clipped; a word that is not in the training rows is "unknown".

    Example:
        >>> import polars
        >>> from pathlib import Path
        >>> from kshot.data.tables.columns import read_columns
        >>> from kshot.data.tables.table import Table
        >>> table = Table(Path("shop.parquet"), polars.DataFrame({"price": [1.0, 3.5, None], "kind": ["a", "b", "b"]}))
        >>> raw = read_columns(table, {"price": "number", "kind": "category"})
        >>> columns = Columns.fit(raw, np.array([True, True, True]))
        >>> shown(columns, columns.encode(raw))
        {'price': ['1', '3.5', 'missing'], 'kind': ['unknown', 'b', 'b']}
    """
    used = [column for column in columns.columns if not column.left_out]
    numbers = [column for column in used if column.kind in ("number", "boolean")]
    words = [column for column in used if column.kind == "category"]
    dates = [column for column in used if column.kind == "date"]
    texts = {column.name: _numbers(column, values.numbers[:, index]) for index, column in enumerate(numbers)}
    texts |= {column.name: _words(column, values.words[:, index]) for index, column in enumerate(words)}
    texts |= {column.name: _dates(column, values.dates[:, index]) for index, column in enumerate(dates)}
    start = 0
    for column in used:
        if column.kind in ("set", "text"):
            width = len(column.features)
            if column.kind == "set" and len(column.words) <= ONE_HOT:
                texts[column.name] = _sets(column, values.derived[:, start : start + width])
            start += width
    return {column.name: texts[column.name] for column in used if column.name in texts}


def _numbers(column: Column, values: np.ndarray) -> list[str]:
    real = values.astype(float) * column.std + column.mean
    real = np.where(np.abs(real) < 1e-6 * (abs(column.mean) + column.std), 0.0, real)  # rounding of what was 0
    if column.kind == "boolean":
        return [MISSING if np.isnan(value) else "yes" if value > 0.5 else "no" for value in real]
    return [MISSING if np.isnan(value) else f"{value:.5g}" for value in real]


def _words(column: Column, values: np.ndarray) -> list[str]:
    return [[*column.words, "unknown", MISSING][index] for index in values.tolist()]


def _dates(column: Column, values: np.ndarray) -> list[str]:
    return [
        MISSING
        if np.isnan(value)
        else str(np.datetime64(round(value), "s")).replace("T", " ")[: 16 if column.clock else 10]
        for value in values.tolist()
    ]


def _sets(column: Column, values: np.ndarray) -> list[str]:
    return [", ".join(np.array(column.words)[row > 0].tolist()) for row in values]
