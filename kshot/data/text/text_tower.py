"""The text tower of an encoder of images and texts: the names of classes as features in the space of its images.

Shape legend: n texts, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from kshot.data.pretrained import LOCAL, config, folder_of, named_errors, transformers_library

BATCH = 64  # texts in one forward pass
TOWERS: Mapping[str, tuple[str, str, bool | str]] = {
    "clip": ("CLIPTextModelWithProjection", "text_embeds", True),
    "siglip": ("SiglipTextModel", "pooler_output", "max_length"),
}
"""Of each kind of encoder: the class of `transformers` for its text tower, the output, and how texts were padded."""


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
    folder = folder_of(str(name))
    architecture = str((config(folder / "config.json") or {}).get("model_type"))
    if architecture not in TOWERS:
        raise ValueError(
            f"{folder} holds an encoder of the kind {architecture!r}, which has no text tower that kshot knows: take "
            f"one of {', '.join(TOWERS)}, or give the features of names yourself"
        )
    made, output, padding = TOWERS[architecture]
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
