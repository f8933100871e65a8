"""Splits classes or groups, never rows, into train, val and test, so that no class is both trained and tested on.

A split is written in a run file as one of

    split: {ratio: [0.7, 0.15, 0.15]}   # by a hash of each name; exact: by count, the default for few names
    split: {rows: [0.5, 0.25, 0.25]}               # the examples of each class, if only these classes matter
    split: {column: part}                                              # a column of train, val or test
    split: {files: {train: train.txt, val: val.txt, test: test.txt}}   # one name per line
    split: {heldout: {val: [kitchen], test: [garden, garage]}}         # whole domains; the rest is train
    split: {list: miniimagenet}                                        # as published; folder: where the list lies
    split: {folds: 5, fold: 0}                                         # one fifth is test, the next val, the rest train
    split: {only: test}                                                # all names, if others are trained on
"""

from __future__ import annotations

import difflib
import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kshot.data import library
from kshot.data.library.published_splits import PUBLISHED, read_lists
from kshot.data.text_files import read_text
from kshot.tasks.pool import plural
from kshot.types import SPLITS, Split

FORMS = {
    "ratio": ("ratio: [0.7, 0.15, 0.15]", list | tuple, {"seed", "exact"}),
    "rows": ("rows: [0.5, 0.25, 0.25]", list | tuple, {"seed"}),
    "column": ("column: NAME", str, set()),
    "files": ("files: {train: train.txt, val: val.txt, test: test.txt}", Mapping, set()),
    "heldout": ("heldout: {val: [NAME], test: [NAME]}", Mapping, set()),
    "list": ("list: NAME", str, {"folder"}),
    "folds": ("folds: 5, fold: 0", int, {"fold", "seed"}),
    "only": ("only: test", str, set()),
}
"""For each form an example, the type of its value, and further keys."""

DEFAULT_SPLIT: Mapping[str, Any] = {"ratio": [0.7, 0.15, 0.15]}

FEW = 40
"""Number of names from which on splits by a hash are exact only if one is empty, so that those of large data stay."""

Names = dict[Split, list[str]]
R = TypeVar("R")


def cut(
    names: Iterable[str],
    split: Mapping[str, Any],
    *,
    kind: str = "class",
    folder: Path | str = ".",
    values: Mapping[str, Collection[str]] | None = None,
    domains: Mapping[str, str] | None = None,
) -> Names:
    """The names of each split that has any, as a run file specifies; names that no file or list contains are in none.

    Args:
        names: the classes or groups of the data.
        split: one of the forms above, a key and its value; `ratio` also takes `seed` and `exact`, `list` a `folder`.
        kind: "class" or "group", for messages.
        folder: base of relative paths.
        values: for `column`, the values of the column in the rows of each name.
        domains: for `heldout` and the list fc100, the domain of each name.

    Raises:
        ValueError: a form that is unknown or not available for these data, a name in two splits, an empty train split,
            and the errors of each form.

    Example:
        >>> cut(["cat", "dog", "owl", "yak"], {"heldout": {"test": ["bird"]}},
        ...     domains={"cat": "pet", "dog": "pet", "owl": "bird", "yak": "farm"})
        {'train': ['cat', 'dog', 'yak'], 'test': ['owl']}
    """
    names = list(names)
    forms = [form for form in FORMS if form in split]
    if len(forms) != 1:
        raise ValueError(
            f"split takes one of {', '.join(FORMS)}, as in split: {{ratio: [0.7, 0.15, 0.15]}}; got {dict(split)}"
        )
    form = forms[0]
    example, type_, options = FORMS[form]
    if not isinstance(split[form], type_):
        raise ValueError(f"split by {form} is written {example}; got {split[form]!r}")
    if unknown := [key for key in split if key != form and key not in options]:
        raise ValueError(f"split by {form} has no key {unknown[0]!r}")
    if form == "ratio":
        parts = by_ratio(names, split["ratio"], seed=split.get("seed", 0), exact=split.get("exact"), kind=kind)
    elif form == "rows":
        if kind != "class":
            raise ValueError(f"split by rows is for classes: a {kind} that is trained on tells nothing about others")
        parts = {part: names for part, share in zip(SPLITS, _shares(split["rows"])) if share}
    elif form == "column":
        if values is None:
            raise ValueError(f"split by column needs a table; this data has no column {split['column']!r}")
        parts = by_column(names, values, column=split["column"], kind=kind)
    elif form == "files":
        parts = by_files(names, {part: Path(folder) / path for part, path in split["files"].items()}, kind=kind)
    elif form == "heldout":
        if domains is None:
            raise ValueError(f"split by heldout needs the domain of each {kind}, which this data does not give")
        parts = by_heldout(names, split["heldout"], domains)
    elif form == "folds":
        parts = by_folds(names, split["folds"], split.get("fold", 0), seed=split.get("seed", 0), kind=kind)
    elif form == "only":
        if split["only"] not in SPLITS:
            raise ValueError(f"split by only takes train, val or test; got {split['only']!r}")
        return {split["only"]: names}
    else:
        lists = Path(folder) / split["folder"] if "folder" in split else None
        parts = by_list(names, split["list"], folder=lists, domains=domains)
    if "train" not in parts:
        raise ValueError(f"split by {form} leaves no {kind} to train on, of {len(names)}")
    return parts


def cut_rows(rows: Mapping[str, R], split: Mapping[str, Any], **options: Any) -> dict[Split, dict[str, R]]:
    """For each split the rows of each name; the arguments are those of `cut`."""
    if "rows" in split:
        cut(rows, {**split, "rows": split["rows"]}, **options)  # checks the form
        return by_rows(rows, split["rows"], seed=split.get("seed", 0))
    return {part: {name: rows[name] for name in names} for part, names in cut(rows, split, **options).items()}


def by_ratio(
    names: Sequence[str], ratio: Sequence[float], *, seed: int = 0, exact: bool | None = None, kind: str = "class"
) -> Names:
    r"""Split by a hash of each name, so that adding or removing a name moves no other.

    $$ u(\text{name}) = \text{SHA-256}(\text{seed}, \text{name}) / 2^{64} \in [0, 1), \quad
       \text{train if } u < r_1, \text{ val if } u < r_1 + r_2, \text{ test otherwise} $$

    The shares hold in expectation, as for any stable split. With `exact`, $u$ is the rank of the hash, so that they
    hold up to rounding, and adding or removing a name may move one other at each border; every split then has at least
    one group, or two classes, as long as there are enough.

    Args:
        ratio: the shares of train, val and test; they sum to 1, and 0 leaves out a split.
        seed: random seed of the split, independent of the run's seed, so that runs with other seeds share the split.
        exact: by default if the hash leaves a split with less than half of its share and there are fewer than `FEW`
            names, or if it leaves a split with nothing to make a task of.

    Raises:
        ValueError: shares that are not three numbers from 0 to 1 with sum 1, or a split without names.

    Example:
        >>> by_ratio([f"site {number}" for number in range(5)], [0.7, 0.15, 0.15], kind="group")
        {'train': ['site 1', 'site 2', 'site 3'], 'val': ['site 0'], 'test': ['site 4']}
    """
    shares = _shares(ratio)
    used = {part: share for part, share in zip(SPLITS, shares) if share}
    digests = {name: hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest() for name in names}
    hashes = {name: int.from_bytes(digest[:8], "big") / 2**64 for name, digest in digests.items()}
    ends = [sum(shares[: number + 1]) for number, share in enumerate(shares) if share]
    split_of = {name: list(used)[bisect_right(ends[:-1], hashes[name])] for name in names}
    counts = Counter(split_of.values())
    least = 2 if kind == "class" and len(hashes) >= 2 * len(used) else 1
    half = 0.5 * (len(hashes) < FEW)
    few = any(counts[part] < max(least, half * share * len(hashes)) for part, share in used.items())
    if exact or (exact is None and few):
        sizes = _exact_sizes(len(hashes), ends, least)
        ranked = sorted(hashes, key=hashes.__getitem__)
        split_of = dict(zip(ranked, (part for part, size in zip(used, sizes) for _ in range(size))))
    parts: Names = {part: [name for name in names if split_of[name] == part] for part in used}
    for part, members in parts.items():
        if not members:
            if exact is not False and len(hashes) < len(used):
                why = f"{len(used)} splits need as many {plural(kind)}, and there are {len(hashes)}"
                raise ValueError(f"split by ratio {shares}: {why}; add some, or give a split the share 0")
            raise ValueError(
                f"split by ratio {shares}: none of the {len(names)} {plural(kind)} falls into {part}; raise its share, "
                "take another seed (split: {ratio: …, seed: 1}), leave out exact: false, or list the names in files"
            )
    return parts


def _exact_sizes(count: int, ends: Sequence[float], least: int) -> list[int]:
    """The sizes of splits that end at these shares of `count` names, rounded; at least `least` if there are enough."""
    borders = [0, *(math.ceil(count * end - 0.5) for end in ends[:-1]), count]
    sizes = [end - start for start, end in pairwise(borders)]
    while min(sizes) < least and max(sizes) > least:
        sizes[sizes.index(min(sizes))] += 1
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


def by_rows(rows: Mapping[str, R], ratio: Sequence[float], *, seed: int = 0) -> dict[Split, dict[str, R]]:
    """Split the rows of each class by a seeded random order; every split has all classes, with rows of its own.

    This estimates how well a few examples of exactly these classes suffice, and nothing about other classes.

    Raises:
        ValueError: shares that are not three numbers from 0 to 1 with sum 1.

    Example:
        >>> parts = by_rows({"cat": range(8), "dog": range(8, 12)}, [0.5, 0.25, 0.25])
        >>> {part: {name: len(rows) for name, rows in of_part.items()} for part, of_part in parts.items()}
        {'train': {'cat': 4, 'dog': 2}, 'val': {'cat': 2, 'dog': 1}, 'test': {'cat': 2, 'dog': 1}}
    """
    shares = _shares(ratio)
    used = [part for part, share in zip(SPLITS, shares) if share]
    ends = [sum(shares[: number + 1]) for number, share in enumerate(shares) if share]
    parts: dict[Split, dict[str, Any]] = {part: {} for part in used}
    for name, of_name in rows.items():
        digest = hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(of_name))  # type: ignore[arg-type]
        borders = np.cumsum(_exact_sizes(len(order), ends, 1))[:-1]
        for part, chosen in zip(used, np.split(np.asarray(of_name)[order], borders)):
            parts[part][name] = np.sort(chosen)
    return parts


def _shares(ratio: Sequence[float]) -> list[float]:
    shares = list(ratio)
    numbers = all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares)
    if len(shares) != 3 or not numbers or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"ratio takes three shares that sum to 1, such as [0.7, 0.15, 0.15]; got {ratio!r}")
    return shares


def by_folds(names: Sequence[str], folds: int, fold: int, *, seed: int = 0, kind: str = "class") -> Names:
    """Split into folds of equal size up to one, in the order of a hash: `fold` is test, the next one val.

    Over all folds, each name is tested once, by a learner that was neither trained nor selected on it.

    Raises:
        ValueError: fewer than 3 folds, a fold that does not exist, or fewer names than folds.

    Example:
        >>> by_folds(["cat", "dog", "owl", "yak"], 3, 0)
        {'train': ['dog'], 'val': ['owl'], 'test': ['cat', 'yak']}
    """
    if folds < 3:
        raise ValueError(f"folds must be at least 3, for one to train on, one to validate and one to test; got {folds}")
    if not 0 <= fold < folds:
        raise ValueError(f"fold must be from 0 to {folds - 1}, got {fold}")
    if len(names) < folds:
        raise ValueError(f"{folds} folds need at least {folds} {plural(kind)}, and there are {len(names)}")
    digests = {name: hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest() for name in names}
    rank = {name: number for number, name in enumerate(sorted(names, key=digests.__getitem__))}
    parts: Names = {part: [] for part in SPLITS}
    for name in names:
        number = (rank[name] % folds - fold) % folds
        parts["test" if number == 0 else "val" if number == 1 else "train"].append(name)
    return parts


def by_column(
    names: Sequence[str], values: Mapping[str, Collection[str]], *, column: str, kind: str = "class"
) -> Names:
    """Split by a column of train, val or test; ValueError for other values, or a name whose rows are in two splits."""
    parts: Names = {part: [] for part in SPLITS}
    for name in names:
        found = sorted(map(str, values[name]))
        wrong = [value for value in found if value not in SPLITS]
        if wrong:
            raise ValueError(f"column {column!r} must hold train, val or test; {kind} {name!r} has {wrong[0]!r} there")
        if len(found) != 1:
            raise ValueError(
                f"column {column!r}: {kind} {name!r} has rows in {' and in '.join(found)}; "
                f"a {kind} belongs to one split: put it in one, or split anew by split: {{ratio: [0.7, 0.15, 0.15]}}"
            )
        parts[found[0]].append(name)  # type: ignore[index]
    return {part: members for part, members in parts.items() if members}


def by_files(names: Sequence[str], files: Mapping[str, Path], *, kind: str = "class") -> Names:
    """Split by text files of one name per line; empty lines are skipped, and names in no file left out.

    Raises:
        ValueError: another split, an unreadable file, a name that is not in the data or listed twice.
    """
    known, place_of_name = set(names), dict[str, str]()
    parts: Names = {}
    for part, path in files.items():
        if part not in SPLITS:
            raise ValueError(f"files takes train, val and test; got {part!r}")
        members = parts[part] = []
        for number, line in enumerate(_lines(path), 1):
            name, place = line.strip(), f"{path}, line {number}"
            if not name:
                continue
            if name in place_of_name:
                raise ValueError(f"{place}: {kind} {name!r} is listed already in {place_of_name[name]}; keep one")
            if name not in known:
                raise ValueError(f"{place}: the data has no {kind} {name!r}{_suggestion(name, names)}")
            place_of_name[name] = place
            members.append(name)
        if not members:
            raise ValueError(f"{path} lists no {kind}; leave {part} out of files, or list some")
    return parts


def by_heldout(names: Sequence[str], heldout: Mapping[str, Sequence[str]], domains: Mapping[str, str]) -> Names:
    """Hold out whole domains for val and test, the rest is train; ValueError if unknown or held out twice."""
    split_of: dict[str, Split] = {}
    known = sorted(set(domains.values()))
    for part, listed in heldout.items():
        if part not in ("val", "test") or isinstance(listed, str):
            raise ValueError(f"heldout takes val and test, each a list of domains; got {part}: {listed!r}")
        for domain in listed:
            if domain not in known:
                raise ValueError(f"heldout {part}: the data has no domain {domain!r}{_suggestion(domain, known)}")
            if domain in split_of:
                raise ValueError(f"heldout: the domain {domain!r} is in {split_of[domain]} and in {part}; keep one")
            split_of[domain] = part  # type: ignore[assignment]
    parts: Names = {part: [] for part in SPLITS}
    for name in names:
        parts[split_of.get(domains[name], "train")].append(name)
    return {part: members for part, members in parts.items() if members}


def by_list(
    names: Sequence[str], published: str, *, folder: Path | None = None, domains: Mapping[str, str] | None = None
) -> Names:
    """Split as published in the literature; classes that the list does not contain are left out.

    A listed name matches a class of the same name, or one with this last part if it is unique: whale matches
    aquatic_mammals/whale.

    Args:
        published: one of `kshot.data.library.published_splits.PUBLISHED`.
        folder: contains the files train, val and test (see `published_splits.read_lists`); by default that of the data
            set fewshot_image_splits of the library.
        domains: the domain of each class, for lists of domains.

    Raises:
        ValueError: no such list, files that are missing or unreadable, a listed class that is not in the data.
    """
    if published not in PUBLISHED:
        raise ValueError(f"there is no list {published!r}; known are {', '.join(PUBLISHED)}")
    row = PUBLISHED[published]
    lists = read_lists(library.find("fewshot_image_splits") / row.folder if folder is None else folder)
    if row.of == "domain" and domains is None:
        raise ValueError(f"the list {published} is of domains, and this data does not give the domain of each class")
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(domains[name] if row.of == "domain" and domains else name, []).append(name)
    by_last_part = {name.rpartition("/")[2]: classes for name, classes in members.items()}
    if len(by_last_part) < len(members):
        by_last_part = {}
    parts: Names = {}
    for part, listed in lists.items():
        matches = {name: members.get(name) or by_last_part.get(name.rpartition("/")[2]) for name in listed}
        missing = [name for name, classes in matches.items() if classes is None]
        if missing:
            raise ValueError(
                f"{listed[missing[0]]}: the data has no {row.of} {missing[0]!r}{_suggestion(missing[0], members)} "
                f"({len(missing)} of the {len(listed)} in {part} are missing)"
            )
        parts[part] = [name for classes in matches.values() for name in classes or ()]
    return parts


def _lines(path: Path) -> list[str]:
    return read_text(path).splitlines()


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known)[:10_000], 1)
    return f"; did you mean {close[0]!r}?" if close else ""
