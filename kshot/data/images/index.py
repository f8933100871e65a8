"""Which image files there are and what class each is of, from folders or from a table; no file is opened."""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from kshot.data.images.decode import SUFFIXES
from kshot.types import Split

if TYPE_CHECKING:
    import polars

log = logging.getLogger(__name__)

Outside = Literal["error", "allow"]
"""What becomes of links and paths that lead out of the folder: an error, or they are followed."""

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of folders that hold the classes of a split."""

_IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # what file managers leave behind; so are names with a leading dot


class ImageFile(NamedTuple):
    """An image file: its name from the folder on, its bytes, and the time of its last change in ns."""

    name: str
    bytes: int
    mtime: int


class Listing(NamedTuple):
    """The images of a folder or a table.

    Attributes:
        root: the folder that the names of the files start in.
        files: row i is file i.
        classes: class to rows.
        domains: class to domain: the folders above it, or the table's column `domain`; "" where there is none.
        values: for each further column of a table, class to the values in its rows. A folder of split folders has one
            column, "split".
        skipped: files that are no images, by how their name ends.
    """

    root: Path
    files: list[ImageFile]
    classes: dict[str, list[int]]
    domains: dict[str, str]
    values: dict[str, dict[str, set[str]]]
    skipped: dict[str, int]


def list_folder(root: Path, *, outside: Outside = "error") -> Listing:
    """The images of a folder with one folder a class, at any depth.

    The folders above a class are its domain, as an alphabet is of its characters. Where the uppermost folders are
    called train, val and test, they are the splits of the classes below, and no part of their names.

    Hidden files and what file managers leave behind are passed over; other files that are no images are counted.

    Args:
        root: the folder.
        outside: whether links may lead out of it.

    Raises:
        ValueError: no folder, no classes in it, images beside folders, a link that leads out, in a circle, nowhere, or
            to what stands in the folder anyway, or a folder that cannot be read.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    walk = _Walk(os.path.realpath(root), outside)
    files: list[ImageFile] = []
    folders: dict[tuple[str, ...], list[int]] = {}
    for parts, own in walk.leaves():
        folders[parts] = list(range(len(files), len(files) + len(own)))
        files += own
    uppermost = {parts[0] for parts in folders if parts}
    parted = "train" in uppermost and uppermost <= set(SPLIT_FOLDERS)
    if () in folders or (parted and any(len(parts) == 1 for parts in folders)) or not files:
        raise ValueError(
            f"{root} holds no images in folders; it needs one folder a class, as in {root}/CLASS/image.png, and may "
            f"have folders above: {root}/DOMAIN/CLASS/image.png or {root}/train/CLASS/image.png. Images end in "
            f"{', '.join(SUFFIXES)}" + (f"; it holds {_counted(walk.skipped)}" if walk.skipped else "")
        )
    classes: dict[str, list[int]] = defaultdict(list)
    domains: dict[str, str] = {}
    splits: dict[str, set[str]] = defaultdict(set)
    for parts, rows in folders.items():
        below = parts[1:] if parted else parts
        name = "/".join(map(_text, below))
        classes[name] += rows
        domains[name] = "/".join(map(_text, below[:-1]))
        if parted:
            splits[name].add(SPLIT_FOLDERS[parts[0]])
    _warn_of_twins(classes)
    return Listing(root, files, dict(classes), domains, {"split": dict(splits)} if parted else {}, dict(walk.skipped))


class _Walk:
    """The folders below a folder that hold no folders themselves, in the order of their names.

    Args:
        root: a real path.
        outside: whether links may lead out of it.
    """

    def __init__(self, root: str, outside: Outside) -> None:
        self.root, self.outside = root, outside
        self.skipped: Counter[str] = Counter()
        self._met: dict[str, str] = {}  # the real path of what was met, and the path that led there

    def leaves(self) -> Iterator[tuple[tuple[str, ...], list[ImageFile]]]:
        """The names on the way to each folder, and its images."""
        self._meet(self.root, self.root)
        waiting: list[tuple[tuple[str, ...], str]] = [((), self.root)]
        while waiting:
            parts, real = waiting.pop()
            start = "".join(f"{part}{os.sep}" for part in parts)
            folders, files = [], []
            for entry in _entries(real):
                if entry.name.startswith(".") or entry.name.lower() in _IGNORED:
                    continue
                path = self.root + os.sep + start + entry.name
                target = self._followed(path) if entry.is_symlink() else real + os.sep + entry.name
                if entry.is_dir():
                    self._meet(path, target)
                    folders.append(((*parts, entry.name), target))
                elif entry.is_file() and entry.name.lower().endswith(SUFFIXES):
                    self._meet(path, target)
                    facts = entry.stat()
                    files.append(ImageFile(start + entry.name, facts.st_size, facts.st_mtime_ns))
                else:
                    self.skipped[os.path.splitext(entry.name)[1].lower()] += 1
            if files and folders:
                image, below = os.path.basename(files[0].name), folders[0][0][-1]
                raise ValueError(
                    f"{shown(self.root + os.sep + start)} holds images, such as {shown(image)}, beside folders, such "
                    f"as {shown(below)}; the folder of a class holds nothing but its images: move one of them away"
                )
            if not folders:
                yield parts, files
            waiting += reversed(folders)

    def _followed(self, link: str) -> str:
        """Where a link leads."""
        try:
            os.stat(link)
        except OSError as error:
            raise ValueError(f"the link {shown(link)} leads nowhere ({error.strerror}); mend or remove it") from error
        target = os.path.realpath(link)
        if self.outside == "error" and not _inside(target, self.root):
            raise ValueError(
                f"the link {shown(link)} leads out of {shown(self.root)}, to {shown(target)}; put the images "
                "themselves there, or follow such links by outside: allow"
            )
        return target

    def _meet(self, path: str, target: str) -> None:
        first = self._met.setdefault(target, path)
        if first != path:
            raise ValueError(
                f"{shown(first)} and {shown(path)} are the same by a link, or lead in a circle; an image belongs to "
                "one class: remove the link"
            )


def list_table(path: Path, *, outside: Outside = "error") -> Listing:
    """The images of a CSV or TSV with the columns path and label, and perhaps domain, split or others.

    Args:
        path: the table; its paths start in its folder.
        outside: whether paths may be absolute, or lead out of the table's folder.

    Raises:
        ValueError: no table that can be read, a column that is missing, an empty cell, a path that leads out, is listed
            twice or is no file, or a class in two domains.
    """
    table = _read(path)
    root = path.parent
    names: list[str] = []
    first: dict[str, int] = {}
    for row, written in enumerate(table["path"].to_list(), 1):
        name = os.path.normpath(written)
        if (os.path.isabs(name) or name.split(os.sep)[0] == "..") and outside == "error":
            raise ValueError(
                f"{path}, row {row}: the path {shown(written)} leads out of {root}; write it from that folder on, or "
                "allow such paths by outside: allow"
            )
        if first.setdefault(name, row) != row:
            raise ValueError(f"{path}, row {row}: {shown(written)} is listed in row {first[name]} already; keep one")
        names.append(name)
    files = list(_files(path, names, outside))
    classes: dict[str, list[int]] = defaultdict(list)
    for number, label in enumerate(table["label"].to_list()):
        classes[label].append(number)
    values = {name: _values(table, name) for name in table.columns if name not in ("path", "label")}
    domains = dict.fromkeys(classes, "")
    for label, own in values.get("domain", {}).items():
        if len(own) > 1:
            raise ValueError(f"{path}: class {label!r} has rows in the domains {' and '.join(sorted(own))}; keep one")
        domains[label] = next(iter(own))
    _warn_of_twins(classes)
    return Listing(root, files, dict(classes), domains, values, {})


def _read(path: Path) -> polars.DataFrame:
    import polars

    tabs = path.suffix.lower() in (".tsv", ".tab")
    try:
        table = polars.read_csv(path, infer_schema=False, separator="\t" if tabs else ",").fill_null("")
    except (polars.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} is no table that can be read: {str(error).splitlines()[0]}") from None
    missing = [name for name in ("path", "label") if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]}; it needs path and label, separated by {'tabs' if tabs else 'commas'}, "
            f"and has {', '.join(map(repr, table.columns))}"
        )
    for name in table.columns:
        empty = (table[name].str.strip_chars() == "").arg_true()
        if len(empty) and name in ("path", "label", "domain", "split"):
            raise ValueError(f"{path}, row {empty[0] + 1}: the {name} is empty ({len(empty)} in all); fill it in")
    if not len(table):
        raise ValueError(f"{path} lists no images")
    return table


def _files(table: Path, names: list[str], outside: Outside) -> Iterator[ImageFile]:
    """The facts of the files of a table."""
    root = os.path.realpath(table.parent)
    folders: dict[str, str] = {}  # the real path of each folder
    missing = []
    for row, name in enumerate(names, 1):
        path = os.path.join(root, name)
        try:
            facts = os.lstat(path)
            link = stat.S_ISLNK(facts.st_mode)
            if link:
                facts = os.stat(path)
        except OSError:
            missing.append(row)
            continue
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{table}, row {row}: {shown(path)} is no file")
        folder = os.path.dirname(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        target = os.path.realpath(path) if link else folders[folder]
        if outside == "error" and not _inside(target, root):
            raise ValueError(
                f"{table}, row {row}: {shown(name)} leads by a link out of {table.parent}, to {shown(target)}; put the "
                "image there, or allow such paths by outside: allow"
            )
        yield ImageFile(name, facts.st_size, facts.st_mtime_ns)
    if missing:
        raise ValueError(
            f"{table}, row {missing[0]}: there is no file {shown(os.path.join(table.parent, names[missing[0] - 1]))} "
            f"({len(missing)} of {len(names)} are missing); paths start in the folder of the table"
        )


def _values(table: polars.DataFrame, column: str) -> dict[str, set[str]]:
    """The values of a column in the rows of each class."""
    found: dict[str, set[str]] = defaultdict(set)
    for label, value in table.select("label", column).unique().iter_rows():
        found[label].add(value)
    return dict(found)


def shown(path: str) -> str:
    """A path for people: as it is, or quoted where it holds line breaks or bytes that are no text."""
    return path if path.isprintable() else repr(path)


def _text(name: str) -> str:
    """A file's name as text that can be written anywhere; bytes that are no UTF-8 are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"the folder {shown(folder)} cannot be read: {error.strerror}") from error


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(os.path.join(root, ""))


def _counted(skipped: Counter[str]) -> str:
    return ", ".join(f"{count:,} {suffix or 'without an ending'}" for suffix, count in skipped.most_common(5))


def _warn_of_twins(names: Iterable[str]) -> None:
    """Say so where classes differ in upper and lower case or in the way an accent is written only."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFC", name).casefold()].append(name)
    twins = [own for own in alike.values() if len(own) > 1]
    if twins:
        log.warning(
            "%s differ in upper and lower case or accents only, and are taken as classes of their own (%d such cases); "
            "rename them if they are one",
            " and ".join(map(repr, twins[0])),
            len(twins),
        )
