"""What a run supplies to the parts that it is made of, as annotations of a factory's signature.

A source, model or learner of a run file is made by a factory: `kind: protonet`, or `kind: my_package.my_module:factory`
for one of your own. The annotation of an argument says where its value comes from. An argument with one of the types
below is supplied by the run; one with a type that YAML can write (numbers, words, lists, mappings, bounded as in
`kshot.annotations`) is a key of the run file. `Objective`, `Target` and `Budget` are supplied by their type.

Example:
    >>> def my_backbone(shape: InputShape, outputs: NumOutputs | None, *, width: int = 64) -> nn.Module: ...
    >>> def my_learner(embedding: Embedding, *, features: FeatureCount, objective: Objective, scale: float = 1.0): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from torch import nn

from kshot.annotations import MOST, Declared, Supplied

Seed = Annotated[int, Supplied.SEED]

BaseModel = Annotated[nn.Module, Supplied.MODEL]
Embedding = Annotated[nn.Module, Supplied.EMBEDDING]
FrozenEmbedding = Annotated[nn.Module, Supplied.FROZEN_EMBEDDING]
MapEmbedding = Annotated[nn.Module, Supplied.MAP_EMBEDDING]
TaskEncoder = Annotated[nn.Module, Supplied.TASK_ENCODER]
TaskDim = Annotated[int, Ge(1), Le(MOST), Declared.TASK_DIM]
ContextWindows = Annotated[int, Ge(0), Le(MOST), Declared.CONTEXT_WINDOWS]
FeatureCount = Annotated[int, Supplied.FEATURE_COUNT]
FeatureShape = Annotated[int | Sequence[int], Supplied.FEATURE_SHAPE]

InputShape = Annotated[Sequence[int], Supplied.INPUT_SHAPE]
Channels = Annotated[int, Supplied.CHANNELS]
ImageSize = Annotated[int, Supplied.IMAGE_SIZE]
FeatureMaps = Annotated[bool, Supplied.FEATURE_MAPS]
NumSymbols = Annotated[int, Supplied.NUM_SYMBOLS]
ContextLength = Annotated[int, Supplied.CONTEXT_LENGTH]
LanguageModelFolder = Annotated[Path | str, Supplied.LANGUAGE_MODEL]
NumReserved = Annotated[int, Supplied.NUM_RESERVED]
EncoderName = Annotated[str, Supplied.ENCODER]
NumItems = Annotated[int, Supplied.NUM_ITEMS]
ItemCounts = Annotated[Sequence[int], Supplied.ITEM_COUNTS]
ItemFeatures = Annotated[int, Supplied.ITEM_FEATURES]
UserFeatures = Annotated[int, Supplied.USER_FEATURES]
ItemFactors = Annotated[int, Supplied.ITEM_FACTORS]
RatingFeatures = Annotated[int, Supplied.RATING_FEATURES]
NumOutputs = Annotated[int, Supplied.NUM_OUTPUTS]
