"""A pretrained encoder of sentences as a base model: its head, all of it, its last layers, or LoRA adapters learn.

Shape legend: n texts, L tokens, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kshot.annotations import PositiveInt
from kshot.data.text.sentence_encoder import BATCH, Pooled, SentenceEncoder
from kshot.models.pretrained import Pretrained

Tune = Literal["head", "full", "lora"]
"""What of an encoder learns and adapts: its head alone, all of its weights, or adapters of low rank beside them."""

REMEMBERED = 200_000  # texts whose features are kept at most


class Encoder(Pretrained):
    """Ids and mask (n, L) to features (n, D), or through a linear `head` to outputs (n, outputs).

    Padding stands behind the tokens. Where no gradient is asked for, and the weights are the module's own, each text is
    encoded once and remembered until they change: tasks draw the same texts again and again.

    Args:
        body: the encoder and its pooling.
        outputs: of the head; None for no head.
        source: where the body comes from.
    """

    def __init__(self, body: Pooled, outputs: int | None, source: SentenceEncoder) -> None:
        super().__init__()
        self.body = body
        self.came_from(source.name, source.sha256)
        self.head = None if outputs is None else nn.Linear(body.features, outputs)
        self._features: dict[bytes, Tensor] = {}
        self._made_by: list[tuple[Tensor, int, int]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if _watched(input_ids):
            features = self.body(input_ids, attention_mask)
        elif self.body.training or (torch.is_grad_enabled() and any(p.requires_grad for p in self.body.parameters())):
            longest = int(attention_mask.sum(1).max())
            features = self.body(input_ids[:, :longest], attention_mask[:, :longest])
        else:
            features = self._remembered(input_ids, attention_mask)
        return features if self.head is None else self.head(features)

    def train(self, mode: bool = True) -> Encoder:
        """As usual, but that a body that does not learn has no dropout."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.body.parameters()):
            self.body.eval()
        return self

    @torch.no_grad()
    def _remembered(self, ids_nL: Tensor, mask_nL: Tensor) -> Tensor:
        made_by: list[tuple[Tensor, int, int]] = [(p, p._version, p.data_ptr()) for p in self.body.parameters()]
        same = len(made_by) == len(self._made_by) and all(
            a is b and rest == others for (a, *rest), (b, *others) in zip(made_by, self._made_by)
        )
        if not same or len(self._features) > REMEMBERED:
            self._features, self._made_by = {}, made_by
        lengths = mask_nL.sum(1).tolist()
        keys = [row[:length].numpy().tobytes() for row, length in zip(ids_nL.cpu(), lengths)]
        missing = {key: row for row, key in enumerate(keys) if key not in self._features}
        order = sorted(missing.values(), key=lambda row: lengths[row])
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            longest = lengths[rows[-1]]
            for row, found in zip(rows, self.body(ids_nL[rows, :longest], mask_nL[rows, :longest])):
                self._features[keys[row]] = found.clone()
        return torch.stack([self._features[key] for key in keys])


def _watched(ids: Tensor) -> bool:
    """Whether a transform, a tracer or a compiler looks on, to which values are not known."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or _get_current_dispatch_mode() is not None
        or torch.compiler.is_compiling()
        or not len(ids)
    )


def encoder(
    name: str,
    outputs: int | None = None,
    *,
    tune: Tune = "lora",
    layers: PositiveInt | None = None,
    rank: PositiveInt = 8,
) -> Encoder:
    r"""A pretrained encoder as a base model, for tasks of `kshot.sources.text(…, features="tokens")`.

    With `tune="lora"` each weight $W$ of the attention's queries and values becomes $W + 2 B A$. $A$ (r, D) and
    $B$ (D, r), which starts at 0, alone learn and adapt, besides the head.

    Args:
        name: a folder, `package:NAME` or a name of the Hugging Face hub, as in
            `kshot.data.text.sentence_encoder.SentenceEncoder`.
        outputs: of a linear head on the pooled features; None gives the features.
        tune: "head", "full" or "lora". What does not learn has `requires_grad=False`: it neither adapts nor learns.
        layers: only the last so many layers are tuned; by default all.
        rank: r, of LoRA.

    Raises:
        ValueError: no such encoder, nothing to tune, more layers than it has, another word for `tune`.

    References:
        Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685.
    """
    if tune not in get_args(Tune):
        raise ValueError(f"tune must be one of {', '.join(get_args(Tune))}, got {tune!r}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    source = SentenceEncoder(name)
    body = source.pooled()
    transformer = body.transformer
    place, count = _stack_of_layers(transformer)
    if layers is not None and not 1 <= layers <= count:
        raise ValueError(f"{name} has {count} layers, of which 1 … {count} can be tuned, got layers={layers}")
    tuned = range(count - (count if layers is None else layers), count)
    if tune == "lora":
        body.transformer = _with_lora(body, rank, None if layers is None else list(tuned), place)
    elif tune == "head" or layers is not None:
        inside = tuple(f"{place}.{number}." for number in tuned) if tune == "full" else ()
        for parameter_name, parameter in transformer.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(inside) if inside else False)
    for parameter_name, parameter in transformer.named_parameters():
        if parameter_name.startswith("pooler."):  # stands behind what is pooled here
            parameter.requires_grad_(False)
    return Encoder(body, outputs, source)


def _stack_of_layers(transformer: nn.Module) -> tuple[str, int]:
    """The name of the module list that holds an encoder's layers, and how many they are."""
    lists = {name: len(part) for name, part in transformer.named_modules() if isinstance(part, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{type(transformer).__name__} has no list of layers to tune; kshot knows encoders that have")
    name = max(lists, key=lambda each: (lists[each], -len(each)))
    return name, lists[name]


def _with_lora(body: Pooled, rank: int, layers: list[int] | None, place: str) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    except ImportError:
        raise ValueError("tune: lora needs peft, which is not installed: pip install 'kshot[text]'") from None
    known = body.architecture in TARGETS
    with _silenced():
        options = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=None if known else "all-linear",
            layers_to_transform=layers,
            layers_pattern=None if layers is None else place.rsplit(".", 1)[-1],
        )
        return get_peft_model(body.transformer, options)


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what peft warns of its own use of transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
