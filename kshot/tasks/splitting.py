"""Cutting classes or groups into train, val and test; never rows, so that no class is trained on and tested on.

A cut is written in a run file as one of

    split: {ratio: [0.7, 0.15, 0.15]}                                  # by a hash of each name; exact: true by count
    split: {column: part}                                              # a column that says train, val or test
    split: {files: {train: train.txt, val: val.txt, test: test.txt}}   # one name a line
    split: {heldout: {val: [kitchen], test: [garden, garage]}}         # whole domains; the rest is train
    split: {list: miniimagenet}                                        # as the literature has it; folder: where it lies
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.data import library
from kshot.data.library.published_splits import PUBLISHED, read_lists
from kshot.tasks.pool import plural
from kshot.types import SPLITS, Split

FORMS = {
    "ratio": ("ratio: [0.7, 0.15, 0.15]", list | tuple, {"seed", "exact"}),
    "column": ("column: NAME", str, set()),
    "files": ("files: {train: train.txt, val: val.txt, test: test.txt}", Mapping, set()),
    "heldout": ("heldout: {val: [NAME], test: [NAME]}", Mapping, set()),
    "list": ("list: NAME", str, {"folder"}),
}
"""The forms: how each is written, what its value is, and its further keys."""

DEFAULT_SPLIT: Mapping[str, Any] = {"ratio": [0.7, 0.15, 0.15]}


def cut(
    names: Iterable[str],
    split: Mapping[str, Any],
    *,
    kind: str = "class",
    folder: Path | str = ".",
    values: Mapping[str, Collection[str]] | None = None,
    domains: Mapping[str, str] | None = None,
) -> dict[Split, list[str]]:
    """Cut names into splits as a run file says.

    Args:
        names: the classes or groups that the data has.
        split: one of the forms above, a key and its value; beside `ratio` may stand its `seed` and
            `exact`, beside `list` a `folder`.
        kind: what the names are, "class" or "group", for errors.
        folder: what paths are relative to.
        values: for `column`, the values that the column has in the rows of each name.
        domains: for `heldout` and the list fc100, the domain of each name.

    Returns:
        The names of each split; a split without names is not in it. Names that no file or list has are in none.

    Raises:
        ValueError: a form that is unknown or cannot be had here, a name in two splits, an empty train split, and what
            each form says.

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
    written, type_, further = FORMS[form]
    if not isinstance(split[form], type_):
        raise ValueError(f"split by {form} is written {written}; got {split[form]!r}")
    if extra := [key for key in split if key != form and key not in further]:
        raise ValueError(f"split by {form} has no key {extra[0]!r}")
    if form == "ratio":
        found = by_ratio(names, split["ratio"], seed=split.get("seed", 0), exact=split.get("exact", False), kind=kind)
    elif form == "column":
        if values is None:
            raise ValueError(f"split by column needs a table; this data has no column {split['column']!r}")
        found = by_column(names, values, column=split["column"], kind=kind)
    elif form == "files":
        found = by_files(names, {part: Path(folder) / path for part, path in split["files"].items()}, kind=kind)
    elif form == "heldout":
        if domains is None:
            raise ValueError(f"split by heldout needs the domain of each {kind}, which this data does not give")
        found = by_heldout(names, split["heldout"], domains, kind=kind)
    else:
        lists = Path(folder) / split["folder"] if "folder" in split else None
        found = by_list(names, split["list"], folder=lists, domains=domains)
    if "train" not in found:
        raise ValueError(f"split by {form} leaves no {kind} to train on, of {len(names)}")
    return found


def by_ratio(
    names: Sequence[str], ratio: Sequence[float], *, seed: int = 0, exact: bool = False, kind: str = "class"
) -> dict[Split, list[str]]:
    r"""Cut by a hash of each name, so that a name that comes or goes moves no other.

    $$ u(\text{name}) = \text{SHA-256}(\text{seed}, \text{name}) / 2^{64} \in [0, 1), \quad
       \text{train if } u < r_1, \text{ val if } u < r_1 + r_2, \text{ test otherwise} $$

    The shares are met in expectation only, as any stable cut must; `exact` meets them to a name, and lets a name that
    comes or goes move one other at each border.

    Args:
        names: what to cut.
        ratio: the shares of train, val and test; they sum to 1, and 0 leaves a split out.
        exact: whether $u$ is the name's rank among all by its hash, in place of the hash.
        seed: another seed is another cut. It is not the run's, so that runs with other seeds share the cut.
        kind: what the names are, for errors.

    Raises:
        ValueError: shares that are no three numbers from 0 to 1 that sum to 1, or a split that no name falls into.
    """
    shares = list(ratio)
    numbers = all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares)
    if len(shares) != 3 or not numbers or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"ratio takes three shares that sum to 1, such as [0.7, 0.15, 0.15]; got {ratio!r}")
    found: dict[Split, list[str]] = {part: [] for part, share in zip(SPLITS, shares) if share}
    ends = [sum(shares[: number + 1]) for number, share in enumerate(shares) if share]
    places = {name: _place(name, seed) for name in names}
    if exact:
        places = {name: (rank + 0.5) / len(names) for rank, name in enumerate(sorted(places, key=places.__getitem__))}
    for name in names:
        number = sum(places[name] >= end for end in ends[:-1])
        found[list(found)[number]].append(name)
    for part, own in found.items():
        if not own:
            raise ValueError(
                f"split by ratio {shares}: none of the {len(names)} {plural(kind)} falls into {part}; raise its share, "
                "take another seed (split: {ratio: …, seed: 1}), or list the names in files"
            )
    return found


def _place(name: str, seed: int) -> float:
    """Where in 0 … 1 the hash of a name falls."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def by_column(
    names: Sequence[str], values: Mapping[str, Collection[str]], *, column: str, kind: str = "class"
) -> dict[Split, list[str]]:
    """Cut by a column that says train, val or test in each row.

    Raises:
        ValueError: a value other than those three, or a name whose rows stand in two splits.
    """
    found: dict[Split, list[str]] = {part: [] for part in SPLITS}
    for name in names:
        own = sorted(map(str, values[name]))
        wrong = [value for value in own if value not in SPLITS]
        if wrong:
            raise ValueError(f"column {column!r} must say train, val or test; {kind} {name!r} has {wrong[0]!r} there")
        if len(own) != 1:
            raise ValueError(
                f"column {column!r}: {kind} {name!r} has rows in {' and in '.join(own)}; "
                f"a {kind} belongs to one split: put it in one, or cut anew as in split: {{ratio: [0.7, 0.15, 0.15]}}"
            )
        found[own[0]].append(name)  # type: ignore[index]
    return {part: own for part, own in found.items() if own}


def by_files(names: Sequence[str], files: Mapping[str, Path], *, kind: str = "class") -> dict[Split, list[str]]:
    """Cut by text files with one name a line; empty lines and names that no file lists are left out.

    Raises:
        ValueError: a split other than train, val and test, a file that is missing or no UTF-8 text, a name that the
            data lacks, or that is listed twice.
    """
    known, home = set(names), dict[str, str]()
    found: dict[Split, list[str]] = {}
    for part, path in files.items():
        _check_part(part, "files")
        found[part] = []  # type: ignore[index]
        for number, line in enumerate(_lines(path), 1):
            name, place = line.strip(), f"{path}, line {number}"
            if not name:
                continue
            if name in home:
                raise ValueError(f"{place}: {kind} {name!r} is listed already in {home[name]}; keep one of them")
            if name not in known:
                raise ValueError(f"{place}: the data has no {kind} {name!r}{_nearest(name, names)}")
            home[name] = place
            found[part].append(name)  # type: ignore[index]
        if not found[part]:  # type: ignore[index]
            raise ValueError(f"{path} lists no {kind}; leave {part} out of files, or list some")
    return found


def by_heldout(
    names: Sequence[str], heldout: Mapping[str, Sequence[str]], domains: Mapping[str, str], *, kind: str = "class"
) -> dict[Split, list[str]]:
    """Hold whole domains out for val and test; the rest is train.

    Raises:
        ValueError: a split other than val and test, a domain that the data lacks, or that is held out twice.
    """
    home: dict[str, Split] = {}
    known = sorted(set(domains.values()))
    for part, held in heldout.items():
        if part not in ("val", "test") or isinstance(held, str):
            raise ValueError(f"heldout takes val and test, each a list of domains; got {part}: {held!r}")
        for domain in held:
            if domain not in known:
                raise ValueError(f"heldout {part}: the data has no domain {domain!r}{_nearest(domain, known)}")
            if domain in home:
                raise ValueError(f"heldout: the domain {domain!r} stands in {home[domain]} and in {part}; keep one")
            home[domain] = part  # type: ignore[assignment]
    found: dict[Split, list[str]] = {part: [] for part in SPLITS}
    for name in names:
        found[home.get(domains[name], "train")].append(name)
    return {part: own for part, own in found.items() if own}


def by_list(
    names: Sequence[str], which: str, *, folder: Path | None = None, domains: Mapping[str, str] | None = None
) -> dict[Split, list[str]]:
    """Cut as the literature does; classes that its list does not have are left out.

    A name of the list is found among the data's as it is, or by its last part where that is unique: whale for
    aquatic_mammals/whale.

    Args:
        names: the classes of the data.
        which: one of `kshot.data.library.published_splits.PUBLISHED`.
        folder: holds its files train, val and test (see `published_splits.read_lists`); by default that of the data set
            fewshot_image_splits of the library.
        domains: the domain of each class, for lists of domains.

    Raises:
        ValueError: no such list, files that are missing or cannot be read, a listed class that the data lacks.
    """
    if which not in PUBLISHED:
        raise ValueError(f"there is no list {which!r}; known are {', '.join(PUBLISHED)}")
    row = PUBLISHED[which]
    lists = read_lists(library.find("fewshot_image_splits") / row.folder if folder is None else folder)
    if row.of == "domain":
        if domains is None:
            raise ValueError(f"the list {which} is of domains, and this data does not give the domain of each class")
        members: dict[str, list[str]] = {}
        for name in names:
            members.setdefault(domains[name], []).append(name)
    else:
        members = {name: [name] for name in names}
    short = {name.rpartition("/")[2]: own for name, own in members.items()}
    if len(short) < len(members):
        short = {}
    found: dict[Split, list[str]] = {}
    for part, listed in lists.items():
        of_name = {name: members.get(name) or short.get(name.rpartition("/")[2]) for name in listed}
        missing = [name for name, own in of_name.items() if own is None]
        if missing:
            raise ValueError(
                f"{listed[missing[0]]}: the data has no {row.of} {missing[0]!r}{_nearest(missing[0], members)} "
                f"({len(missing)} of the {len(listed)} in {part} are missing)"
            )
        found[part] = [name for own in of_name.values() if own is not None for name in own]
    return found


def _check_part(part: str, form: str) -> None:
    if part not in SPLITS:
        raise ValueError(f"{form} takes train, val and test; got {part!r}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known)[:10_000], 1)
    return f"; did you mean {near[0]!r}?" if near else ""
