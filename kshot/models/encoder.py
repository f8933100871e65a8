"""A pretrained encoder of texts or images as a base model: its head, all, its last layers or LoRA adapters are trained.

Shape legend: n texts or images, L tokens, C channels, S side in pixels, D features.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.images.encoder import BATCH as IMAGES
from kshot.data.images.encoder import ImageEncoder, PreparedNetwork
from kshot.data.images.feature_maps import blocks_of
from kshot.data.text.sentence_encoder import BATCH, Pooled, SentenceEncoder
from kshot.models.pretrained import Pretrained, fix_norms, lora_targets, with_lora
from kshot.supplied import EncoderName, ImageSize, NumOutputs

Tune = Literal["head", "full", "lora"]


class _Cache:
    """The features of inputs under some weights, shared by a module and its replicas, which copy lists and dicts."""

    def __init__(self) -> None:
        self.entry: tuple[list[tuple[Tensor, int, int]], dict[bytes, Tensor]] = [], {}

    def of(self, weights: list[tuple[Tensor, int, int]], most: int) -> dict[bytes, Tensor]:
        """The features under weights, each a tensor, its version and its address; none if others were asked before.

        At most so many are kept.
        """
        cached_with, features = self.entry
        unchanged = len(weights) == len(cached_with) and all(
            a is b and version == cached for (a, *version), (b, *cached) in zip(weights, cached_with)
        )
        if not unchanged or len(features) > most:
            features = {}
            self.entry = weights, features  # at once, for other threads
        return features

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cache:
        return _Cache()


class Encoder(Pretrained):
    """A pretrained encoder, inputs to features (n, D), or by a linear `head` to (n, outputs).

    If no gradient is needed and the weights are those of the module, the features of each input are cached until the
    weights change, since many tasks contain the same inputs.

    Attributes:
        body: inputs to features; its attribute `features` is D.
    """

    body: Pooled | PreparedNetwork
    batch: int
    most_cached: int

    def __init__(
        self, body: Pooled | PreparedNetwork, outputs: int | None, source: SentenceEncoder | ImageEncoder
    ) -> None:
        super().__init__()
        self.body = body
        self.set_origin(source.name, source.sha256)
        self.head = None if outputs is None else nn.Linear(body.features, outputs)
        self._cache = _Cache()

    def train(self, mode: bool = True) -> Encoder:
        """As `nn.Module.train`, but a frozen body stays in evaluation mode, without dropout."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.body.parameters()):
            self.body.eval()
        return self

    def _learns(self) -> bool:
        return self.body.training or (torch.is_grad_enabled() and any(p.requires_grad for p in self.body.parameters()))

    def _scored(self, features: Tensor) -> Tensor:
        return features if self.head is None else self.head(features)

    @torch.no_grad()
    def _cached_features(self, keys: list[bytes], sizes: list[int], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """The features of rows by their keys; `encode` gives those of some rows, which come in the order of sizes."""
        weights: list[tuple[Tensor, int, int]] = [(p, p._version, p.data_ptr()) for p in self.body.parameters()]
        cached = self._cache.of(weights, self.most_cached)
        missing = {key: row for row, key in enumerate(keys) if key not in cached}
        order = sorted(missing.values(), key=lambda row: sizes[row])
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            for row, features in zip(rows, encode(rows)):
                cached[keys[row]] = features.clone()
        return torch.stack([cached[key] for key in keys])


class SentenceModel(Encoder):
    """Token ids and mask (n, L), padded at the end, to features (n, D) or outputs."""

    batch, most_cached = BATCH, 200_000

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if _values_unknown(input_ids):
            return self._scored(self.body(input_ids, attention_mask))
        lengths = attention_mask.sum(1).tolist()
        if self._learns():
            longest = int(max(lengths))
            return self._scored(self.body(input_ids[:, :longest], attention_mask[:, :longest]))

        def encode(rows: list[int]) -> Tensor:
            longest = lengths[rows[-1]]
            return self.body(input_ids[rows, :longest], attention_mask[rows, :longest])

        keys = [row[:length].numpy().tobytes() for row, length in zip(input_ids.cpu(), lengths)]
        return self._scored(self._cached_features(keys, lengths, encode))


class ImageModel(Encoder):
    """Images (n, C, S, S) in 0 … 1, C 1 or 3, to features (n, D) or outputs."""

    batch, most_cached = IMAGES, 50_000

    def forward(self, images: Tensor) -> Tensor:
        if _values_unknown(images) or self._learns():
            return self._scored(self.body(images))

        def encode(rows: list[int]) -> Tensor:
            return self.body(images[rows].contiguous(memory_format=torch.channels_last))

        rows = (row.contiguous().numpy() for row in images.detach().cpu())
        keys = [hashlib.blake2b(row, digest_size=16).digest() for row in rows]
        return self._scored(self._cached_features(keys, [0] * len(keys), encode))


def _values_unknown(ids: Tensor) -> bool:
    """Whether a transform, a tracer or a compiler is active, which does not know values."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or _get_current_dispatch_mode() is not None
        or torch.compiler.is_compiling()
        or not len(ids)
    )


@check_arguments
def encoder(
    name: EncoderName,
    outputs: NumOutputs | None = None,
    *,
    image_size: ImageSize | None = None,
    tune: Tune = "lora",
    layers: PositiveInt | None = None,
    rank: PositiveInt = 8,
) -> Encoder:
    r"""A pretrained encoder as a base model: of texts, or of images where `image_size` is given.

    Texts are those of `kshot.sources.text(…, features="tokens", encoder=name)`, and images those of
    `kshot.sources.images(…, encoder=name)`. With `tune="lora"` layers of the encoder get LoRA adapters (see
    `pretrained.with_lora`): those of the attention's queries and values in transformers that are known, and all linear
    layers and 1×1 convolutions in other networks. Only these and the head are trained and adapted.

    Args:
        name: as in `SentenceEncoder` or `ImageEncoder`.
        outputs: outputs of a linear head on the pooled features; None for no head.
        image_size: side of the images in pixels; None for texts.
        tune: "head", "full" or "lora". All other parameters have `requires_grad=False`.
        layers: number of layers to tune, from the last, with what comes after them in a network of images; by default
            all. Layers are the repeated blocks of a network.
        rank: r, rank of LoRA.

    Raises:
        ValueError: the encoder does not exist or has no list of layers, or fewer than `layers`; one of an ONNX file.
    """
    if image_size is None:
        texts = SentenceEncoder(name)
        pooled = texts.pooled()
        pooled.transformer = _tuned(pooled.transformer, name, pooled.architecture, tune, layers, rank)
        return SentenceModel(pooled, outputs, texts)
    images = ImageEncoder(name, size=image_size)
    prepared = images.module()
    if not any(True for _ in prepared.parameters()):
        raise ValueError(f"{name} gives features only and cannot be tuned: give the source features: encoder")
    fix_norms(prepared)
    prepared.network = _tuned(prepared.network, name, prepared.architecture, tune, layers, rank, and_after=True)
    return ImageModel(prepared, outputs, images)


def _tuned(
    network: nn.Module,
    name: str,
    architecture: str,
    tune: Tune,
    layers: int | None,
    rank: int,
    *,
    and_after: bool = False,
) -> nn.Module:
    """A network of which only what `encoder` says requires a gradient, with adapters if it gets any.

    Args:
        and_after: whether the parameters after the last layers are tuned with them.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no list of layers, which is needed to tune it")
    if layers is not None and layers > len(blocks):
        raise ValueError(
            f"{name} has {len(blocks)} layers, of which 1 … {len(blocks)} can be tuned, got layers={layers}"
        )
    last = tuple(f"{path}." for path in blocks[-(layers or len(blocks)) :])
    names = [parameter for parameter, _ in network.named_parameters()]
    after = names[1 + max(n for n, parameter in enumerate(names) if parameter.startswith(last)) :] if and_after else []
    if tune == "lora":
        return with_lora(network, rank, targets=_adapted(network, architecture, last if layers else ("",)))
    for parameter_name, parameter in network.named_parameters():
        tuned = tune == "full" and (layers is None or parameter_name.startswith(last) or parameter_name in after)
        # A pooler is not used: it comes after the pooled layer.
        parameter.requires_grad_(tuned and not re.search(r"(^|\.)pooler\.", parameter_name))
    return network


def _adapted(network: nn.Module, architecture: str, prefixes: tuple[str, ...]) -> list[str]:
    """The names of the layers below some modules that get LoRA adapters."""
    known = lora_targets(architecture)
    return [
        path
        for path, module in network.named_modules()
        if path.startswith(prefixes)
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1}))
        and (known is None or path.rsplit(".", 1)[-1] in known)
        and not re.search(r"(^|\.)pooler\.", f"{path}.")
    ]
