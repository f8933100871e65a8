"""The data sets that kshot knows by name, as `catalogue.yaml` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin


class File(NamedTuple):
    """A file of a data set.

    Attributes:
        name, url: path in the set's folder, and on a mirror; that of the publisher.
        hashes: `sha256:…` or `md5:…` of each known version; empty if none is published.
        unpack: whether it is an archive that is stored unpacked.
    """

    name: str
    url: str
    hashes: tuple[str, ...] = ()
    unpack: bool = False


class DataSet(NamedTuple):
    """An entry of the catalogue.

    Attributes:
        name: folder in the library, and factory in `kshot.sources` where it has one.
        description, licence, homepage: for people; no homepage where it is built in.
        split: how it is split into train, val and test.
        parts: files and folders at the top of its folder, of which those present are copied; empty if it is built in.
        files: files to download.
        kind: kind of source that reads its files; empty where `kshot.sources` has a factory of the set's name.
        folder: where it was found; None if it is built in or was not found.
    """

    name: str
    description: str
    licence: str
    split: str
    homepage: str = ""
    parts: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    kind: str = ""
    folder: Path | None = None

    @property
    def built_in(self) -> bool:
        """Whether it needs no files."""
        return not self.parts

    @property
    def has_factory(self) -> bool:
        """Whether `kshot.sources` opens it by its name; other sets are files for a source of the user's choice."""
        return not self.kind


@cache
def catalogue() -> dict[str, DataSet]:
    """The known data sets by name."""
    from kshot.yaml_files import parse_yaml

    text = (resources.files(__package__) / "catalogue.yaml").read_text(encoding="utf-8")
    entries = parse_yaml(text, "catalogue.yaml").values
    for entry in entries.values():
        base, files = entry.pop("url", ""), entry.pop("files", {})
        entry["parts"] = tuple(entry.get("parts", ()))
        entry["files"] = tuple(_file(path, base, **(facts or {})) for path, facts in files.items())
    return {name: DataSet(name, **entry) for name, entry in entries.items()}


def _file(path: str, base: str, *, url: str = "", hashes: Sequence[str] = (), unpack: bool = False) -> File:
    return File(path, urljoin(base, url or path), tuple(hashes), unpack)
