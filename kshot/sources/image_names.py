"""Images whose classes have names that are read too, by the text tower of the encoder of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot.data.images.encoder import ImageEncoder
from kshot.data.tables.frames import TableLike
from kshot.data.text.labelled import phrase
from kshot.data.text.text_tower import find_text_tower, text_features
from kshot.sources.class_names import LABELS, Descriptions, NamesClasses, descriptions_of, named
from kshot.sources.image_files import Features, ImagePreprocessor
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.names import NamedTasks, marked
from kshot.tasks.preprocessor import Support
from kshot.types import SPLITS


def prompt(label: str) -> str:
    """The sentence for a class, as encoders of images and texts were trained on sentences.

    Example:
        >>> prompt("grey_wolf")
        'a photo of a grey wolf.'
    """
    return f"a photo of a {phrase(label)}."


def check_reads_names(features: Features | ImageEncoder, encoder: str | None) -> None:
    """Raise ValueError if the inputs are not the features of an encoder that reads the names of classes, too."""
    if features != "encoder" or encoder is None:
        raise ValueError(
            "names of classes are read by the encoder of the images: they go with features: encoder and an encoder of "
            "images and texts, such as a folder of CLIP or SigLIP"
        )
    find_text_tower(encoder)


def named_images(source: ClassTasks, names: str) -> NamedTasks:
    """The tasks of encoded images with the names of their classes as support rows.

    Args:
        names: "labels", or the JSON file of `read_descriptions`.

    Raises:
        ValueError: errors of `read_descriptions`.
    """
    of_images, classes = source.preprocessor, [name for split in SPLITS for name in source.classes(split)]
    assert isinstance(of_images, ImagePreprocessor)
    preprocessor = NamedImagePreprocessor(**asdict(of_images), descriptions=descriptions_of(names, classes))
    return named(source, preprocessor, classes)


@dataclass(frozen=True)
class NamedImagePreprocessor(ImagePreprocessor, NamesClasses):
    """Images and the names of their classes as features of one space, with the mark of names as a last column."""

    descriptions: Descriptions = field(default_factory=dict)

    def sentence(self, label: str) -> str:
        return prompt(label)

    def features_of(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(text_features(self.encoder, texts))

    def encoded(self, images: Tensor) -> Tensor:
        return marked(super().encoded(images), False)

    def support(self, path: Path | TableLike) -> Support:
        """Images with their classes, and a row for the name of each class; an empty folder is a class alone."""
        assert isinstance(path, Path)
        alone = sorted(each.name for each in path.iterdir() if _is_empty(each)) if path.is_dir() else []
        if alone and all(each.name in alone for each in path.iterdir() if each.is_dir()):
            return Support(marked(self.names_of(alone), True), alone, {})
        images, labels, kept = super().support(path)
        assert isinstance(images, Tensor)
        assert isinstance(labels, list)
        classes = [*dict.fromkeys(labels), *alone]
        return Support(torch.cat([images, marked(self.names_of(classes), True)]), [*labels, *classes], kept)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"names": "descriptions" if self.descriptions else LABELS}

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"kind": "named_images", "descriptions": dict(self.descriptions)}


def _is_empty(path: Path) -> bool:
    """Whether it is a folder of a class without images; hidden files do not count."""
    return path.is_dir() and not path.name.startswith(".") and all(each.name.startswith(".") for each in path.iterdir())
