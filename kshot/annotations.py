"""Bounds of arguments, and the markers of those that a run supplies, as annotations of a factory's signature.

An argument, its default and its bounds stand once, in the signature. The schema of run files is made from it (see
`app.schema`), so that `shots: PositiveInt = 5` is both documentation and the check of the key `shots`.

Example:
    >>> def ridge(width: PositiveInt = 64, dropout: FractionBelowOne = 0.0) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

MOST = 2**31 - 1
"""The largest count or size: no more fits the indices of libraries."""
MOST_SEED = 2**63 - 1
MOST_FLOAT = 1e30
"""The largest rate, penalty or time, which a float32 holds with room to multiply it."""
PositiveInt = Annotated[int, Ge(1), Le(MOST)]
NonNegativeInt = Annotated[int, Ge(0), Le(MOST_SEED)]
PositiveFloat = Annotated[float, Gt(0), Le(MOST_FLOAT)]
NonNegativeFloat = Annotated[float, Ge(0), Le(MOST_FLOAT)]
PositiveOrInfinite = Annotated[float, Gt(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
"""0 to 1, both included."""
PositiveFraction = Annotated[float, Gt(0), Le(1)]
"""Above 0, up to 1 included."""
FractionBelowOne = Annotated[float, Ge(0), Lt(1)]
"""From 0 included to below 1, such as a dropout rate."""
OpenFraction = Annotated[float, Gt(0), Lt(1)]
"""Above 0 and below 1."""
Degrees = Annotated[float, Ge(0), Le(180)]
PositiveInts = Annotated[Sequence[PositiveInt], Len(1)]
"""One or more whole numbers above 0, such as the widths of layers."""
FourPositiveInts = Annotated[Sequence[PositiveInt], Len(4, 4)]
PositiveIntPair = Annotated[Sequence[PositiveInt], Len(2, 2)]
PositiveFloatPair = Annotated[Sequence[PositiveFloat], Len(2, 2)]
PathText = Annotated[str, Len(1)]
"""A path as text, not empty."""
DerivativeOrder = Literal[1, 2]
"""2 differentiates through inner steps exactly, 1 takes the first-order approximation."""


EMPTY: Mapping[str, Any] = MappingProxyType({})  # the default of an argument that is a mapping


@dataclass(frozen=True)
class OptionsOf:
    """The annotation of a mapping, or of `**options`, of arguments of another factory, except those of `without`."""

    factory: Callable[..., Any]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartOfFile:
    """The annotation of an argument that is another source's factory, whose arguments are passed on as `**options`.

    `key` of the run file holds the other source's `kind` and its arguments except the first, the path.
    """

    key: str


@dataclass(frozen=True)
class Checked:
    """A check that no bound expresses: `function` returns the value, or raises ValueError with what it must be."""

    function: Callable[[Any], Any]


def _size(value: Any) -> Any:
    ends = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(end) is int and 1 <= end <= MOST for end in ends) or ends != sorted(ends):
        raise ValueError(f"must be a whole number from 1 to {MOST}, or a rising range of two such as [1, 5]")
    return value


def _ways(value: Any) -> Any:
    return value if value == "all" else _size(value)


Ways = Annotated[int | Sequence[int] | str, Checked(_ways)]
"""A number of classes as a `Size`, or "all": all classes of the split."""
Size = Annotated[int | Sequence[int], Checked(_size)]
"""A number of ways, shots or queries: an int, or (low, high), sampled for each task, both ends included."""


class Supplied(Enum):
    """What a run supplies; each member's value says it in words."""

    SEED = "the seed: of the tasks for a source, of the weights for anything else"
    # to a learner
    MODEL = "the run's model, with a last layer that gives the task's outputs"
    EMBEDDING = "the run's model without a last layer: inputs (n, ...) to features"
    FROZEN_EMBEDDING = "the same, its weights fixed"
    MAP_EMBEDDING = "the same, giving feature maps (n, D, H, W) where the model can"
    TASK_ENCODER = "a second model of the same kind, whose outputs are as many as the argument `TaskDim` says"
    FEATURE_COUNT = "how many numbers the embedding, or the input where there is no model, has for one example"
    FEATURE_SHAPE = "their shape"
    # to a model
    INPUT_SHAPE = "the shape of one input, which is one tensor"
    CHANNELS = "the channels of images (C, H, W)"
    IMAGE_SIZE = "the height of images; None for other inputs"
    FEATURE_MAPS = "whether the learner wants feature maps"
    NUM_SYMBOLS = "the size of the vocabulary of running text"
    CONTEXT_LENGTH = "how many symbols are read at once"
    LANGUAGE_MODEL = "the folder of the pretrained language model whose tokenizer the source uses"
    NUM_RESERVED = "how many symbols come before those of the tokenizer"
    ENCODER = "the name of the pretrained encoder whose tokens or images the source gives"
    NUM_ITEMS = "how many items are rated"
    ITEM_COUNTS = "the number of training ratings of each item"
    ITEM_FEATURES = "how many features an item has"
    ITEM_FACTORS = "how many factors an item has, with its popularity"
    USER_FEATURES = "how many features a user has"
    RATING_FEATURES = "how many features item and user have together"
    # to both
    NUM_OUTPUTS = "how many numbers are predicted for one example"


class Declared(Enum):
    """What the options of a learner say about the models that it is given."""

    TASK_DIM = "outputs of the model that is supplied as `TaskEncoder`"
    CONTEXT_WINDOWS = "windows that the model reads before the one that it predicts"
