"""The results of a check: findings, and the sizes of splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from kshot.data.dataset import Dataset
from kshot.data.images.augment import Turned
from kshot.data.images.cache import DecodedImages
from kshot.data.images.encoder import EncodedImages
from kshot.data.tables.columns import Columns
from kshot.tasks.mixture import Mixture
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Split

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")
"""In ascending order; an error makes a run fail, or its figures worthless."""


class Finding(NamedTuple):
    """The result of one check: what was checked, in a word or two, what was found, and what to do about it."""

    severity: Severity
    check: str
    sentence: str


class Sizes(NamedTuple):
    """The number of examples of each class or group of a split.

    Attributes:
        source: its name in a mixture; empty elsewhere.
        kind: class, group, user, or task for sources without such members.
        counts: of each member; empty if there are none.
        num_tasks: number of distinct tasks; None if it is unlimited.
    """

    source: str
    split: Split
    kind: str
    counts: list[int]
    num_tasks: int | None


class Checked(NamedTuple):
    """The result of `check`: findings in descending order of severity, sizes, and a sentence about its extent."""

    findings: list[Finding]
    sizes: list[Sizes]
    looked_at: str

    @property
    def worst(self) -> Severity:
        """The highest severity."""
        return max((finding.severity for finding in self.findings), key=SEVERITIES.index, default="ok")


class Part(NamedTuple):
    """A source, its name in a mixture, and the splits in which it has tasks.

    Attributes:
        pixels: whether images of which the source has features are compared themselves, for which all are decoded.
    """

    name: str
    source: TaskSource
    splits: tuple[Split, ...]
    pixels: bool = False

    def finding(self, severity: Severity, check: str, sentence: str) -> Finding:
        return Finding(severity, check, f"{self.name}: {sentence}" if self.name else sentence)

    @property
    def images(self) -> DecodedImages | None:
        """The image files of the source, if any are looked at."""
        examples = getattr(self.source, "examples", None)
        examples = examples.examples if isinstance(examples, Turned) else examples
        return self.encoded or (examples if isinstance(examples, DecodedImages) else None)

    @property
    def encoded(self) -> DecodedImages | None:
        """The images of which the source has features, if they are compared themselves."""
        examples = getattr(self.source, "examples", None)
        return examples.small if self.pixels and isinstance(examples, EncodedImages) else None

    @property
    def examples(self) -> Dataset:
        """What is compared: the examples of the source, or the images that they are features of."""
        source: Any = self.source
        return self.encoded or source.examples

    @property
    def columns(self) -> Columns | None:
        """The table columns of the inputs, if they are rows of a table."""
        return self.source.preprocessor.input_columns if self.source.preprocessor else None

    @property
    def target_kind(self) -> str:
        """See `target_leakage.leaks`."""
        if self.source.objective.task_specific_classes:
            return "task classes"
        return "shared classes" if self.source.preprocessor and self.source.preprocessor.classes else "numbers"


def parts_of(source: TaskSource, name: str = "", splits: tuple[Split, ...] = SPLITS) -> Iterator[Part]:
    """A source, or those of a mixture."""
    if not isinstance(source, Mixture):
        yield Part(name, source, splits)
        return
    for inner, part in source.sources.items():
        present = tuple(split for split in splits if source.shares[split].get(inner))
        yield from parts_of(part, f"{name}/{inner}" if name else inner, present)


def listed(cases: list[str], most: int = 5) -> str:
    """The first of several cases, and how many more there are."""
    return "; ".join(cases[:most]) + (f"; and {len(cases) - most:,} more" if len(cases) > most else "")
