"""The classes of a data set in the format of Meta-Dataset: `dataset_spec.json`, and TFRecord files for each class."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from kshot.bounded import parse_json, read_bytes
from kshot.data.images.index import ImageFile, Listing
from kshot.data.images.tfrecord import records_of
from kshot.types import Split

SPEC = "dataset_spec.json"
SPLITS: Mapping[str, Split] = {"TRAIN": "train", "VALID": "val", "TEST": "test"}
"""The names of splits in the file, in the order of the numbers of their classes."""

PATTERNS = ("{}.tfrecords", "{}_{}.tfrecords")
"""Names of the files of a class: one, or several with a number or the name of a pool."""


def list_records(root: Path) -> Listing:
    """The images of a folder with `dataset_spec.json`, by class, with the split and the superclass of each.

    Three forms of the file are read: classes by split, superclasses by split as of Omniglot, and graphs by split as of
    ImageNet. The classes of a split are numbered in a row, those of train first. No image is read.

    Raises:
        ValueError: no such folder or file, another form, a class without a file, or a file that is no TFRecord file.
    """
    path = root / SPEC
    if not path.is_file():
        raise ValueError(
            f"there is no {path}: a folder of Meta-Dataset holds it, beside a file {PATTERNS[0].format(0)}, "
            f"{PATTERNS[0].format(1)}, … for each class"
        )
    try:
        spec = parse_json(read_bytes(path))
        counts, domains = _classes(spec)
        names = _names(spec["class_names"], sum(counts.values()))
        pattern = spec.get("file_pattern", PATTERNS[0])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is no specification of a data set of Meta-Dataset: {why}") from error
    if pattern not in PATTERNS:
        raise ValueError(f"{path}: file_pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    files = _files(root, pattern, len(names))
    listed = records_of(os.path.realpath(root), [(name, label) for label, each in enumerate(files) for name in each])
    of_class = iter(listed)
    classes: dict[str, list[int]] = {}
    records: list[ImageFile] = []
    for name, each in zip(names, files):
        start = len(records)
        for _ in each:
            records += next(of_class)
        classes[name] = list(range(start, len(records)))
    splits = [split for split, count in counts.items() for _ in range(count)]
    of_split: dict[str, set[str]] = {name: {split} for name, split in zip(names, splits)}
    return Listing(root, records, classes, dict(zip(names, domains)), {"split": of_split}, {})


def _classes(spec: dict[str, Any]) -> tuple[dict[Split, int], Sequence[str]]:
    """The number of classes of each split, and the domain of each class."""
    if "classes_per_split" in spec:
        counts = {split: int(spec["classes_per_split"].get(name, 0)) for name, split in SPLITS.items()}
        return counts, [""] * sum(counts.values())
    if "superclasses_per_split" in spec:
        per = _by_number(spec["classes_per_superclass"])
        supers = [str(name) for name in _by_number(spec["superclass_names"])]
        ends = list(accumulate(int(spec["superclasses_per_split"].get(name, 0)) for name in SPLITS))
        parts = zip(SPLITS.values(), [0, *ends], ends)
        counts = {split: sum(int(each) for each in per[start:end]) for split, start, end in parts}
        return counts, [name for name, count in zip(supers, per) for _ in range(int(count))]
    if "split_subgraphs" in spec:
        leaves = {name: [node for node in spec["split_subgraphs"][name] if not node["children_ids"]] for name in SPLITS}
        counts = {split: len(leaves[name]) for name, split in SPLITS.items()}
        return counts, [""] * sum(counts.values())
    raise ValueError("it has none of classes_per_split, superclasses_per_split and split_subgraphs")


def _by_number(values: Mapping[str, Any]) -> list[Any]:
    """The values of keys 0, 1, …, which are texts in JSON."""
    return [values[str(number)] for number in range(len(values))]


def _names(values: Mapping[str, Any], count: int) -> list[str]:
    """The name of each class, with its number where classes have the same one."""
    names = [str(name) for name in _by_number(values)]
    if len(names) != count:
        raise ValueError(f"it names {len(names)} classes, and its splits have {count}")
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _files(root: Path, pattern: str, count: int) -> list[list[str]]:
    """The files of each class."""
    try:
        there = sorted(os.listdir(root))
    except OSError as error:
        raise ValueError(f"the folder {root} cannot be read: {error.strerror}") from error
    found: list[list[str]] = [[] for _ in range(count)]
    form = re.compile(r"(\d+)\.tfrecords" if pattern == PATTERNS[0] else r"(\d+)_\w+\.tfrecords")
    for name in there:
        match = form.fullmatch(name)
        if match and int(match[1]) < count:
            found[int(match[1])].append(name)
    missing = [number for number, names in enumerate(found) if not names]
    if missing:
        raise ValueError(
            f"{root} has no file {pattern.format(missing[0], '…')}, of class {missing[0]} in {SPEC} ({len(missing):,} "
            f"of {count:,} classes have none): write or download the data set again"
        )
    return found
