"""Rebuild the preprocessor that a run folder keeps."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Any

from kshot.sources.corpus import CorpusPreprocessor
from kshot.sources.image_files import ImagePreprocessor
from kshot.sources.image_names import NamedImagePreprocessor
from kshot.sources.masks import MaskPreprocessor
from kshot.sources.multilabel_images import MultilabelPreprocessor
from kshot.sources.ratings.preprocessor import RatingPreprocessor
from kshot.sources.series import SeriesPreprocessor
from kshot.sources.table import TablePreprocessor
from kshot.sources.text_names import NamedTextPreprocessor
from kshot.sources.text_preprocessor import TextPreprocessor
from kshot.tasks.preprocessor import Preprocessor

KINDS: dict[str, Any] = {
    "corpus": CorpusPreprocessor,
    "images": ImagePreprocessor,
    "masks": MaskPreprocessor,
    "multilabel_images": MultilabelPreprocessor,
    "named_images": NamedImagePreprocessor,
    "named_text": NamedTextPreprocessor,
    "ratings": RatingPreprocessor,
    "series": SeriesPreprocessor,
    "table": TablePreprocessor,
    "text": TextPreprocessor,
}


def preprocessor_from_json(data: dict[str, Any], modules: Collection[str] = ()) -> Preprocessor:
    """Rebuild a preprocessor from the result of its `to_json`.

    Its "kind" is a key of `KINDS`, or "module:Class" for a class with a method `from_json`. `modules` are those that
    the run file itself names, since a file of unknown origin must not choose what is imported; other modules and
    unknown kinds are a ValueError.
    """
    kind = data["kind"]
    if kind in KINDS:
        return KINDS[kind].from_json(data)
    module, _, name = str(kind).partition(":")
    if not name or module not in modules:
        raise ValueError(
            f"unknown preprocessor {kind!r}: expected one of {', '.join(KINDS)}, or module:Class of a module that the "
            f"run file names ({', '.join(modules) or 'it names none'})"
        )
    return getattr(import_module(module), name).from_json(data)
