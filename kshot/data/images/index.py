"""The image files of a data set and the class of each, from folders or a table; no image is opened."""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kshot.data.images.decode import HEIC, SUFFIXES
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Table
from kshot.data.text.files import FILE_MANAGERS, values_of
from kshot.types import Split

log = logging.getLogger(__name__)

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders that hold the classes of a split."""


class Place(NamedTuple):
    """A record: its file, relative to the root, its first byte, its number, and the label that it should have."""

    file: str
    start: int
    number: int
    label: int


class ImageFile(NamedTuple):
    """An image file: its path relative to the root, its size in bytes, and its modification time in ns.

    Or a record of a TFRecord file that holds an image: the name then ends in its number, and the others are the file's.
    """

    name: str
    bytes: int
    mtime: int
    record: Place | None = None


class Listing(NamedTuple):
    """The images of a folder or a table.

    Attributes:
        root: folder to which the paths of the files are relative.
        files: row i is file i.
        classes: class to rows.
        domains: class to domain: the folders above it, or the table's column `domain`; "" if it has none.
        values: for each further column of a table, class to the values in its rows. A folder with split folders has one
            such column, "split".
        skipped: number of files that are not images, by suffix.
        empty: folders that hold no image, and so are no classes.
    """

    root: Path
    files: list[ImageFile]
    classes: dict[str, list[int]]
    domains: dict[str, str]
    values: dict[str, dict[str, set[str]]]
    skipped: dict[str, int]
    empty: Sequence[str] = ()

    @property
    def notes(self) -> list[str]:
        """Sentences about what is in the folder and not among the images."""
        notes = []
        if self.skipped:
            kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in self.skipped.items())
            heic = "; pip install 'kshot[files]' to read HEIC" if set(HEIC) & set(self.skipped) else ""
            notes.append(f"{self.root} holds files that are not read as images: {kinds}. Convert those that are{heic}")
        if self.empty:
            named = ", ".join(map(shown, self.empty[:5])) + (", …" if len(self.empty) > 5 else "")
            notes.append(f"{self.root}: {len(self.empty):,} folders hold no images, and are no classes: {named}")
        return notes


def list_folder(root: Path, *, follow_links: bool = False) -> Listing:
    """List the images of a folder that holds one folder for each class, at any depth.

    The folders above a class are its domain, as an alphabet is the domain of its characters. Folders at the top named
    train, val and test are the splits of the classes in them and not part of the domain. Hidden files and those of file
    managers are ignored; other files that are not images are counted.

    Args:
        root: the folder.
        follow_links: whether symbolic links may lead out of the folder; links inside it are always followed.

    Raises:
        ValueError: no such folder; no classes in it; images beside folders; a link that leads out, nowhere, in a circle
            or to something listed already; or a folder that cannot be read.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    walk = _Walk(os.path.realpath(root), follow_links)
    files: list[ImageFile] = []
    folders: dict[tuple[str, ...], list[int]] = {}
    empty: list[str] = []
    for parts, images in walk.leaves():
        if not images:
            empty.append("/".join(parts))
            continue
        folders[parts] = list(range(len(files), len(files) + len(images)))
        files += images
    top_folders = {parts[0] for parts in folders if parts}
    has_splits = "train" in top_folders and top_folders <= set(SPLIT_FOLDERS)
    if () in folders or (has_splits and any(len(parts) == 1 for parts in folders)) or not files:
        others = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in walk.skipped.most_common(5)]
        raise ValueError(
            f"{root} holds no images in folders; it needs a folder for each class, as in {root}/CLASS/image.png, and "
            f"may have folders above: {root}/DOMAIN/CLASS/image.png or {root}/train/CLASS/image.png. Images end in "
            f"{', '.join(SUFFIXES)}" + (f"; it holds {', '.join(others)}" if others else "")
        )
    classes: dict[str, list[int]] = defaultdict(list)
    domains: dict[str, str] = {}
    splits: dict[str, set[str]] = defaultdict(set)
    for parts, rows in folders.items():
        names = [name.encode("utf-8", "backslashreplace").decode() for name in (parts[1:] if has_splits else parts)]
        label = "/".join(names)
        classes[label] += rows
        domains[label] = "/".join(names[:-1])
        if has_splits:
            splits[label].add(SPLIT_FOLDERS[parts[0]])
    warn_of_similar_names(classes)
    values = {"split": dict(splits)} if has_splits else {}
    return Listing(root, files, dict(classes), domains, values, dict(walk.skipped), empty)


class _Walk:
    """The folders below a real path that have no subfolders, in the order of their names."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.skipped: Counter[str] = Counter()
        self._paths: dict[str, str] = {}  # real path to the path by which it was reached

    def leaves(self) -> Iterator[tuple[tuple[str, ...], list[ImageFile]]]:
        """The path of each such folder, and its images."""
        self._visit(self.root, self.root)
        stack: list[tuple[tuple[str, ...], str]] = [((), self.root)]
        while stack:
            parts, real = stack.pop()
            prefix = "".join(f"{part}{os.sep}" for part in parts)
            folders, files = [], []
            for entry in _entries(real):
                if entry.name.startswith(".") or entry.name.lower() in FILE_MANAGERS:
                    continue
                path = self.root + os.sep + prefix + entry.name
                target = self._link_target(path) if entry.is_symlink() else real + os.sep + entry.name
                if entry.is_dir():
                    self._visit(path, target)
                    folders.append(((*parts, entry.name), target))
                elif entry.is_file() and entry.name.lower().endswith(SUFFIXES):
                    self._visit(path, target)
                    status = entry.stat()
                    files.append(ImageFile(prefix + entry.name, status.st_size, status.st_mtime_ns))
                else:
                    self.skipped[os.path.splitext(entry.name)[1].lower()] += 1
            if files and folders:
                image, subfolder = os.path.basename(files[0].name), folders[0][0][-1]
                raise ValueError(
                    f"{shown(self.root + os.sep + prefix)} holds images, such as {shown(image)}, beside folders, such "
                    f"as {shown(subfolder)}; a class folder must hold only its images: move one of them away"
                )
            if not folders:
                yield parts, files
            stack += reversed(folders)

    def _link_target(self, link: str) -> str:
        try:
            os.stat(link)
        except OSError as error:
            raise ValueError(f"the link {shown(link)} leads nowhere ({error.strerror}); repair or remove it") from error
        target = os.path.realpath(link)
        if not self.follow_links and not _is_inside(target, self.root):
            raise ValueError(
                f"the link {shown(link)} leads out of {shown(self.root)}, to {shown(target)}; put the images "
                "themselves there, or follow such links by follow_links: true"
            )
        return target

    def _visit(self, path: str, target: str) -> None:
        first = self._paths.setdefault(target, path)
        if first != path:
            raise ValueError(
                f"{shown(first)} and {shown(path)} are the same by a link, or lead in a circle; an image belongs to "
                "one class: remove the link"
            )


def list_table(path: Path, *, follow_links: bool = False) -> Listing:
    """List the images of a table with the columns path and label, and optionally domain, split or others.

    Args:
        path: of the table; its paths are relative to its folder.
        follow_links: whether paths may be absolute, or lead out of that folder by ".." or by a link.

    Raises:
        ValueError: what `open_table` raises, invalid rows, an empty cell, a path that leads out, occurs twice or is not
            a file, or a class in two domains.
    """
    import polars as pl

    table = open_table(path)
    table.need("path", "label")
    frame = table.frame.select(pl.all().cast(pl.String).fill_null(""))
    for name in ("path", "label", "domain", "split"):
        if name in frame.columns:
            table.missing(name, (frame[name].str.strip_chars() == "").to_numpy(), f"each image needs a {name}")
    table.settle()
    files = files_of(table, frame["path"].to_list(), follow_links)
    classes: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(frame["label"].to_list()):
        classes[label].append(row)
    further = [column for column in frame.columns if column not in ("path", "label")]
    values = {column: values_of(frame["label"], frame[column]) for column in further}
    domains = dict.fromkeys(classes, "")
    for label, labelled in values.get("domain", {}).items():
        domains[label], *others = sorted(labelled)
        if others:
            raise ValueError(
                f"{path}: class {label!r} has rows in the domains {' and '.join(sorted(labelled))}; keep one"
            )
    warn_of_similar_names(classes)
    return Listing(path.parent, files, dict(classes), domains, values, {})


def files_of(table: Table, paths: Sequence[str], follow_links: bool) -> list[ImageFile]:
    """The file of each row of a table; ValueError for a path that leads out, occurs twice or is not a file."""
    names: list[str] = []
    first_rows: dict[str, int] = {}
    for row, written in enumerate(paths):
        name = os.path.normpath(written)
        if (os.path.isabs(name) or name.split(os.sep)[0] == "..") and not follow_links:
            raise ValueError(
                f"{table.place(row)}: the path {shown(written)} leads out of {table.path.parent}; write it relative "
                "to that folder, or allow such paths by follow_links: true"
            )
        if (first := first_rows.setdefault(name, row)) != row:
            raise ValueError(f"{table.place(row)}: {shown(written)} is a duplicate of {table.place(first)}; keep one")
        names.append(name)
    return list(_table_files(table, names, follow_links))


def _table_files(table: Table, names: list[str], follow_links: bool) -> Iterator[ImageFile]:
    folder = table.path.parent
    root = os.path.realpath(folder)
    real_folder = cache(os.path.realpath)
    missing = []
    for row, name in enumerate(names):
        path = os.path.join(root, name)
        try:
            status = os.stat(path)
        except OSError:
            missing.append(row)
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{table.place(row)}: {shown(path)} is not a file")
        target = os.path.realpath(path) if os.path.islink(path) else real_folder(os.path.dirname(path))
        if not follow_links and not _is_inside(target, root):
            raise ValueError(
                f"{table.place(row)}: {shown(name)} leads by a link out of {folder}, to {shown(target)}; put the image "
                "there, or allow such paths by follow_links: true"
            )
        yield ImageFile(name, status.st_size, status.st_mtime_ns)
    if missing:
        raise ValueError(
            f"{table.place(missing[0])}: there is no file {shown(os.path.join(folder, names[missing[0]]))} "
            f"({len(missing)} of {len(names)} are missing); paths are relative to the folder of the table"
        )


def shown(path: str) -> str:
    """A path for messages: as it is, or quoted if it contains line breaks or bytes that are not text."""
    return path if path.isprintable() else repr(path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"the folder {shown(folder)} cannot be read: {error.strerror}") from error


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(os.path.join(root, ""))


def warn_of_similar_names(names: Iterable[str]) -> None:
    """Warn of classes whose names differ only in case or in the encoding of accents."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFC", name).casefold()].append(name)
    similar = [group for group in groups.values() if len(group) > 1]
    if similar:
        log.warning(
            "%s differ only in case or accents, and are treated as different classes (%d such cases); rename them if "
            "they are one", " and ".join(map(repr, similar[0])), len(similar),
        )  # fmt: skip
