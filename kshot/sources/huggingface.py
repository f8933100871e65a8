"""Tasks from a Hugging Face data set on disk: as `save_to_disk` writes it, or as Parquet files of the hub."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from kshot.annotations import PartOfFile
from kshot.bounded import home_expanded, open_file, parse_json, read_bytes
from kshot.data.cache import cached_folder
from kshot.data.tables.extent import check_parquet, check_texts
from kshot.data.tables.table import Table, named_errors
from kshot.data.text_files import read_json
from kshot.sources.images import images
from kshot.tasks.source import TaskSource

if TYPE_CHECKING:
    import polars

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
         "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}  # fmt: skip
"""Words in the names of files and folders to the split that they mean."""

_VERSION = 1  # of the conversion below; part of the name of cached files


def from_hf(
    path: Path | str,
    make: Annotated[Callable[..., TaskSource], PartOfFile("tasks")],
    *,
    parts: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> TaskSource:
    """Create a source of tasks from a Hugging Face data set on disk.

    The data set is a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, or one that contains
    Parquet or Arrow files, as data sets of the hub do. Polars reads the files; the package `datasets` is not needed,
    and no code is executed. They are converted to one Parquet file in the cache, or one folder of images with a table
    of path and label, which `make` opens; numbers of class labels are replaced by names.

    The parts of a data set, such as train and test, are pooled, since they seldom hold different classes. If they do,
    `split={"column": "part"}` uses them, with part train, val or test.

    Args:
        path: of the folder.
        make: `kshot.sources.text`, `images`, `table`, `series`, `ratings` or `corpus`.
        parts: names of the parts to read; all by default.
        columns: name that `make` expects to name in the data set: `{"label": "fine_label"}`. Images are expected in the
            column image, their classes in label.
        options: of `make`.

    Raises:
        ValueError: no such folder; no data set or several in it; a file that cannot be read; files of different
            columns; a missing column or part; a label without a name; and what `make` raises.

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
    path = home_expanded(path)
    files = _select(path, files_of(path), parts)
    by_part = (options.get("split") or {}).get("column") == "part"
    key = hashlib.sha256(repr((_VERSION, make is images, by_part, dict(columns or {}))).encode())
    for file in files:
        status = file.path.stat()
        key.update(f"{file.path.resolve()}\0{file.part} {status.st_size} {status.st_mtime_ns} {file.names}\n".encode())
    name = f"{path.resolve().name}.{'csv' if make is images else 'parquet'}"

    def convert(folder: Path) -> None:
        write = _write_images if make is images else _write_table
        write((_read(file, by_part, columns or {}) for file in files), folder / name, path)

    table = cached_folder(f"hf-{key.hexdigest()[:24]}", convert, name) / name
    try:
        return make(table, **options)
    except ValueError as error:
        raise ValueError(str(error).replace(str(table), str(path))) from error


class HfFile(NamedTuple):
    """An .arrow or .parquet file of a data set.

    Attributes:
        part: of the data set that it belongs to, as the data set names it; "" if unknown.
        names: for each column of class labels, the names of the numbers 0, 1, …
    """

    path: Path
    part: str
    names: dict[str, list[str]]


def files_of(folder: Path) -> list[HfFile]:
    """The files of the one data set in a folder, in order."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if (folder / "dataset_dict.json").is_file():
        parts = _object(folder / "dataset_dict.json").get("splits")
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{folder / 'dataset_dict.json'} does not list the parts of the data set")
        return [file for part in parts for file in _saved(_member(folder, part), part)]
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
            f"{folder} contains no data set: neither what save_to_disk writes (state.json or dataset_dict.json) nor "
            "files that end in .parquet or .arrow. A CSV or JSON file is opened by text, table or images itself"
        )
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    sets = {"/".join(name for name in names if name not in (*PARTS, "data")) for names in parents}
    if len(sets) > 1:
        raise ValueError(f"{folder} contains several data sets: {', '.join(sorted(sets))}; give the folder of one")
    return [HfFile(path, _part(path.relative_to(folder)), _names_in(path)) for path in paths]


def _saved(folder: Path, part: str) -> list[HfFile]:
    """The files that `Dataset.save_to_disk` wrote."""
    state = _object(folder / "state.json")
    if state.get("_indices_data_files"):
        raise ValueError(f"{folder} was saved by an old version of datasets; load and save it again with a new one")
    entries = state.get("_data_files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{folder / 'state.json'} does not list the files of the data set")
    names = _described_names(folder)
    paths = [_member(folder, entry.get("filename")) for entry in entries]
    return [HfFile(path, part or str(state.get("_split") or ""), names) for path in paths]


def _member(folder: Path, name: Any) -> Path:
    """A file or folder that a description names; it may not lead out of the folder."""
    path = folder / str(name)
    if not isinstance(name, str) or len(PurePath(name).parts) != 1 or name == ".." or not path.exists():
        raise ValueError(f"{folder} is incomplete: its description names {name!r}, which it does not contain")
    return path


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {str(content)[:40]!r}")
    return content


def _names_in(path: Path) -> dict[str, list[str]]:
    """The names of class labels in a Parquet file, or in the description next to an Arrow file."""
    import polars as pl

    if path.suffix == ".arrow":
        return _described_names(path.parent)
    with named_errors(path):
        text = pl.read_parquet_metadata(path).get("huggingface", "{}")
    try:
        return _class_names(parse_json(text)["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


def _described_names(folder: Path) -> dict[str, list[str]]:
    description = folder / "dataset_info.json"
    return _class_names(_object(description).get("features")) if description.is_file() else {}


def _class_names(features: Any) -> dict[str, list[str]]:
    names = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        is_label = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        if is_label and isinstance(feature.get("names"), list):
            names[column] = [str(name) for name in feature["names"]]
    return names


def _part(path: PurePath) -> str:
    """The part of the data set by the name of a file or of its folders; "" if unknown."""
    if shard := re.search(r"([^-/]+)-\d{5}-of-\d{5}", path.name):
        return shard[1]
    words = [word for name in (path.name, *path.parts[-2::-1]) for word in re.split(r"[-._ \d]+", name)]
    return next((word for word in words if word in PARTS), "")


def _select(path: Path, files: list[HfFile], parts: Sequence[str] | None) -> list[HfFile]:
    known = list(dict.fromkeys(file.part for file in files))
    for part in parts or ():
        if part not in known:
            raise ValueError(f"{path} has no part {part!r}; it has {', '.join(known)}")
    return [file for file in files if parts is None or file.part in parts]


def _read(file: HfFile, by_part: bool, columns: Mapping[str, str]) -> polars.DataFrame:
    """The rows of a file, with names for class labels and columns renamed."""
    import polars as pl

    with named_errors(file.path):
        if file.path.suffix == ".parquet":
            open_file(file.path).close()  # anything but a file, as a FIFO, is refused
            lazy = pl.scan_parquet(file.path, glob=False)
            check_parquet(file.path, lazy.select(pl.len()).collect().item(), len(lazy.collect_schema()))
            frame = lazy.collect()
            check_texts(file.path, frame)
        else:
            content = read_bytes(file.path)
            frame = (pl.read_ipc if content.startswith(b"ARROW1") else pl.read_ipc_stream)(io.BytesIO(content))
    for column, names in file.names.items():
        if column in frame.columns and frame.schema[column].is_integer():
            numbers = frame[column]
            invalid = numbers.filter((numbers < -1) | (numbers >= len(names)))  # -1 marks a withheld label
            if len(invalid):
                raise ValueError(f"{file.path}: column {column!r} holds {invalid[0]}, but has {len(names)} names")
            labels = numbers.replace_strict(dict(enumerate(names)), default=None, return_dtype=pl.String)
            frame = frame.with_columns(labels.alias(column))
    if by_part:
        frame = frame.with_columns(part=pl.lit(PARTS.get(file.part, file.part)))
    Table(file.path, frame).need(*columns.values())
    others = [name for name in frame.columns if name not in columns and name not in columns.values()]
    return frame.select(*others, *(pl.col(old).alias(new) for new, old in columns.items()))


def _write_table(frames: Iterator[polars.DataFrame], target: Path, path: Path) -> None:
    import polars as pl

    read = list(frames)
    columns = read[0].columns
    for frame in read:
        if different := sorted(set(frame.columns) ^ set(columns)):
            raise ValueError(
                f"{path}: not all files have the column {different[0]!r}; choose parts that have the same columns"
            )
    with named_errors(path):
        pl.concat([frame.select(columns) for frame in read], how="vertical_relaxed").write_parquet(target)


def _write_images(frames: Iterator[polars.DataFrame], target: Path, path: Path) -> None:
    """Write each encoded image to a file, and a table of their paths, labels and other plain columns."""
    import polars as pl

    (target.parent / "images").mkdir()
    tables: list[polars.DataFrame] = []
    count = 0
    for frame in frames:
        for name in ("image", "label"):
            if name not in frame.columns:
                has = ", ".join(frame.columns)
                raise ValueError(f"{path} has no column {name!r} but {has}; name it by columns: {{{name}: …}}")
        names = []
        for content, origin in _encoded_images(frame["image"], path):
            if content is None and origin is not None:
                row = f"{path}, row {count + 1}"
                raise ValueError(f"{row} names {origin!r} but contains no image; save the data set with its images")
            names.append(f"images/{count:07}{PurePath(origin or '').suffix}")
            (target.parent / names[-1]).write_bytes(content or b"")  # an empty file is reported as a bad image
            count += 1
        plain = [name for name, dtype in frame.schema.items() if not dtype.is_nested() and dtype != pl.Binary]
        tables.append(frame.select(plain).with_columns(path=pl.Series(names, dtype=pl.String)))
    with named_errors(path):
        pl.concat(tables, how="diagonal_relaxed").write_csv(target)


def _encoded_images(column: polars.Series, path: Path) -> Iterator[tuple[bytes | None, str | None]]:
    """The encoded image of each row, and its original file name."""
    import polars as pl

    dtype = column.dtype
    if isinstance(dtype, pl.Struct) and {"bytes", "path"} <= {field.name for field in dtype.fields}:
        return zip(column.struct.field("bytes"), column.struct.field("path"))
    if dtype == pl.Binary:
        return ((content, None) for content in column)
    raise ValueError(f"{path}: column 'image' holds {dtype}, not images; name the right one by columns: {{image: …}}")
