"""Tasks from a Hugging Face dataset on disk: as `save_to_disk` wrote it, or as it lies on the hub in Parquet files."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from kshot.data.cache import cache_folder, scratch_folder
from kshot.data.tables.table import Table, named_errors
from kshot.data.text_files import read_json
from kshot.sources.images import images
from kshot.tasks.source import TaskSource

if TYPE_CHECKING:
    import polars

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
         "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}  # fmt: skip
"""The words in the names of files and folders that tell the part they belong to."""

_VERSION = 1  # counts the changes to what is made of a data set: part of the cache's name


def from_hf(
    path: Path | str,
    make: Callable[..., TaskSource],
    *,
    parts: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> TaskSource:
    """Make tasks of a Hugging Face dataset on disk, by one of the sources of `kshot.tasks`.

    The data set is a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or one that holds Parquet
    or Arrow files, as data sets of the hub do. Its files are read by polars; the package `datasets` isn't needed. They
    become one Parquet file in the cache, or one folder of images with a table of path and label, which `make` opens;
    names take the place of the numbers of class labels.

    The parts of a data set, such as its train and test, are pooled, since they seldom hold different classes. Where
    they do, `split={"column": "part"}` goes by them: part is train, val or test.

    Args:
        path: the folder.
        make: `kshot.sources.text`, `images`, `table`, `series`, `ratings` or `corpus`.
        parts: read these alone, by their names in the data set; all by default.
        columns: the name that `make` looks for, and the data set's own column: `{"label": "fine_label"}`. Images are
            looked for in image and their classes in label.
        options: of `make`.

    Raises:
        ValueError: no such folder, no data set in it or several, a file that cannot be read, files of different
            columns, a column or part that is missing, a label without a name, and what `make` says.

    Example:
        >>> import polars
        >>> from kshot.sources import text
        >>> folder = Path(getfixture("tmp_path")) / "greetings"
        >>> (folder / "data").mkdir(parents=True)
        >>> frame = polars.DataFrame({"text": [f"{word} {i}" for word in ("hi", "bye") for i in range(9)]})
        >>> frame = frame.with_columns(intent=polars.col("text").str.slice(0, 2))
        >>> frame.write_parquet(folder / "data" / "train-00000-of-00001.parquet")
        >>> source = from_hf(folder, text, label="intent", ways=2, queries=3, split={"ratio": [1, 0, 0]})
        >>> source.task("train", 0).query.targets.shape
        torch.Size([6, 2])
    """
    path = Path(path).expanduser()
    files = _chosen(path, files_of(path), parts)
    by_part = (options.get("split") or {}).get("column") == "part"
    key = hashlib.sha256(repr((_VERSION, make is images, by_part, dict(columns or {}))).encode())
    for file in files:
        facts = file.path.stat()
        key.update(f"{file.path.resolve()}\0{file.part} {facts.st_size} {facts.st_mtime_ns} {file.names}\n".encode())
    name, suffix = path.resolve().name, "csv" if make is images else "parquet"
    made = cache_folder() / f"hf-{key.hexdigest()[:24]}"
    table = made / f"{name}.{suffix}"
    if not table.is_file():
        with scratch_folder(made) as scratch:
            whole = scratch / "made"
            whole.mkdir()
            write = _write_images if make is images else _write_table
            write((_renamed(_read(file, by_part), file, columns or {}) for file in files), whole / table.name, path)
            _rename(whole, made)
    try:
        return make(table, **options)
    except ValueError as error:
        raise ValueError(str(error).replace(str(table), str(path))) from error


class HfFile(NamedTuple):
    """A file of a data set.

    Attributes:
        path: ends in .arrow or .parquet.
        part: the part of the data set that it belongs to, as the data set calls it; "" where that isn't told.
        names: for each column of class labels, the names of the numbers 0, 1, …
    """

    path: Path
    part: str
    names: dict[str, list[str]]


def files_of(folder: Path) -> list[HfFile]:
    """The files of a data set, in order.

    Raises:
        ValueError: no such folder, no data set in it, or several, or a description that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if (folder / "dataset_dict.json").is_file():
        parts = _json(folder / "dataset_dict.json").get("splits")
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{folder / 'dataset_dict.json'} does not list the parts of the data set")
        return [file for part in parts for file in _saved(_inside(folder, part), part)]
    if (folder / "state.json").is_file():
        return _saved(folder, "")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in (".parquet", ".arrow")
        and path.is_file()
        and not any(part.startswith((".", "cache-")) for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise ValueError(
            f"{folder} holds no data set: neither what save_to_disk writes (state.json or dataset_dict.json) nor files "
            "that end in .parquet or .arrow. A CSV or JSON file is opened by text, table or images itself"
        )
    sets = {
        "/".join(way for way in path.relative_to(folder).parts[:-1] if way not in (*PARTS, "data")) for path in paths
    }
    if len(sets) > 1:
        raise ValueError(f"{folder} holds several data sets: {', '.join(sorted(sets))}; give the folder of one of them")
    return [HfFile(path, _part(path.relative_to(folder)), _names_in(path)) for path in paths]


def _saved(folder: Path, part: str) -> list[HfFile]:
    """The files that `Dataset.save_to_disk` wrote."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise ValueError(f"{folder} was saved by an old version of datasets; load and save it again with a new one")
    entries = state.get("_data_files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{folder / 'state.json'} does not list the files of the data set")
    about = folder / "dataset_info.json"
    names = _class_names(_json(about).get("features")) if about.is_file() else {}
    files = [_inside(folder, entry.get("filename")) for entry in entries]
    return [HfFile(file, part or str(state.get("_split") or ""), names) for file in files]


def _inside(folder: Path, name: Any) -> Path:
    """A file or folder that a description names."""
    path = folder / str(name)
    if not isinstance(name, str) or len(PurePath(name).parts) != 1 or name == ".." or not path.exists():
        raise ValueError(f"{folder} is not whole: its description names {name!r}, which it does not hold")
    return path


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {str(content)[:40]!r}")
    return content


def _names_in(path: Path) -> dict[str, list[str]]:
    """The names of class labels that a Parquet file, or a description beside an Arrow file, tells."""
    import polars as pl

    if path.suffix == ".arrow":
        about = path.parent / "dataset_info.json"
        return _class_names(_json(about).get("features")) if about.is_file() else {}
    with named_errors(path):
        text = pl.read_parquet_metadata(path).get("huggingface", "{}")
    try:
        return _class_names(json.loads(text)["info"]["features"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}


def _class_names(features: Any) -> dict[str, list[str]]:
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        if (
            isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        ):
            found[column] = [str(name) for name in feature["names"]]
    return found


def _part(path: PurePath) -> str:
    """The part of the data set that a file's name or folders tell; "" where they don't."""
    if numbered := re.search(r"([^-/]+)-\d{5}-of-\d{5}", path.name):
        return numbered[1]
    words = [word for place in (path.name, *path.parts[-2::-1]) for word in re.split(r"[-._ \d]+", place)]
    return next((word for word in words if word in PARTS), "")


def _chosen(path: Path, files: list[HfFile], parts: Sequence[str] | None) -> list[HfFile]:
    known = list(dict.fromkeys(file.part for file in files))
    for part in parts or ():
        if part not in known:
            raise ValueError(f"{path} has no part {part!r}; it has {', '.join(known)}")
    return [file for file in files if parts is None or file.part in parts]


def _read(file: HfFile, by_part: bool) -> polars.DataFrame:
    """The rows of a file, class labels by their names."""
    import polars as pl

    with named_errors(file.path):
        if file.path.suffix == ".parquet":
            frame = pl.read_parquet(file.path, glob=False)
        else:
            content = file.path.read_bytes()
            frame = (pl.read_ipc if content.startswith(b"ARROW1") else pl.read_ipc_stream)(io.BytesIO(content))
    for column, names in file.names.items():
        if column in frame.columns and frame.schema[column].is_integer():
            numbers = frame[column]
            wrong = numbers.filter((numbers < -1) | (numbers >= len(names)))  # -1 is a label that is held back
            if len(wrong):
                raise ValueError(f"{file.path}: column {column!r} holds {wrong[0]}, but has {len(names)} names")
            named = numbers.replace_strict(dict(enumerate(names)), default=None, return_dtype=pl.String)
            frame = frame.with_columns(named.alias(column))
    return frame.with_columns(part=pl.lit(PARTS.get(file.part, file.part))) if by_part else frame


def _renamed(frame: polars.DataFrame, file: HfFile, columns: Mapping[str, str]) -> polars.DataFrame:
    import polars as pl

    Table(file.path, frame).need(*columns.values())
    kept = [name for name in frame.columns if name not in columns and name not in columns.values()]
    return frame.select(*kept, *(pl.col(old).alias(new) for new, old in columns.items()))


def _write_table(frames: Iterator[polars.DataFrame], target: Path, path: Path) -> None:
    import polars as pl

    found = list(frames)
    for frame in found:
        if set(frame.columns) != set(found[0].columns):
            odd = sorted(set(frame.columns) ^ set(found[0].columns))
            raise ValueError(
                f"{path}: not all files have the column {odd[0]!r}; choose parts that have the same columns"
            )
    with named_errors(path):
        pl.concat([frame.select(found[0].columns) for frame in found], how="vertical_relaxed").write_parquet(target)


def _write_images(frames: Iterator[polars.DataFrame], target: Path, path: Path) -> None:
    """Each image as a file as it was encoded, and a table of their paths, labels and what else is told of them."""
    import polars as pl

    (target.parent / "images").mkdir()
    tables: list[polars.DataFrame] = []
    count = 0
    for frame in frames:
        for name in ("image", "label"):
            if name not in frame.columns:
                raise ValueError(
                    f"{path} has no column {name!r} but {', '.join(frame.columns)}; say which it is by columns: "
                    f"{{{name}: …}}"
                )
        names = []
        for content, origin in _contents(frame["image"], path):
            if content is None and origin is not None:
                raise ValueError(
                    f"{path}, row {count + 1} names {origin!r} but holds no image; save it with its images"
                )
            names.append(f"images/{count:07}{PurePath(origin or '').suffix}")
            (target.parent / names[-1]).write_bytes(content or b"")  # an empty file is a bad image, as others are
            count += 1
        plain = [name for name, kind in frame.schema.items() if not kind.is_nested() and kind != pl.Binary]
        tables.append(frame.select(plain).with_columns(path=pl.Series(names, dtype=pl.String)))
    with named_errors(path):
        pl.concat(tables, how="diagonal_relaxed").write_csv(target)


def _contents(column: polars.Series, path: Path) -> Iterator[tuple[bytes | None, str | None]]:
    """The encoded image of each row, and the name that it had as a file."""
    import polars as pl

    kind = column.dtype
    if isinstance(kind, pl.Struct) and {"bytes", "path"} <= {field.name for field in kind.fields}:
        return zip(column.struct.field("bytes"), column.struct.field("path"))
    if kind == pl.Binary:
        return ((content, None) for content in column)
    raise ValueError(f"{path}: column 'image' holds {kind}, not images; say which column does by columns: {{image: …}}")


def _rename(whole: Path, target: Path) -> None:
    try:
        whole.rename(target)
    except OSError as error:
        if not target.is_dir():  # or else another process was first
            raise ValueError(f"cannot make {target}: {error.strerror}") from error
