"""Copies: examples of equal content in two splits, in one class or in one task; and examples without content.

Shape legend: n examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from kshot.checking.duplicates import content_hashes, is_blank
from kshot.checking.findings import Finding, Part, Severity
from kshot.checking.values import Drawn, are_rows
from kshot.types import SPLITS, Batch, Split, Task, tree_map

CHUNK = 512
"""Number of examples hashed at once."""


class Contents(NamedTuple):
    """Examples (n,) of a split: hash of the content, class or group, name in messages, whether blank, and for all:

    few_values: whether rows have so few distinct values that equal content is no sign of copies.
    repeated: hashes of the inputs of texts that occur twice; None for other examples.
    """

    keys: list[bytes]
    members: list[str]
    names: list[str]
    blank: list[bool]
    few_values: bool
    repeated: set[bytes] | None = None


def contents_of(part: Part, rows: Mapping[str, np.ndarray], drawn: Sequence[Task]) -> Contents:
    """The contents of the rows of each member, or of the examples of tasks for a source without rows."""
    source: Any = part.source
    keys: list[bytes] = []
    blank: list[bool] = []
    members = [name for name, of_member in rows.items() for _ in of_member]
    if rows:
        flat = np.concatenate(list(rows.values()))
        for start in range(0, len(flat), CHUNK):
            taken = source.examples.take(flat[start : start + CHUNK])
            keys += content_hashes(taken)
            blank += is_blank(taken[0] if source.member == "group" else taken)
        names = _names(part, flat, members)
        if source.texts is not None:  # different short texts may have equal features
            hashes, keys = keys, [source.texts[row].encode("utf-8", "surrogatepass") for row in flat.tolist()]
            counts = Counter(keys)
            repeated = {hashed for hashed, key in zip(hashes, keys) if counts[key] > 1}
            return Contents(keys, members, names, blank, False, repeated)
    else:
        for batch in (batch for task in drawn for batch in task) if source.copies_are_errors else ():
            of_batch, blank_of_batch = _hashed(batch, source.objective.task_specific_classes)
            keys, blank = keys + of_batch, blank + blank_of_batch
        members = names = ["a task"] * len(keys)
    members_of: dict[bytes, set[str]] = defaultdict(set)
    for key, member in zip(keys, members):
        members_of[key].add(member)
    shared = sum(len(members_of[key]) > 1 for key in keys)
    return Contents(keys, members, names, blank, are_rows(drawn) and shared > 0.02 * len(keys))


def _names(part: Part, rows: np.ndarray, members: Sequence[str]) -> list[str]:
    """Names of examples for messages."""
    images, texts = part.images, part.source.texts
    if images is not None:
        return [images.files[row % len(images)].name for row in rows.tolist()]
    if texts is not None:
        return [repr(texts[row][:60]) for row in rows.tolist()]
    what = "example" if part.columns is None else "row"
    return [f"{what} {row} of {name!r}" for row, name in zip(rows.tolist(), members)]


def copies_across(contents: Mapping[Split, Sequence[Contents]]) -> list[Finding]:
    """Examples that occur in two splits."""
    findings = []
    for other, split in combinations(SPLITS, 2):
        known = [row for of_part in contents.get(other, ()) for row in zip(of_part.keys, of_part.names, of_part.blank)]
        name_of = {key: name for key, name, blank in known if not blank}
        examples = [row for of_part in contents.get(split, ()) for row in zip(of_part.keys, of_part.names)]
        pairs = [(name, name_of[key]) for key, name in examples if key in name_of]
        if not pairs:
            continue
        what = f"{len(pairs):,} of {len(examples):,} {split} examples looked at have the same content as one of {other}"
        if any(of_part.few_values for of_part in (*contents[split], *contents[other])):
            sentence = f"{what}, as examples with few distinct values do; no error unless rows were copied."
            findings.append(Finding("note", "two splits", sentence))
            continue
        first = f"the first {pairs[0][0]}, which is {pairs[0][1]}" if pairs[0][0] != "a task" else "in their tasks"
        todo = "Test examples are then trained on: remove one of each pair, or put both into one split"
        severity: Severity = "error" if len(pairs) > 0.01 * len(examples) else "warning"
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
        cases = [(same, f"the same {member}", "A support could show the answer of its query: remove copies")]
        if member == "class":
            todo = "No model can tell which is right: keep each in one class, or merge the classes"
            cases.append((different, "another class", todo))
        for pairs, where, todo in cases:
            if pairs:
                count = len(of_split.keys)
                severity: Severity = "warning" if len(pairs) > 0.01 * count else "note"
                what = f"{len(pairs):,} of {count:,} {split} examples looked at have the content of another"
                first_pair = f"the first {pairs[0][0]}, which is {pairs[0][1]}"
                findings.append(part.finding(severity, "copies", f"{what} one in {where}: {first_pair}. {todo}."))
    return findings


def shown_queries(part: Part, drawn: Drawn, contents: Mapping[Split, Contents]) -> list[Finding]:
    """Queries whose answer is in the support of their task."""
    if not part.source.copies_are_errors:
        return []
    findings = []
    few_values = any(of_split.few_values for of_split in contents.values())
    for split, tasks in drawn.items():
        num_shown, num_queries, repeated = 0, 0, contents[split].repeated
        for task in tasks:
            support, query = (_keys(batch, part.source.objective.task_specific_classes) for batch in task)
            known = set(support) if repeated is None else repeated.intersection(support)
            num_shown, num_queries = num_shown + sum(key in known for key in query), num_queries + len(query)
        if not num_shown:
            continue
        severity: Severity = "error" if num_shown > 0.05 * num_queries else "warning"
        todo = "Remove the copies."
        if few_values:
            severity, todo = "note", "With so few distinct values that is no error, unless rows were copied."
        sentence = (
            f"{num_shown:,} of {num_queries:,} query examples of {split} ({num_shown / num_queries:.1%}) have the same "
            f"content as one of their own support, which shows the answer. {todo}"
        )
        findings.append(part.finding(severity, "support and query", sentence))
    return findings or [part.finding("ok", "support and query", "No query looked at is shown in its own support.")]


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
    real = batch.weight > 0
    inputs, targets = tree_map(lambda leaf: leaf[real], (batch.inputs, batch.targets))
    return content_hashes(inputs if task_specific_classes else (inputs, targets)), is_blank(inputs)


def _keys(batch: Batch, task_specific_classes: bool) -> list[bytes]:
    return [key for key, blank in zip(*_hashed(batch, task_specific_classes)) if not blank]
