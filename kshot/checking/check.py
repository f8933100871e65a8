"""What is wrong with tasks, found before anything is trained on them.

Shape legend: n examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.checking.duplicates import content_hashes, is_blank
from kshot.checking.target_leakage import Rows, leaks, sorted_by_target
from kshot.data.images.augment import Turned
from kshot.data.images.cache import DecodedImages
from kshot.sources.ratings.source import RatingTasks
from kshot.sources.series import SeriesTasks
from kshot.sources.table import TablePreprocessor
from kshot.sources.text import TextTasks
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.frozen import Episodes
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.mixture import Mixture
from kshot.tasks.pool import plural
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Batch, Split, Task, tree_leaves, tree_map, unstack

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")
"""From what is as it should be to what makes a run worthless."""

_CHUNK = 512  # examples looked at together
_TOLD = 5  # bad images named
_COLUMNS = 256  # features beyond which no column is asked for by itself


class Finding(NamedTuple):
    """One thing that was looked at, and how it stands.

    Attributes:
        severity: ok, note, warning or error.
        check: what was looked at, in a word or two.
        sentence: what was found, and what to do about it.
    """

    severity: Severity
    check: str
    sentence: str


class Sizes(NamedTuple):
    """How many examples each class or group of a split has.

    Attributes:
        source: its name in a mixture; empty elsewhere.
        split: train, val or test.
        kind: class, group, user, or task where tasks have no names.
        counts: of each class or group; empty where there are none to count.
        tasks: how many different tasks there are; None is without end, or more than can be counted.
    """

    source: str
    split: Split
    kind: str
    counts: list[int]
    tasks: int | None


class Checked(NamedTuple):
    """What `check` found.

    Attributes:
        findings: the worst first.
        sizes: of each split, of each source of a mixture.
        looked_at: how much was looked at, in a sentence.
    """

    findings: list[Finding]
    sizes: list[Sizes]
    looked_at: str

    @property
    def worst(self) -> Severity:
        """The severity of the worst finding."""
        return max((finding.severity for finding in self.findings), key=SEVERITIES.index, default="ok")


def check(
    source: TaskSource,
    *,
    examples: int = 50_000,
    tasks: int = 100,
    progress: Callable[[int, int], object] | None = None,
) -> Checked:
    """Look for what would make a run on these tasks fail, or its figures worthless.

    Images are all decoded, as far as that was not done yet. Everything else is found in a bounded number of examples,
    drawn at random, and in the first tasks of each split.

    Args:
        source: any.
        examples: how many examples to compare with one another at most.
        tasks: how many tasks of each split to look at.
        progress: is told how many of how many images are decoded.

    Raises:
        ValueError: fewer than one example or task; images that cannot be read at all.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
        >>> images[39] = images[0]
        >>> rows = {split: {f"{split} {c}": range(5 * c, 5 * c + 5) for c in own}
        ...         for split, own in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8)))}
        >>> found = check(ClassTasks(images, rows, ways=2, shots=1, queries=3))
        >>> found.worst, found.findings[0].check
        ('error', 'two splits')
    """
    if examples < 1 or tasks < 1:
        raise ValueError(f"at least one example and one task must be looked at, got {examples} and {tasks}")
    findings: list[Finding] = []
    sizes: list[Sizes] = []
    seen: dict[Split, list[_Seen]] = defaultdict(list)
    parts = list(_parts(source))
    taken = total = 0
    for part in parts:
        bad, found = _decode(part, progress)
        findings += found
        drawn: dict[Split, list[Task]] = {}
        for split in part.splits:
            drawn[split], found = _draw(part, split, tasks, bad)
            findings += found
        own = [_sizes(part, split) for split in part.splits if drawn[split]]
        sizes += own
        findings += [*_sized(part, own), *_dropped(part), *_values(part, drawn), *_leaking(part, drawn)]
        chosen, looked, all_of = _choose(part, examples // len(parts), bad)
        taken, total = taken + looked, total + all_of
        here = {split: _look(part, split, chosen.get(split, {}), drawn[split]) for split in part.splits}
        for split, entry in here.items():
            seen[split].append(entry)
        findings += [*_blank(part, here), *_within_split(part, here), *_within_task(part, drawn, here)]
    findings += _across(seen)
    how = f"all {total:,} examples" if taken == total else f"{taken:,} of {total:,} examples, drawn at random,"
    how = f"{how} and up to {tasks:,} tasks of each split" if total else f"up to {tasks:,} tasks of each split"
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Checked(findings, sizes, f"Looked at {how}.")


class _Part(NamedTuple):
    """A source, its name in a mixture, and the splits that it has tasks in."""

    name: str
    source: TaskSource
    splits: tuple[Split, ...]

    def says(self, severity: Severity, check: str, sentence: str) -> Finding:
        return Finding(severity, check, f"{self.name}: {sentence}" if self.name else sentence)

    def members(self, split: Split) -> dict[str, np.ndarray]:
        """The classes or groups of a split, name to rows of examples; none where a source has no such rows."""
        source = self.source
        if isinstance(source, ClassTasks):
            return source.classes(split) if split in source.class_names else {}
        if isinstance(source, GroupTasks):
            return source.groups(split) if split in source.group_names else {}
        return {}

    @property
    def images(self) -> DecodedImages | None:
        """The image files behind the source."""
        examples = getattr(self.source, "examples", None)
        examples = examples.examples if isinstance(examples, Turned) else examples
        return examples if isinstance(examples, DecodedImages) else None


class _Seen(NamedTuple):
    """The examples of a split that were looked at: hash of content, member, a name for people; all (n,).

    `few` says that rows of numbers have so few different values that even those of other members are equal, and being
    equal doesn't make them copies. `copied` are the hashes of the inputs of texts that stand twice; None elsewhere.
    """

    keys: list[bytes]
    members: list[str]
    names: list[str]
    blank: list[bool]
    few: bool
    copied: set[bytes] | None = None


def _parts(source: TaskSource, name: str = "", splits: tuple[Split, ...] = SPLITS) -> Iterator[_Part]:
    if not isinstance(source, Mixture):
        yield _Part(name, source, splits)
        return
    for inner, own in source.sources.items():
        given = tuple(split for split in splits if source.shares[split].get(inner))
        yield from _parts(own, f"{name}/{inner}" if name else inner, given)


def _decode(part: _Part, progress: Callable[[int, int], object] | None) -> tuple[set[int], list[Finding]]:
    """The rows of bad images that tasks would draw."""
    images = part.images
    if images is None:
        return set(), []
    images.decode(np.arange(len(images)), progress)
    used = np.concatenate([np.empty(0, np.int64), *(own for s in part.splits for own in part.members(s).values())])
    bad = images.bad.keys() & set((used % len(images)).tolist())
    if not bad:
        return bad, [part.says("ok", "images", f"All {len(images):,} images can be decoded.")]
    named = "; ".join(str(images.bad[row]) for row in sorted(bad)[:_TOLD])
    more = f"; and {len(bad) - _TOLD:,} more" if len(bad) > _TOLD else ""
    sentence = f"{len(bad):,} of {len(images):,} images cannot be used: {named}{more}."
    todo = "Replace them, or have them left out by bad_images: drop."
    turns = [row + turn * len(images) for row in bad for turn in range(4)]
    return set(turns), [part.says("error", "images", f"{sentence} {todo}")]


def _draw(part: _Part, split: Split, count: int, bad: set[int]) -> tuple[list[Task], list[Finding]]:
    """The first tasks of a split; those with bad images, which are told already, are passed over."""
    if isinstance(part.source, Episodes) and split in part.source.files:
        count = min(count, part.source.files[split]["tasks"])
    drawn: list[Task] = []
    try:
        if not bad:
            for start in range(0, count, 16):
                drawn += unstack(part.source.stack(split, range(start, min(start + 16, count))))
            return drawn, []
        for index in range(count):
            try:
                drawn.append(part.source.task(split, index))
            except ValueError as error:
                if not any(str(image) in str(error) for image in part.images.bad.values()):  # type: ignore[union-attr]
                    raise
    except ValueError as error:
        return [], [part.says("error", f"{split} tasks", f"No task of {split} can be drawn: {error}.")]
    return drawn, []


def _sizes(part: _Part, split: Split) -> Sizes:
    source, members = part.source, part.members(split)
    counts = [len(rows) for rows in members.values()]
    if isinstance(source, ClassTasks):
        return Sizes(part.name, split, "class", counts, None)
    if isinstance(source, GroupTasks):
        return Sizes(part.name, split, "group", counts, len(counts))
    if isinstance(source, RatingTasks):
        counts = list(source.counts(split).values())
        return Sizes(part.name, split, "user", counts, len(counts))
    return Sizes(part.name, split, "task", [], source.files[split]["tasks"] if isinstance(source, Episodes) else None)


def _sized(part: _Part, sizes: Sequence[Sizes]) -> list[Finding]:
    found = []
    for own in (own for own in sizes if own.counts):
        least, median, most = min(own.counts), float(np.median(own.counts)), max(own.counts)
        if most >= 10 * median or median >= 10 * least:
            found.append(
                part.says(
                    "note", "sizes",
                    f"The sizes of the {own.split} {plural(own.kind)} differ much: {least:,} to {most:,} examples, the "
                    f"median {median:,.0f}. All are drawn equally often, so that the small ones are seen over and "
                    "over; more examples of those help most.",
                )
            )  # fmt: skip
        if own.split != "train" and len(own.counts) < 10:
            needed = f"; few {plural(own.kind)} make figures that say little of others. Give {own.split} more of them"
            found.append(
                part.says("note", "sizes", f"{own.split} has only {len(own.counts)} {plural(own.kind)}{needed}.")
            )
    if found or not any(own.counts for own in sizes):
        return found
    return [part.says("ok", "sizes", "The splits are large enough, and their sizes even.")]


def _dropped(part: _Part) -> list[Finding]:
    dropped = part.source.describe().get("dropped") or {}
    return [
        part.says("note", "left out", f"Left out, {count:,}: {reason}. Make sure that you can do without.")
        for reason, count in dropped.items()
    ]


def _values(part: _Part, drawn: Mapping[Split, Sequence[Task]]) -> list[Finding]:
    """Values that are no numbers, constant targets, lopsided classes, inputs that never vary."""
    found = []
    for split, tasks in drawn.items():
        wrong = sum(not all(_finite(leaf) for leaf in tree_leaves(task)) for task in tasks)
        if wrong:
            found.append(
                part.says(
                    "error", "values",
                    f"{wrong} of {len(tasks)} tasks of {split} hold values that are not finite. Put numbers in their "
                    "place, or leave the examples out.",
                )
            )  # fmt: skip
    if not found:
        found.append(part.says("ok", "values", "All values are finite."))
    rows = _rows(part, drawn.get("train", ()), inputs=False)
    if not part.source.objective.task_specific_classes and rows:
        same = sum(bool((task.targets == task.targets[:1]).all()) for task in rows)
        if same:
            severity: Severity = "error" if same == len(rows) else "warning" if same > 0.5 * len(rows) else "note"
            found.append(
                part.says(
                    severity, "targets",
                    f"In {same} of {len(rows)} tasks of train every target is the same, and nothing can be learned "
                    "from them. Check the target's column, or leave such groups out.",
                )
            )  # fmt: skip
        targets = np.concatenate([task.targets for task in rows])
        if targets.shape[1] > 1 and _ask(part.source) == "shared classes":
            share = float(targets.mean(0).max())
            if share > 0.9 and same < len(rows):
                found.append(
                    part.says(
                        "warning", "imbalance",
                        f"{share:.1%} of the targets are of one class, so that always naming it is right that often. "
                        "Look at the baselines before you trust an accuracy, or ask for a rarer target.",
                    )
                )  # fmt: skip
    return found + _constant(part, drawn)


def _constant(part: _Part, drawn: Mapping[Split, Sequence[Task]]) -> list[Finding]:
    columns, found = _columns(part, drawn), []
    preprocessor = part.source.preprocessor
    if isinstance(preprocessor, TablePreprocessor):
        found = [
            part.says("note", "columns", f"Column {column.name!r} is no input: {column.left_out}.")
            for column in preprocessor.columns.columns
            if column.left_out
        ]
    if columns:
        rows = _rows(part, drawn["train"])
        features = np.concatenate([task.features for task in rows])
        still = [
            name for name, places in columns.items() if places and (features[:, places] == features[0, places]).all()
        ]
        if still:
            listed = ", ".join(map(repr, still[:_TOLD])) + (", …" if len(still) > _TOLD else "")
            found.append(
                part.says(
                    "note", "columns",
                    f"In the tasks looked at the same everywhere: {listed}. Such inputs tell nothing; leave them out.",
                )
            )  # fmt: skip
    return found


def _leaking(part: _Part, drawn: Mapping[Split, Sequence[Task]]) -> list[Finding]:
    columns, ask = _columns(part, drawn), _ask(part.source)
    if not columns:
        return []
    found = []
    for leak in leaks(_rows(part, drawn.get("train", ())), columns, ask):
        how = (
            "is the target under another name"
            if leak.same
            else f"alone ranks the targets of a task almost perfectly (rank correlation {leak.score:.3f})"
            if ask == "numbers"
            else f"alone tells the target in {leak.score:.1%} of cases"
        )
        todo = "Leave it out by ignore, unless it is known before the target is."
        found.append(part.says("error" if leak.same else "warning", "leakage", f"{leak.column!r} {how}. {todo}"))
    found += _ordered(part)
    return found or [part.says("ok", "leakage", "No input by itself gives the target away.")]


def _ordered(part: _Part) -> list[Finding]:
    """Targets that are sorted in the file, group by group."""
    source = part.source
    if not isinstance(source, GroupTasks) or isinstance(source, SeriesTasks):
        return []
    groups = []
    for rows in list(part.members("train").values())[:100]:
        targets = np.asarray(source.examples.take(np.sort(rows)[:500])[1])
        classes = targets.shape[1] > 1 and _ask(source) == "shared classes"
        groups.append(targets.argmax(1) if classes else targets[:, 0])
    sorted_ = sorted_by_target(groups)
    if sorted_ < 0.95:
        return []
    if source.order == "given":
        todo = "A support then never shows targets as its query asks for: make sure that time is what orders them"
        return [part.says("warning", "order", f"In their order of time, the targets of a group are sorted. {todo}.")]
    todo = "Tasks draw rows at random, so this does no harm, unless a column counts rows: leave such a one out"
    return [part.says("note", "order", f"In the file, the rows of a group are sorted by their target. {todo}.")]


def _choose(part: _Part, most: int, bad: set[int]) -> tuple[dict[Split, dict[str, np.ndarray]], int, int]:
    """The rows to look at by split and member, how many these are, and how many there are; small splits are whole."""
    members = {split: own for split in part.splits if (own := part.members(split))}
    sizes = {split: sum(map(len, own.values())) for split, own in members.items()}
    left, chosen = most, {}
    for number, split in enumerate(sorted(sizes, key=lambda split: sizes[split])):
        count = min(sizes[split], left // (len(sizes) - number))
        left -= count
        flat = np.concatenate(list(members[split].values()))
        owner = np.repeat(np.arange(len(members[split])), [len(rows) for rows in members[split].values()])
        places = np.sort(np.random.default_rng(0).permutation(len(flat))[:count])
        places = places[~np.isin(flat[places], list(bad))] if bad else places
        bounds = owner[places].searchsorted(np.arange(1, len(members[split])))
        chosen[split] = dict(zip(members[split], np.split(flat[places], bounds)))
    return chosen, most - left, sum(sizes.values())


def _look(part: _Part, split: Split, chosen: Mapping[str, np.ndarray], drawn: Sequence[Task]) -> _Seen:
    """Hash the content of rows; of the tasks' examples where a source has no rows to look at."""
    keys: list[bytes] = []
    blank: list[bool] = []
    members = [name for name, rows in chosen.items() for _ in rows]
    if chosen:
        source: Any = part.source
        flat = np.concatenate(list(chosen.values()))
        for start in range(0, len(flat), _CHUNK):
            taken = source.examples.take(flat[start : start + _CHUNK])
            keys += content_hashes(taken)
            blank += is_blank(taken[0] if isinstance(source, GroupTasks) else taken)
        names = _names(part, split, flat, members)
        if isinstance(source, TextTasks):  # short texts may share features and still be different
            inputs, keys = keys, [source.texts[row].encode("utf-8", "surrogatepass") for row in flat.tolist()]
            often = Counter(keys)
            copied = {own for own, key in zip(inputs, keys) if often[key] > 1}
            return _Seen(keys, members, names, blank, False, copied)
    else:
        batches = [batch for task in drawn for batch in task] if not isinstance(part.source, RatingTasks) else []
        for batch in batches:
            real = batch.weight > 0
            inputs, targets = tree_map(lambda leaf, real=real: leaf[real], (batch.inputs, batch.targets))
            keys += content_hashes(inputs if part.source.objective.task_specific_classes else (inputs, targets))
            blank += is_blank(inputs)
        members = names = ["a task"] * len(keys)
    homes: dict[bytes, set[str]] = defaultdict(set)
    for key, member in zip(keys, members):
        homes[key].add(member)
    shared = sum(len(homes[key]) > 1 for key in keys)
    return _Seen(keys, members, names, blank, _is_flat(drawn) and shared > 0.02 * len(keys))


def _names(part: _Part, split: Split, rows: np.ndarray, members: Sequence[str]) -> list[str]:
    """What to call each example."""
    images, texts = part.images, getattr(part.source, "texts", None)
    if images is not None:
        return [images.files[row % len(images)].name for row in rows.tolist()]
    if texts is not None:
        return [repr(texts[row][:60]) for row in rows.tolist()]
    table = isinstance(part.source.preprocessor, TablePreprocessor)
    return [f"{'row' if table else 'example'} {row} of {name!r}" for row, name in zip(rows.tolist(), members)]


def _across(seen: Mapping[Split, Sequence[_Seen]]) -> list[Finding]:
    """Examples of one split that stand in another too."""
    found = []
    for place, split in enumerate(SPLITS):
        for other in SPLITS[:place]:
            where = {
                key: name
                for entry in seen.get(other, ())
                for key, name, blank in zip(entry.keys, entry.names, entry.blank)
                if not blank
            }
            twice = [
                (name, where[key])
                for entry in seen.get(split, ())
                for key, name in zip(entry.keys, entry.names)
                if key in where
            ]
            if not twice:
                continue
            count = sum(len(entry.keys) for entry in seen[split])
            few = any(entry.few for entry in (*seen[split], *seen[other]))
            what = f"{len(twice):,} of {count:,} {split} examples looked at have the same content as one of {other}"
            if few:
                sentence = f"{what}, as examples with few different values do; nothing is wrong unless rows were copied"
                found.append(Finding("note", "two splits", f"{sentence}."))
                continue
            first = f"the first {twice[0][0]}, which is {twice[0][1]}" if twice[0][0] != "a task" else "in their tasks"
            todo = "What is tested was then trained on: remove one of each pair, or put both into one split"
            severity: Severity = "error" if len(twice) > 0.01 * count else "warning"
            found.append(Finding(severity, "two splits", f"{what}: {first}. {todo}."))
    return found or [Finding("ok", "two splits", "No example looked at stands in two splits.")]


def _within_split(part: _Part, seen: Mapping[Split, _Seen]) -> list[Finding]:
    """Examples that stand twice in a class or group, or in two classes."""
    found = []
    classes = isinstance(part.source, ClassTasks)
    for split, entry in seen.items():
        if not part.members(split) or entry.few:
            continue
        first: dict[bytes, int] = {}
        own: list[tuple[str, str]] = []
        foreign: list[tuple[str, str]] = []
        for place, key in enumerate(entry.keys):
            if not entry.blank[place] and (other := first.setdefault(key, place)) != place:
                twice = own if entry.members[place] == entry.members[other] else foreign
                twice.append((entry.names[place], entry.names[other]))
        for twice, where, todo in (
            (own, f"the same {'class' if classes else 'group'}", "One may be shown and the other asked: remove copies"),
            (foreign, "another class", "No model can tell which they are: keep each in one, or merge the classes"),
        ):
            if twice and (classes or twice is own):
                severity: Severity = "warning" if len(twice) > 0.01 * len(entry.keys) else "note"
                what = f"{len(twice):,} of {len(entry.keys):,} {split} examples looked at have the content of another"
                pair = f"the first {twice[0][0]}, which is {twice[0][1]}"
                found.append(part.says(severity, "copies", f"{what} one in {where}: {pair}. {todo}."))
    return found


def _within_task(part: _Part, drawn: Mapping[Split, Sequence[Task]], seen: Mapping[Split, _Seen]) -> list[Finding]:
    """Queries whose answer the support of their task shows."""
    if isinstance(part.source, RatingTasks):
        return []
    task_specific_classes, found = part.source.objective.task_specific_classes, []
    for split, tasks in drawn.items():
        shown, asked, copied = 0, 0, seen[split].copied
        for task in tasks:
            support, query = (_keys(batch, task_specific_classes) for batch in task)
            twice = set(support) if copied is None else copied.intersection(support)
            shown, asked = shown + sum(key in twice for key in query), asked + len(query)
        if not shown:
            continue
        few = any(entry.few for entry in seen.values())
        severity: Severity = "note" if few else "error" if shown > 0.05 * asked else "warning"
        found.append(
            part.says(
                severity, "support and query",
                f"{shown:,} of {asked:,} query examples of {split} ({shown / asked:.1%}) have the same content as one "
                "of their own support, which shows the answer. "
                + (
                    "With so few different values that may be; nothing is wrong unless rows were copied."
                    if few
                    else "Remove the copies."
                ),
            )
        )  # fmt: skip
    return found or [part.says("ok", "support and query", "No query looked at is shown in its own support.")]


def _blank(part: _Part, seen: Mapping[Split, _Seen]) -> list[Finding]:
    found = []
    for split, entry in seen.items():
        count = sum(entry.blank)
        if count:
            first = entry.names[entry.blank.index(True)]
            severity: Severity = "warning" if count > 0.01 * len(entry.blank) else "note"
            found.append(
                part.says(
                    severity, "blank",
                    f"{count:,} of {len(entry.blank):,} {split} examples looked at hold one value throughout, such as "
                    f"a white image: the first {first}. They tell nothing; leave them out.",
                )
            )  # fmt: skip
    return found


def _ask(source: TaskSource) -> str:
    if source.objective.task_specific_classes:
        return "own classes"
    return (
        "shared classes"
        if isinstance(source.preprocessor, TablePreprocessor) and source.preprocessor.classes
        else "numbers"
    )


def _columns(part: _Part, drawn: Mapping[Split, Sequence[Task]]) -> dict[str, list[int]]:
    """The names of input columns and the places of their features; none where inputs are no rows of numbers."""
    tasks = drawn.get("train", ())
    if not _is_flat(tasks) or isinstance(part.source, TextTasks):
        return {}
    width = tasks[0].support.inputs.shape[1]
    preprocessor = part.source.preprocessor
    if isinstance(preprocessor, TablePreprocessor):
        place = {name: number for number, name in enumerate(preprocessor.columns.features)}
        return {c.name: [place[name] for name in c.features] for c in preprocessor.columns.columns if c.features}
    return {f"input {number + 1}": [number] for number in range(width)} if width <= _COLUMNS else {}


def _is_flat(tasks: Sequence[Task]) -> bool:
    """Whether inputs and targets are rows of numbers, (n, F)."""
    return bool(tasks) and all(
        isinstance(leaf, Tensor) and leaf.ndim == 2 and leaf.is_floating_point()
        for leaf in (tasks[0].support.inputs, tasks[0].support.targets)
    )


def _rows(part: _Part, tasks: Sequence[Task], *, inputs: bool = True) -> list[Rows]:
    """Tasks as rows of features and targets, padding left out; without features where they are not asked for."""
    found = []
    for task in tasks:
        kept = [batch.weight > 0 for batch in task]
        targets = torch.cat([batch.targets[keep] for batch, keep in zip(task, kept)]).flatten(1)
        values = [batch.inputs[keep] for batch, keep in zip(task, kept)] if inputs else [targets[:, :0]]
        found.append(Rows(torch.cat(values).numpy(), targets.numpy(), int(kept[0].sum())))
    return found


def _keys(batch: Batch, task_specific_classes: bool) -> list[bytes]:
    real = batch.weight > 0
    inputs, targets = tree_map(lambda leaf: leaf[real], (batch.inputs, batch.targets))
    blank = is_blank(inputs)
    keys = content_hashes(inputs if task_specific_classes else (inputs, targets))
    return [key for key, empty in zip(keys, blank) if not empty]


def _finite(leaf: Tensor) -> bool:
    return not leaf.is_floating_point() or bool(leaf.isfinite().all())
