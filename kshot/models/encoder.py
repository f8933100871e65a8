"""A pretrained sentence encoder as a base model; trained are its head, all weights, its last layers or LoRA adapters.

Shape legend: n texts, L tokens, D features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.text.sentence_encoder import BATCH, Pooled, SentenceEncoder
from kshot.models.pretrained import Pretrained, with_lora
from kshot.supplied import EncoderName, NumOutputs

Tune = Literal["head", "full", "lora"]

MAX_CACHED_TEXTS = 200_000


class _Cache:
    """The features of texts under some weights, shared by a module and its replicas, which copy lists and dicts."""

    def __init__(self) -> None:
        self.entry: tuple[list[tuple[Tensor, int, int]], dict[bytes, Tensor]] = [], {}

    def of(self, weights: list[tuple[Tensor, int, int]]) -> dict[bytes, Tensor]:
        """The features under weights, each a tensor, its version and its address; none if others were asked before."""
        cached_with, features = self.entry
        unchanged = len(weights) == len(cached_with) and all(
            a is b and version == cached for (a, *version), (b, *cached) in zip(weights, cached_with)
        )
        if not unchanged or len(features) > MAX_CACHED_TEXTS:
            features = {}
            self.entry = weights, features  # at once, for other threads
        return features

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cache:
        return _Cache()


class Encoder(Pretrained):
    """Token ids and mask (n, L), padded at the end, to features (n, D), or by a linear `head` to (n, outputs).

    If no gradient is needed and the weights are those of the module, the features of each text are cached until the
    weights change, since many tasks contain the same texts.
    """

    def __init__(self, body: Pooled, outputs: int | None, source: SentenceEncoder) -> None:
        super().__init__()
        self.body = body
        self.set_origin(source.name, source.sha256)
        self.head = None if outputs is None else nn.Linear(body.features, outputs)
        self._cache = _Cache()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if _values_unknown(input_ids):
            features = self.body(input_ids, attention_mask)
        elif self.body.training or (torch.is_grad_enabled() and any(p.requires_grad for p in self.body.parameters())):
            longest = int(attention_mask.sum(1).max())
            features = self.body(input_ids[:, :longest], attention_mask[:, :longest])
        else:
            features = self._cached_features(input_ids, attention_mask)
        return features if self.head is None else self.head(features)

    def train(self, mode: bool = True) -> Encoder:
        """As `nn.Module.train`, but a frozen body stays in evaluation mode, without dropout."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.body.parameters()):
            self.body.eval()
        return self

    @torch.no_grad()
    def _cached_features(self, ids_nL: Tensor, mask_nL: Tensor) -> Tensor:
        weights: list[tuple[Tensor, int, int]] = [(p, p._version, p.data_ptr()) for p in self.body.parameters()]
        cached = self._cache.of(weights)
        lengths = mask_nL.sum(1).tolist()
        keys = [row[:length].numpy().tobytes() for row, length in zip(ids_nL.cpu(), lengths)]
        missing = {key: row for row, key in enumerate(keys) if key not in cached}
        order = sorted(missing.values(), key=lambda row: lengths[row])
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            longest = lengths[rows[-1]]
            for row, features in zip(rows, self.body(ids_nL[rows, :longest], mask_nL[rows, :longest])):
                cached[keys[row]] = features.clone()
        return torch.stack([cached[key] for key in keys])


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
    tune: Tune = "lora",
    layers: PositiveInt | None = None,
    rank: PositiveInt = 8,
) -> Encoder:
    r"""A pretrained encoder as a base model, for tasks of `kshot.sources.text(…, features="tokens")`.

    With `tune="lora"` the weights of the attention's queries and values get LoRA adapters (see `pretrained.with_lora`);
    only these and the head are trained and adapted.

    Args:
        name: a folder, `package:NAME` or a name of the Hugging Face hub, as in `SentenceEncoder`.
        outputs: outputs of a linear head on the pooled features; None for no head.
        tune: "head", "full" or "lora". All other parameters have `requires_grad=False`.
        layers: number of layers to tune, from the last; by default all.
        rank: r, rank of LoRA.

    Raises:
        ValueError: the encoder does not exist or has no list of layers, or fewer than `layers`.
    """
    source = SentenceEncoder(name)
    body = source.pooled()
    transformer = body.transformer
    path, count = _list_of_layers(transformer)
    if layers is not None and layers > count:
        raise ValueError(f"{name} has {count} layers, of which 1 … {count} can be tuned, got layers={layers}")
    tuned = range(count - (count if layers is None else layers), count)
    if tune == "lora":
        selection: dict[str, Any] = {}
        if layers is not None:
            selection = {"layers_to_transform": list(tuned), "layers_pattern": path.rsplit(".", 1)[-1]}
        body.transformer = with_lora(transformer, rank, body.architecture, **selection)
    elif tune == "head" or layers is not None:
        tuned_prefixes = tuple(f"{path}.{number}." for number in tuned) if tune == "full" else ()
        for parameter_name, parameter in transformer.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(tuned_prefixes))  # never with an empty tuple
    for parameter_name, parameter in transformer.named_parameters():
        if parameter_name.startswith("pooler."):  # not used: it comes after the pooled layer
            parameter.requires_grad_(False)
    return Encoder(body, outputs, source)


def _list_of_layers(transformer: nn.Module) -> tuple[str, int]:
    """The name of the module list of an encoder's layers, and its length."""
    lists = {name: len(part) for name, part in transformer.named_modules() if isinstance(part, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{type(transformer).__name__} has no list of layers, which is needed to tune it")
    name = max(lists, key=lambda name: (lists[name], -len(name)))
    return name, lists[name]
