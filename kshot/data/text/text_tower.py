"""The text tower of an encoder of images and texts: the names of classes as features in the space of its images.

Shape legend: n texts, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kshot.data.pretrained import LOCAL, config, folder_of, named_errors, transformers_library

BATCH = 64  # texts in one forward pass


class TextTower(NamedTuple):
    """The text tower of a kind of encoder.

    Attributes:
        made: the class of `transformers`.
        output: the name of its features.
        padding: how texts were padded in training.
    """

    made: str
    output: str
    padding: bool | str


TOWERS: Mapping[str, TextTower] = {
    "clip": TextTower("CLIPTextModelWithProjection", "text_embeds", True),
    "siglip": TextTower("SiglipTextModel", "pooler_output", "max_length"),
}
"""The text tower of each kind of encoder of images and texts."""


def find_text_tower(name: str) -> tuple[Path, TextTower]:
    """The folder of an encoder and its text tower; ValueError if it is not on this machine or has none."""
    if name.startswith(("package:", "timm:")) or name.endswith(".onnx"):
        raise ValueError(f"{name} reads no texts: the names of classes need a folder of {' or '.join(TOWERS)}")
    folder = folder_of(name)
    architecture = str((config(folder / "config.json") or {}).get("model_type"))
    if architecture not in TOWERS:
        raise ValueError(
            f"{folder} holds an encoder of the kind {architecture!r}, which has no text tower that kshot knows: take "
            f"one of {', '.join(TOWERS)}, or give the features of names yourself"
        )
    return folder, TOWERS[architecture]


def has_text_tower(name: str) -> bool:
    """Whether an encoder reads texts, too."""
    try:
        find_text_tower(name)
    except ValueError:
        return False
    return True


def text_features(name: str | Path, texts: Sequence[str]) -> np.ndarray:
    """Compute features (n, D) float32 of texts by the text tower of an encoder such as CLIP or SigLIP.

    They are in the space of the features that `ImageEncoder` gives of images, so that a class can be named to a learner
    (see `kshot.tasks.with_names`). Encoders were trained on sentences: "a photo of a {name}." is better than the name.

    Args:
        name: as in `SentenceEncoder`, of an encoder that reads images and texts, with its tokenizer.
        texts: the names, or sentences on the classes.

    Raises:
        ValueError: no such encoder on this machine, one that has no text tower, or no text.
    """
    if not texts:
        raise ValueError("there is no text to encode")
    folder, (made, output, padding) = find_text_tower(str(name))
    with transformers_library() as transformers:
        with named_errors(folder, "tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
        with named_errors(folder, "weights"):
            tower = getattr(transformers, made).from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, **LOCAL
            )
    tower.eval()
    most = int(tower.config.max_position_embeddings)
    features = []
    for start in range(0, len(texts), BATCH):
        chunk = list(texts[start : start + BATCH])
        tokens = tokenizer(chunk, padding=padding, truncation=True, max_length=most, return_tensors="pt")
        with torch.no_grad():
            features.append(tower(**tokens)[output])
    return torch.cat(features).numpy()
