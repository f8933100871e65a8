"""Language modelling: cross-entropy of the next symbol.

Shape legend: n examples, L positions of a window, V symbols of a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.objectives.base import Objective, name_with_options, weighted_mean
from kshot.types import Batch

CERTAIN_LOGIT = 100.0
"""A logit that leaves a probability of e^-100 to all other symbols."""


def check_symbols(targets: Tensor) -> None:
    """Raise ValueError unless the targets are integers (n, L)."""
    if targets.ndim != 2 or targets.is_floating_point():
        raise ValueError(
            f"next-token tasks need integer targets (n, length), got {targets.dtype} {tuple(targets.shape)}"
        )


def _symbol_loss(logits: Tensor, batch: Batch) -> Tensor:
    targets = batch.targets
    check_symbols(targets)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} and the targets are {tuple(targets.shape)}; "
            "next-token tasks need logits (n, length, symbols)"
        )
    log_prob = torch.log_softmax(logits, -1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)  # (n, L)
    scored = (targets >= 0) * batch.weight[:, None]
    return weighted_mean(-log_prob.flatten(), scored.flatten())


def _certain_logits(symbols: Tensor) -> Tensor:
    """Logits (n, L, V) that put almost all probability on the symbols (n, L)."""
    return CERTAIN_LOGIT * torch.nn.functional.one_hot(symbols.clamp(min=0)).to(torch.get_default_dtype())


next_token = Objective(
    _symbol_loss,
    lambda logits, batch: {"bits_per_character": _symbol_loss(logits, batch) / math.log(2)},
    as_prediction=_certain_logits,
    predicts="tokens",
    check_targets=check_symbols,
    name="next_token",
)
r"""Language modelling: $-\sum_{it} m_{it} \log \mathrm{softmax}(\hat y_{it})_{y_{it}} / \sum_{it} m_{it}$ with
$m_{it} = w_i [y_{it} \ge 0]$: a negative target marks a position that is not scored, such as padding. Logits (n, L, V),
integer targets (n, L). Metric: the loss in bits, which is bits per character if a symbol is a character."""


@dataclass(frozen=True)
class _BitsPerCharacter:
    """The metrics of `next_token_of`; comparable, so that equal objectives are equal."""

    characters: tuple[int, ...]

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        scored = (batch.targets >= 0) * batch.weight[:, None]
        lengths = torch.tensor(self.characters, dtype=scored.dtype, device=scored.device)[batch.targets.clamp(min=0)]
        nats = _symbol_loss(prediction, batch) * scored.sum()
        return {"bits_per_character": nats / math.log(2) / (lengths * scored).sum().clamp_min(1)}


def next_token_of(characters: Sequence[int]) -> Objective:
    r"""`next_token` for symbols of several characters, such as tokens; the loss is per symbol, the metric is

    $$ \text{bits per character} = \frac{-\sum_{it} m_{it} \log_2 \mathrm{softmax}(\hat y_{it})_{y_{it}}}
       {\sum_{it} m_{it} c_{y_{it}}} $$

    Args:
        characters: $c$, the number of characters of each symbol.

    Example:
        >>> batch = Batch.of(torch.zeros(1, 2), torch.tensor([[0, 1]]))
        >>> float(next_token_of([3, 1]).metrics(torch.zeros(1, 2, 2), batch)["bits_per_character"])
        0.5
    """
    metrics = _BitsPerCharacter(tuple(map(int, characters)))
    return next_token._replace(metrics=metrics, name=name_with_options("next_token_of", vars(metrics)))
