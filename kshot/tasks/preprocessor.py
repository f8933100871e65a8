"""What a run keeps of its data, so that `kshot adapt` and `predict` read a user's files without the training data."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from kshot.types import Tree

if TYPE_CHECKING:
    from kshot.sources.corpus import CorpusEncoding

KINDS = {
    "table": "kshot.sources.table:TableEncoding",
    "series": "kshot.sources.series:SeriesEncoding",
    "ratings": "kshot.sources.ratings.preprocessor:RatingEncoding",
    "text": "kshot.sources.text:TextEncoding",
    "corpus": "kshot.sources.corpus:CorpusEncoding",
}


class Support(NamedTuple):
    """A user's support set as read from a file.

    Attributes:
        inputs: leaves (n, ...).
        targets: (n, ...), or the n class names where each task has classes of its own.
        kept: what predicting needs of it, for JSON.
    """

    inputs: Tree
    targets: Tensor | list[str]
    kept: dict[str, Any]


class Encoding(Protocol):
    """How files become inputs and targets, and predictions become figures in the data's own units."""

    def support(self, path: Path) -> Support:
        """A support set from a file; `ValueError` says what is wrong with it."""
        ...

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tree:
        """Inputs (n, ...) to predict for from a file."""
        ...

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """A prediction (n, ...) for a person: the columns of a table."""
        ...

    def describe(self) -> dict[str, Any]:
        """How inputs and targets are encoded, for a report."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All of it; its "kind" is a key of `KINDS`."""
        ...


def from_json(data: dict[str, Any]) -> Encoding | CorpusEncoding:
    """The encoding that a run kept."""
    module, name = KINDS[data["kind"]].split(":")
    return getattr(import_module(module), name).from_json(data)
