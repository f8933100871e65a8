"""Tables in memory, and results of SQL queries, as polars frames. Neither pandas, pyarrow nor datasets is imported.

A run file is text, and cannot hold a table. It holds a name that is made from the table's content (`keep`), under which
the process that was given the table finds it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import polars

KEPT = "memory:"
"""How the names of tables in memory begin."""

_URL = re.compile(r"^[a-z][a-z0-9+_]*://", re.IGNORECASE)
_kept: dict[str, Named] = {}


class TableLike(Protocol):
    """A table in memory.

    It is a DataFrame of pandas or polars, a Table of pyarrow or another object with `__arrow_c_stream__`, a Dataset of
    Hugging Face, a mapping of column names to values, or an array of NumPy with two axes or with named fields.
    """

    def __len__(self) -> int: ...


class Named(NamedTuple):
    """A frame, and what it is called in messages."""

    name: str
    frame: polars.DataFrame


def of_memory(data: Any) -> Named:
    """A table in memory as a polars frame, without a copy where that is possible.

    The columns of an array are named x0, x1, … The index of a pandas DataFrame is not a column. Class labels of a
    Dataset of Hugging Face become their names.

    Raises:
        ValueError: another object; columns without a name, or of the same name; several splits of a data set.

    Example:
        >>> of_memory(np.eye(2)).frame.columns
        ['x0', 'x1']
        >>> of_memory({"shop": ["a", "b"], "sales": [1.5, None]}).frame["sales"].null_count()
        1
    """
    import polars as pl

    module = type(data).__module__.partition(".")[0]
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if isinstance(data, pl.DataFrame):
        return Named("polars DataFrame", data)
    if module == "pandas" and hasattr(data, "columns"):
        return _of_pandas(data)
    if hasattr(data, "to_polars") and hasattr(data, "features"):
        return Named("Hugging Face Dataset", _with_label_names(data.to_polars(), data.features))
    if hasattr(data, "__arrow_c_stream__"):
        return Named(f"{module} {type(data).__name__}", pl.DataFrame(data))
    if isinstance(data, np.ndarray):
        return Named("NumPy array", _of_array(data))
    if isinstance(data, Mapping) and data:
        if any(hasattr(value, "features") for value in data.values()):
            raise ValueError(
                f"a data set of several splits ({', '.join(map(str, data))}): give one, as in data['train'], or all by "
                "datasets.concatenate_datasets(list(data.values()))"
            )
        lengths = {str(name): len(values) for name, values in data.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a table have different lengths: {lengths}")
        return Named("dict of columns", pl.DataFrame([_series(str(name), values) for name, values in data.items()]))
    raise ValueError(
        "a table is a file, a DataFrame of pandas or polars, a Table of pyarrow, a Dataset of Hugging Face, a dict of "
        f"columns or an array with two axes; got {type(data).__module__}.{type(data).__qualname__}"
    )


def is_path(data: Any) -> TypeGuard[Path | str]:
    """Whether it is the path of a file or folder: no table, no URL of a database, and no `$NAME`, which may hold one.

    Example:
        >>> is_path("sales.csv"), is_path("postgresql://host/shop"), is_path("$SALES"), is_path({"x": [1, 2]})
        (True, False, False, False)
    """
    if isinstance(data, str):
        return not (data.startswith((KEPT, "$")) or _URL.match(data))
    return isinstance(data, Path)


def keep(data: TableLike) -> str:
    """Keep a table for `opened`, and return its name; tables of the same content have the same name.

    Example:
        >>> keep({"x": [1, 2]}) == keep({"x": np.array([1, 2])})
        True
    """
    named = of_memory(data)
    content = io.BytesIO()
    named.frame.write_ipc(content)
    name = KEPT + hashlib.sha256(content.getbuffer()).hexdigest()[:16]
    _kept[name] = named
    return name


def opened(data: Any, query: str | None) -> Named:
    """What is no path (`is_path`), as a frame.

    Args:
        data: a table in memory, the name of one that was kept, or a URL as in `of_query`.
        query: in SQL, for a URL.

    Raises:
        ValueError: this process has kept no table of the name; errors of `of_memory` and `of_query`.
    """
    if not isinstance(data, str):
        return of_memory(data)
    if not data.startswith(KEPT):
        return of_query(data, query)
    if data not in _kept:
        raise ValueError(
            f"the table {data} of this run was given in Python, which no file holds: give the same table first by "
            "kshot.data.tables.frames.keep(table), or write it to a file and name that"
        )
    return _kept[data]


def of_query(url: str, query: str | None) -> Named:
    """The result of a query.

    Args:
        url: a URL of SQLAlchemy, such as "sqlite:///shop.db", or `$NAME`, an environment variable that holds it, so
            that no password is written down.
        query: in SQL.

    Raises:
        ValueError: no query, an environment variable that is not set, a driver that is not installed, or an error of
            the database.
    """
    import polars as pl
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    given = os.path.expandvars(url)
    if given.startswith("$"):
        raise ValueError(f"{url}: the environment variable is not set; it holds a path, or the URL of a database")
    try:
        parsed = make_url(given)
    except ArgumentError:
        raise ValueError(f"{url} is no URL of a database, such as postgresql://user@host/name") from None
    if parsed.password and not url.startswith("$"):
        raise ValueError(
            f"{parsed.render_as_string()}: a password in a run file can be read by all who read the file; put the URL "
            "into an environment variable, and give its name, as in path: $SALES_DB"
        )
    name = f"{parsed.get_backend_name()} database {parsed.database or ''}".rstrip()
    if not query:
        raise ValueError(f"{name}: give the rows to read by a query, as in reading: {{query: select * from sales}}")
    if parsed.drivername.startswith("sqlite") and parsed.database and not Path(parsed.database).exists():
        raise ValueError(f"{name}: there is no file {parsed.database}")  # SQLite would make an empty one
    try:
        engine = create_engine(parsed)
        with engine.connect() as connection:
            result = connection.execute(text(query))
            names, rows = list(result.keys()), result.fetchall()
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: the driver {error.name} is not installed: pip install {error.name}") from None
    except SQLAlchemyError as error:
        raise ValueError(f"{name} cannot be read: {str(getattr(error, 'orig', error)).splitlines()[0]}") from None
    engine.dispose()
    _refuse_duplicates(names)
    columns = zip(*rows) if rows else ([] for _ in names)
    return Named(name, pl.DataFrame([_series(column, values) for column, values in zip(names, columns)]))


def _of_pandas(data: Any) -> Named:
    import polars as pl

    if getattr(data.columns, "nlevels", 1) > 1:
        raise ValueError("the columns of a pandas DataFrame have several levels: give each one name")
    names = [str(name) for name in data.columns]
    _refuse_duplicates(names)
    frame = pl.DataFrame([_of_column(name, data.iloc[:, number]) for number, name in enumerate(names)])
    index = [repr(name) for name in data.index.names if name is not None]
    return Named(f"pandas DataFrame{' with the index ' + ', '.join(index) if index else ''}", frame)


def _of_column(name: str, column: Any) -> polars.Series:
    """A column of pandas, whose missing values become null."""
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if getattr(column.dtype, "kind", "O") in "biufmM" and isinstance(column.dtype, np.dtype):
        return _series(name, column.to_numpy())
    missing = column.isna().to_numpy()
    return _series(name, [None if gone else value for value, gone in zip(column.to_list(), missing)])


def _series(name: str, values: Any) -> polars.Series:
    """A column; values of several types become words, unless all are numbers."""
    import polars as pl

    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        if values.ndim != 1:
            raise ValueError(f"column {name!r} has the shape {values.shape}; each column has one value a row")
        if values.dtype.kind in "mM":
            values = values.astype(f"{values.dtype.kind}8[us]")  # polars has no seconds
        return pl.Series(name, values, nan_to_null=values.dtype.kind == "f")
    values = list(values)
    types = {type(value) for value in values if value is not None}
    if len(types) > 1 and not all(issubclass(each, int | float | np.number) for each in types):
        return pl.Series(name, [None if value is None else str(value) for value in values], pl.String)
    return pl.Series(name, values, strict=False, nan_to_null=True)


def _of_array(data: np.ndarray) -> polars.DataFrame:
    import polars as pl

    if data.dtype.names:
        return pl.DataFrame([_series(name, data[name]) for name in data.dtype.names])
    if data.ndim != 2:
        raise ValueError(f"a table is an array with two axes, rows and columns, got the shape {data.shape}")
    return pl.DataFrame([_series(f"x{number}", column) for number, column in enumerate(data.T)])


def _with_label_names(frame: polars.DataFrame, features: Mapping[str, Any]) -> polars.DataFrame:
    import polars as pl

    named = {name: list(feature.names) for name, feature in features.items() if hasattr(feature, "int2str")}
    return frame.with_columns(
        pl.col(name).replace_strict(list(range(len(names))), names, default=None, return_dtype=pl.String)
        for name, names in named.items()
    )


def _refuse_duplicates(names: list[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"two columns are named {twice[0]!r}; rename one")
