"""Check tasks before training: splits, duplicates, leakage, images, values."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from kshot.checking.contents import (
    Contents,
    blank,
    contents_of,
    copies_across,
    copies_within,
    shown_queries,
    sketcher_of,
)
from kshot.checking.findings import SEVERITIES, Checked, Finding, Part, Sizes, listed, parts_of
from kshot.checking.scan import choose
from kshot.checking.values import check_leakage, check_reading, check_values
from kshot.tasks.pool import plural
from kshot.tasks.source import TaskSource, draw
from kshot.types import SPLITS, Split, Task

MOST_OF_TASK = 5_000
"""Largest number of examples of a support or query set that are looked at: the first ones."""


def check(
    source: TaskSource,
    *,
    num_examples: int = 50_000,
    num_tasks: int = 100,
    progress: Callable[[int, int], object] | None = None,
    decode: bool = True,
) -> Checked:
    """Look for errors that would make a run on these tasks fail, or its figures worthless.

    All images are decoded, unless that was done before. All other checks use a bounded number of random examples, and
    the first tasks of each split; of very large tasks the first examples (`MOST_OF_TASK`).

    Args:
        source: any source.
        num_examples: largest number of examples to compare with one another.
        num_tasks: number of tasks of each split to check.
        progress: called as `progress(num_decoded, num_images)`.
        decode: whether all images are decoded to find unusable ones, and those of which a source has features to find
            near copies.

    Raises:
        ValueError: fewer than one example or task; images that cannot be read at all.

    Example:
        >>> from kshot.tasks import ClassTasks
        >>> images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
        >>> images[39] = images[0]
        >>> rows = {split: {f"{split} {c}": range(5 * c, 5 * c + 5) for c in classes}
        ...         for split, classes in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8)))}
        >>> checked = check(ClassTasks(images, rows, ways=2, shots=1, queries=3))
        >>> checked.worst, checked.findings[0].check
        ('error', 'two splits')
    """
    if num_examples < 1 or num_tasks < 1:
        raise ValueError(f"at least one example and one task must be looked at, got {num_examples} and {num_tasks}")
    findings: list[Finding] = []
    sizes: list[Sizes] = []
    by_split: dict[Split, list[Contents]] = defaultdict(list)
    parts = list(parts_of(source))
    looked_at = total = 0
    for part in (each._replace(pixels=decode) for each in parts):
        bad, found = _decode(part, progress) if decode else (set(), [])
        findings += found
        drawn: dict[Split, list[Task]] = {}
        for split in part.splits:
            tasks, found = _draw(part, split, num_tasks, bad)
            drawn[split] = [Task(*(batch.rows(slice(MOST_OF_TASK)) for batch in task)) for task in tasks]
            findings += found
        of_part = [_sizes(part, split) for split in part.splits if drawn[split]]
        sizes += of_part
        findings += [*_check_sizes(part, of_part), *_left_out(part)]
        findings += [*check_reading(part), *check_values(part, drawn), *check_leakage(part, drawn)]
        rows, num_chosen, num_rows = choose(part, num_examples // len(parts), bad)
        looked_at, total = looked_at + num_chosen, total + num_rows
        sketcher = sketcher_of(part, rows, drawn)
        contents = {split: contents_of(part, rows.get(split, {}), drawn[split], sketcher) for split in part.splits}
        for split, of_split in contents.items():
            by_split[split].append(of_split)
        findings += [*blank(part, contents), *copies_within(part, contents), *shown_queries(part, drawn, contents)]
    findings += copies_across(by_split)
    of_all = "all" if looked_at == total else f"{looked_at:,} of"
    amount = f"{of_all} {total:,} examples{'' if looked_at == total else ', drawn at random,'} and " if total else ""
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Checked(findings, sizes, f"Looked at {amount}up to {num_tasks:,} tasks of each split.")


def check_for_report(
    source: TaskSource, *, num_examples: int = 10_000, num_tasks: int = 20, seconds: float = 10.0
) -> Checked:
    """The warnings and errors of a short check, for the report of a run on the same source.

    It looks at fewer examples and tasks where drawing them would take longer than `seconds`; `looked_at` says at how
    many. A check that cannot be made is a warning. It reads tasks of all splits: call it on a source whose reads are
    not recorded (`read_log.watched`).
    """
    started, num_rows = time.monotonic(), 1
    try:
        for split in SPLITS:
            with suppress(ValueError):  # a finding of the check
                num_rows += sum(len(batch.weight) for batch in source.task(split, 0))
        spent = max(time.monotonic() - started, 1e-6)  # for one task of each split
        num_tasks = max(2, min(num_tasks, int(seconds / 2 / spent)))
        num_examples = max(100, min(num_examples, int(seconds / 2 * num_rows / spent)))
        checked = check(source, num_examples=num_examples, num_tasks=num_tasks, decode=False)
    except Exception as error:  # a source may be of any package, and its figures must not be lost
        sentence = f"The data could not be checked: {type(error).__name__}: {error}."
        return Checked([Finding("warning", "examples", sentence)], [], "")
    serious = [finding for finding in checked.findings if finding.severity in ("warning", "error")]
    return checked._replace(findings=serious, looked_at=f"A short check. {checked.looked_at}")


def _decode(part: Part, progress: Callable[[int, int], object] | None) -> tuple[set[int], list[Finding]]:
    """Decode all images; returns the rows of unusable images that tasks could draw."""
    images = part.images
    if images is None:
        return set(), []
    images.decode(np.arange(len(images)), progress)
    rows = [rows for split in part.splits for rows in part.source.members(split).values()]
    bad = images.bad.keys() & set((np.concatenate([np.empty(0, np.int64), *rows]) % len(images)).tolist())
    if not bad:
        return bad, [part.finding("ok", "images", f"All {len(images):,} images can be decoded.")]
    names = listed([str(images.bad[row]) for row in sorted(bad)])
    what = f"{len(bad):,} of {len(images):,} images cannot be used: {names}"
    todo = "Replace them, or leave them out by bad_images: drop."
    turned = {row + turn * len(images) for row in bad for turn in range(4)}
    return turned, [part.finding("error", "images", f"{what}. {todo}")]


def _draw(part: Part, split: Split, count: int, bad: set[int]) -> tuple[list[Task], list[Finding]]:
    """The first tasks of a split, without those of unusable images, which are reported already."""
    num_tasks = part.source.num_tasks(split)
    count = count if num_tasks is None else min(count, num_tasks)
    drawn: list[Task] = []
    try:
        if not bad:
            for start in range(0, count, 16):
                drawn += draw(part.source, split, range(start, min(start + 16, count)))
            return drawn, []
        for index in range(count):
            try:
                drawn.append(part.source.task(split, index))
            except ValueError as error:
                if not any(str(image) in str(error) for image in part.images.bad.values()):  # type: ignore[union-attr]
                    raise
    except ValueError as error:
        return [], [part.finding("error", f"{split} tasks", f"No task of {split} can be drawn: {error}.")]
    return drawn, []


def _sizes(part: Part, split: Split) -> Sizes:
    kind, counts = part.source.member, list(part.source.sizes(split).values())
    tasks = len(counts) if kind in ("group", "user") else part.source.num_tasks(split)
    return Sizes(part.name, split, kind, counts, tasks)


def _check_sizes(part: Part, sizes: Sequence[Sizes]) -> list[Finding]:
    findings = []
    for split in (size for size in sizes if size.counts):
        members = plural(split.kind)
        least, median, most = min(split.counts), float(np.median(split.counts)), max(split.counts)
        if most >= 10 * median or median >= 10 * least:
            sentence = (
                f"The sizes of the {split.split} {members} differ much: {least:,} to {most:,} examples, the median "
                f"{median:,.0f}. All are drawn equally often, so that examples of small ones are repeated; more "
                "examples of those help most."
            )
            findings.append(part.finding("note", "sizes", sentence))
        if split.split != "train" and len(split.counts) < 10 and part.source.unit != "row":  # of one plain table
            sentence = (
                f"{split.split} has only {len(split.counts)} {members}, too few for figures that generalise; add more, "
                "or test each once by evaluate: {folds: 5}."
            )
            findings.append(part.finding("note", "sizes", sentence))
    if findings or not any(size.counts for size in sizes):
        return findings
    return [part.finding("ok", "sizes", "The splits are large enough, and their sizes even.")]


def _left_out(part: Part) -> list[Finding]:
    return [
        part.finding("note", "left out", f"Left out, {count:,}: {reason}. Make sure that they are not needed.")
        for reason, count in (part.source.describe().get("dropped") or {}).items()
    ]
