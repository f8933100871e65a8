"""N-way K-shot classification of texts: intents, topics, kinds of ticket, from a table, folders of files, or JSON."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kshot.tasks import delimited
from kshot.tasks.drawing import Size
from kshot.tasks.examples import Examples
from kshot.tasks.features import Featuriser, character_ids, hashed_ngrams
from kshot.tasks.fewshot import ClassTasks, Imbalance
from kshot.tasks.listing import SPLIT_FOLDERS
from kshot.tasks.pools import Small
from kshot.tasks.prose import files_of, read_text, texts_of
from kshot.tasks.reading import PLAIN, Reading, Table, open_table
from kshot.tasks.splitting import cut
from kshot.tasks.vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars

log = logging.getLogger(__name__)

NGRAMS: dict[str, tuple[int, int]] = {"words": (1, 2), "characters": (2, 4)}
"""The smallest and largest n-grams by default."""
SHOWN = 5  # cases told in a warning


def text(
    path: Path | str | Table,
    *,
    text: str = "text",
    label: str = "label",
    domain: str = "domain",
    within: bool = False,
    split: Mapping[str, Any] | None = None,
    features: Literal["words", "characters", "ids"] | Featuriser = "words",
    ngrams: tuple[int, int] | None = None,
    width: int = 1024,
    ways: Size = 5,
    shots: Size = 1,
    queries: Size = 15,
    train_queries: Size | None = None,
    imbalance: Imbalance | None = None,
    label_noise: float = 0.0,
    small: Small = "error",
    bad_rows: Literal["error", "drop"] = "error",
    reading: Reading = PLAIN,
    seed: int = 0,
) -> ClassTasks:
    ...
