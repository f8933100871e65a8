"""Copies: examples of equal content in two splits, in one class or in one task; and examples without content.

Shape legend: n examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from kshot.checking.duplicates import content_hashes, is_blank
from kshot.checking.findings import Finding, Part, Severity
from kshot.checking.near_copies import NearlyShown, Sketcher, Sketches, normalise
from kshot.checking.values import Drawn, are_rows
from kshot.types import SPLITS, Batch, Split, Task, Tree

CHUNK = 512
"""Number of examples hashed at once."""

MOST_SKETCHED = 100_000
"""Largest number of examples of a split that are compared with others for near copies; chosen at random."""

PASSAGES = "passages"
"""The kind of examples that are windows of running text, in which refrains and headings repeat by nature."""

LIKE = {"pictures": "resizing, re-encoding or mirroring", "rows": "noise", "texts": "case, spacing or punctuation"}
"""What near copies differ by, by the kind of example."""


class Contents(NamedTuple):
    """Examples (n,) of a split: hash of the content, class or group, name in messages, whether blank, and for all:

    few_values: whether rows have so few distinct values that equal content is no sign of copies.
    sketches: what near copies are found by.
    kind: "pictures", "rows", "texts" or `PASSAGES`; empty for other examples, which have no near copies.
    repeated: hashes of the inputs of texts that occur twice; None for other examples.
    """

    keys: list[bytes]
    members: list[str]
    names: list[str]
    blank: list[bool]
    few_values: bool
    sketches: Sketches
    kind: str
    repeated: set[bytes] | None = None


def sketcher_of(part: Part, rows: Mapping[Split, Mapping[str, np.ndarray]], drawn: Drawn) -> Sketcher | None:
    """The sketcher of all splits of a part; None for texts, and without examples."""
    source: Any = part.source
    if source.texts is not None:
        return None
    of_split = [own for members in rows.values() for own in members.values() if len(own)]
    if of_split:
        flat = np.concatenate(of_split)
        return Sketcher(part.examples.take(flat[:: max(1, len(flat) // CHUNK)]))
    first = [batch for tasks in drawn.values() for task in tasks[:8] for batch in task]
    if not first or not source.copies_are_errors:
        return None
    return Sketcher(_example(_real(first[0]), source.objective.task_specific_classes))


def contents_of(
    part: Part, rows: Mapping[str, np.ndarray], drawn: Sequence[Task], sketcher: Sketcher | None = None
) -> Contents:
    """The contents of the rows of each member, or of the examples of tasks for a source without rows."""
    source: Any = part.source
    keys: list[bytes] = []
    blank: list[bool] = []
    sketches: list[np.ndarray] = []
    places: list[np.ndarray] = []
    inputs: list[bytes] = []  # hashes of these and of targets alone, where rows may be equal by chance
    targets: list[bytes] = []
    members = [name for name, of_member in rows.items() for _ in of_member]
    if rows:
        flat = np.concatenate(list(rows.values()))
        some = np.sort(np.random.default_rng(0).permutation(len(flat))[:MOST_SKETCHED])
        for start in range(0, len(flat), CHUNK):
            taken = part.examples.take(flat[start : start + CHUNK])
            keys += content_hashes(taken)
            if source.member == "group" and are_rows(drawn):
                inputs += content_hashes(taken[0])
                targets += content_hashes(taken[1])
            blank += is_blank(taken[0] if source.member == "group" else taken)
            if sketcher is not None and sketcher.kind:
                own = some[some.searchsorted(start) : some.searchsorted(start + CHUNK)]
                sketches.append(sketcher(taken)[own - start].astype(np.float32))
                places.append(own)
        names = _names(part, flat, members)
        if source.texts is not None:  # different short texts may have equal features
            texts = [source.texts[row] for row in flat.tolist()]
            hashes, keys = keys, [text.encode("utf-8", "surrogatepass") for text in texts]
            counts = Counter(keys)
            repeated = {hashed for hashed, key in zip(hashes, keys) if counts[key] > 1}
            normal = Sketches([*map(normalise, texts)], np.empty((0, 0)), np.empty(0, np.int64), 0.0)
            return Contents(keys, members, names, blank, False, normal, "texts", repeated)
    else:
        for batch in (batch for task in drawn for batch in task) if source.copies_are_errors else ():
            of_batch, blank_of_batch = _hashed(batch, source.objective.task_specific_classes)
            if sketcher is not None and sketcher.kind:
                sketches.append(sketcher(_example(_real(batch), source.objective.task_specific_classes)))
                places.append(np.arange(len(keys), len(keys) + len(of_batch)))
            keys, blank = keys + of_batch, blank + blank_of_batch
            if not source.objective.task_specific_classes:
                inputs += content_hashes(_real(batch).inputs)
                targets += content_hashes(_real(batch).targets)
        members = names = ["a task"] * len(keys)
    members_of: dict[bytes, set[str]] = defaultdict(set)
    for key, member in zip(keys, members):
        members_of[key].add(member)
    shared = sum(len(members_of[key]) > 1 for key in keys)
    are_pictures = sketcher is not None and sketcher.kind == "pictures"
    few_values = are_rows(drawn) and not are_pictures and (shared > 0.02 * len(keys) or _by_chance(inputs, targets))
    kind = PASSAGES if source.objective.predicts == "tokens" else "" if sketcher is None else sketcher.kind
    return Contents(keys, members, names, blank, few_values, _joined(sketches, places, sketcher), kind)


def _by_chance(inputs: Sequence[bytes], targets: Sequence[bytes]) -> bool:
    r"""Whether inputs (n,) that are equal often have different targets (n,), so that whole rows are equal by chance.

    Copies have equal targets. Of $c$ rows with equal inputs, $\sum_k (1 - (1 - p_k)^c)$ different targets are expected
    if these are independent of the inputs and have the shares $p_k$; it is chance if there are a third as many, beside
    the first of each. The ratio does not depend on how many rows were drawn.
    """
    targets_of = defaultdict[bytes, set[bytes]](set)
    for one, target in zip(inputs, targets):
        targets_of[one].add(target)
    num_different = sum(len(of_one) - 1 for of_one in targets_of.values())
    shares = np.array(list(Counter(targets).values())) / max(len(targets), 1)
    num_rows = Counter(Counter(inputs).values())  # how many inputs occur so many times
    expected = sum(num * ((1 - (1 - shares) ** count).sum() - 1) for count, num in num_rows.items() if count > 1)
    return num_different > 0 and num_different >= expected / 3


def _joined(sketches: list[np.ndarray], places: list[np.ndarray], sketcher: Sketcher | None) -> Sketches:
    width = max((each.shape[1] for each in sketches), default=0)
    kept = [number for number, each in enumerate(sketches) if each.shape[1] == width and width]
    vectors = np.concatenate([sketches[number] for number in kept] or [np.empty((0, width))])
    where = np.concatenate([places[number] for number in kept] or [np.empty(0, np.int64)])
    return Sketches(None, vectors, where, sketcher.radius if sketcher else 0.0)


def _names(part: Part, rows: np.ndarray, members: Sequence[str]) -> list[str]:
    """Names of examples for messages."""
    images, texts = part.images, part.source.texts
    if images is not None:
        return [images.files[row % len(images)].name for row in rows.tolist()]
    if texts is not None:
        return [repr(texts[row][:60]) for row in rows.tolist()]
    what = "example" if part.columns is None else "row"
    return [f"{what} {row} of {name!r}" for row, name in zip(rows.tolist(), members)]


class Across(NamedTuple):
    """The copies of one split in another: pairs of names of exact and of near copies, and the number compared."""

    exact: list[tuple[str, str]]
    near: list[tuple[str, str]]
    num_examples: int
    num_others: int


def compare_splits(mine: Sequence[Contents], theirs: Sequence[Contents]) -> Across:
    """The examples of the parts of one split that are exact or near copies of those of another split."""
    name_of = {
        key: name
        for contents in theirs
        for key, name, blank in zip(contents.keys, contents.names, contents.blank)
        if not blank
    }
    exact: list[tuple[str, str]] = []
    near: list[tuple[str, str]] = []
    for contents in mine:
        same = np.array([key in name_of for key in contents.keys], bool)
        exact += [(contents.names[number], name_of[contents.keys[number]]) for number in np.flatnonzero(same)]
        left_out = same | np.array(contents.blank, bool)
        for others in theirs:
            if others.kind != contents.kind or not contents.kind:
                continue
            index = contents.sketches.copies(others.sketches, left_out)
            found = np.flatnonzero(index >= 0).tolist()
            near += [(contents.names[number], others.names[index[number]]) for number in found]
            left_out[found] = True
    return Across(exact, near, *(sum(len(contents.keys) for contents in each) for each in (mine, theirs)))


def copies_across(contents: Mapping[Split, Sequence[Contents]]) -> list[Finding]:
    """Examples that occur in two splits."""
    findings = []
    few_values = any(
        of_part.few_values for parts in contents.values() for of_part in parts
    )  # small splits do not show it
    for other, split in combinations(SPLITS, 2):
        mine, theirs = contents.get(split, ()), contents.get(other, ())
        found = compare_splits(mine, theirs)
        like = next((LIKE[of_part.kind] for of_part in mine if of_part.kind in LIKE), "")
        passages = any(of_part.kind == PASSAGES for of_part in mine)
        cases = [(found.exact, f"have the same content as one of {other}")]
        cases += [(found.near, f"equal one of {other} up to {like}")] if not few_values else []
        for pairs, what in cases:
            if not pairs:
                continue
            what = f"{len(pairs):,} of {found.num_examples:,} {split} examples looked at {what}"
            if few_values:
                sentence = f"{what}, as examples with few distinct values do; no error unless rows were copied."
                findings.append(Finding("note", "two splits", sentence))
                continue
            first = f"the first {pairs[0][0]}, which is {pairs[0][1]}" if pairs[0][0] != "a task" else "in their tasks"
            todo = "Test examples are then trained on: remove one of each pair, or put both into one split"
            least = 1 if all(of_part.kind == "rows" for of_part in mine) else 0  # two flowers may have the same sizes
            many = len(pairs) > max(least, 0.01 * found.num_examples)
            severity: Severity = "error" if many and not passages else "warning"
            if passages:
                todo = (
                    "Passages repeat in running text, and are easy to predict then; no error unless texts were copied"
                )
            findings.append(Finding(severity, "two splits", f"{what}: {first}. {todo}."))
    return findings or [Finding("ok", "two splits", "No example looked at occurs in two splits.")]


def copies_within(part: Part, contents: Mapping[Split, Contents]) -> list[Finding]:
    """Examples that occur twice in a class or group, or in two classes."""
    findings = []
    member = part.source.member
    for split, of_split in contents.items():
        if not part.source.members(split) or of_split.few_values:
            continue
        first: dict[bytes, int] = {}
        same: list[tuple[str, str]] = []
        different: list[tuple[str, str]] = []
        for number, key in enumerate(of_split.keys):
            if not of_split.blank[number] and (other := first.setdefault(key, number)) != number:
                pairs = same if of_split.members[number] == of_split.members[other] else different
                pairs.append((of_split.names[number], of_split.names[other]))
        equal = "have the content of another one"
        cases = [(same, equal, f"the same {member}", _SHOWS)]
        cases += [(different, equal, "another class", _WHICH)] if member == "class" else []
        near_same, near_different = _near_within(of_split, first)
        equal = f"equal another one up to {LIKE.get(of_split.kind)}"
        cases.append((near_same, equal, f"the same {member}", _SHOWS))
        cases += [(near_different, equal, "another class", _WHICH)] if member == "class" else []
        for pairs, equal, where, todo in cases:
            if pairs:
                count = len(of_split.keys)
                severity: Severity = "warning" if len(pairs) > 0.01 * count else "note"
                what = f"{len(pairs):,} of {count:,} {split} examples looked at {equal} in {where}"
                first_pair = f"the first {pairs[0][0]}, which is {pairs[0][1]}"
                findings.append(part.finding(severity, "copies", f"{what}: {first_pair}. {todo}."))
    return findings


_SHOWS = "A support could show the answer of its query: remove copies"
_WHICH = "No model can tell which is right: keep each in one class, or merge the classes"


def _near_within(contents: Contents, first: Mapping[bytes, int]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Near copies within a class or group, and in two; of exact copies, only the `first` is compared."""
    if not contents.kind:
        return [], []
    left_out = np.array(contents.blank, bool)
    left_out |= np.array([first.get(key) != number for number, key in enumerate(contents.keys)], bool)
    index = contents.sketches.copies(None, left_out)
    same: list[tuple[str, str]] = []
    different: list[tuple[str, str]] = []
    for number in np.flatnonzero(index >= 0).tolist():
        other = int(index[number])
        pairs = same if contents.members[number] == contents.members[other] else different
        pairs.append((contents.names[number], contents.names[other]))
    return same, different


def shown_queries(part: Part, drawn: Drawn, contents: Mapping[Split, Contents]) -> list[Finding]:
    """Queries whose answer is in the support of their task."""
    if not part.source.copies_are_errors:
        return []
    findings = []
    few_values = any(of_split.few_values for of_split in contents.values())
    for split, tasks in drawn.items():
        num_shown, num_queries, repeated = 0, 0, contents[split].repeated
        nearly, task_specific = NearlyShown(), part.source.objective.task_specific_classes
        for task in _compared(part, split, tasks):
            support, query = (_keys(batch, task_specific) for batch in task)
            known = set(support) if repeated is None else repeated.intersection(support)
            num_shown, num_queries = num_shown + sum(key in known for key in query), num_queries + len(query)
            if contents[split].kind in ("pictures", "rows") and not few_values:
                hashes, blank_ = _hashed(task.query, task_specific)
                examples = [_example(_real(batch), task_specific) for batch in task]
                nearly.add(examples[0], examples[1], [key in known or empty for key, empty in zip(hashes, blank_)])
        cases = [(num_shown, "have the same content as", 0.0)]
        cases.append((nearly.count(), f"equal, up to {LIKE.get(contents[split].kind)},", 0.01))
        for count, what, least in cases:
            if not count:
                continue
            share = count / num_queries
            passages = contents[split].kind == PASSAGES
            severity: Severity = "error" if share > 0.05 and not passages else "warning" if share > least else "note"
            todo = (
                "Passages repeat in running text; no error unless texts were copied."
                if passages
                else ("Remove the copies.")
            )
            if few_values:
                severity, todo = "note", "With so few distinct values that is no error, unless rows were copied."
            sentence = (
                f"{count:,} of {num_queries:,} query examples of {split} ({share:.1%}) {what} one of their own "
                f"support, which shows the answer. {todo}"
            )
            findings.append(part.finding(severity, "support and query", sentence))
    return findings or [part.finding("ok", "support and query", "No query looked at is shown in its own support.")]


def _compared(part: Part, split: Split, tasks: Sequence[Task]) -> Iterator[Task]:
    """The first tasks of a split with what is compared as inputs: images in place of their features."""
    for index, task in enumerate(tasks):
        rows = part.source.example_rows(split, index) if part.encoded else None
        if rows is None:
            yield task
            continue
        # a very large task has lost its last examples
        support, query = (
            batch._replace(inputs=part.examples.take(own[: len(batch.weight)])) for batch, own in zip(task, rows)
        )
        yield Task(support, query)


def blank(part: Part, contents: Mapping[Split, Contents]) -> list[Finding]:
    """Examples of one value throughout."""
    findings = []
    for split, of_split in contents.items():
        count, total = sum(of_split.blank), len(of_split.blank)
        if count:
            sentence = (
                f"{count:,} of {total:,} {split} examples looked at hold one value throughout, such as a white image: "
                f"the first {of_split.names[of_split.blank.index(True)]}. They carry no information; leave them out."
            )
            findings.append(part.finding("warning" if count > 0.01 * total else "note", "blank", sentence))
    return findings


def _hashed(batch: Batch, task_specific_classes: bool) -> tuple[list[bytes], list[bool]]:
    """Hashes of the real examples of a batch, with their targets unless classes are task-specific; which are blank."""
    batch = _real(batch)
    return content_hashes(_example(batch, task_specific_classes)), is_blank(batch.inputs)


def _real(batch: Batch) -> Batch:
    """A batch without its padding."""
    return batch.rows(batch.weight > 0)


def _example(batch: Batch, task_specific_classes: bool) -> Tree:
    """What makes up an example: its inputs, with the target unless classes are specific to a task."""
    return batch.inputs if task_specific_classes else (batch.inputs, batch.targets)


def _keys(batch: Batch, task_specific_classes: bool) -> list[bytes]:
    return [key for key, blank in zip(*_hashed(batch, task_specific_classes)) if not blank]
