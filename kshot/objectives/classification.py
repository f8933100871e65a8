"""Classification and language modelling: cross-entropy of classes, or of the next symbol of a text.

Shape legend: n examples, C classes, L positions of a window, V symbols of a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kshot.conversion import to_numpy
from kshot.objectives.base import CERTAIN_LOGIT, Objective, name_with_options, weighted_mean
from kshot.objectives.outputs import the_tensor
from kshot.types import Batch

SUM_TOLERANCE = 0.01
"""Of the sum of soft labels, so that those in half precision pass."""


def classes_present(support: Batch) -> Tensor:
    """Mask (C,), bool, of the classes of a classification task that have support examples."""
    return (support.targets * support.weight[:, None]).sum(0) > 0


def only_present(logits: Tensor, present: Tensor) -> Tensor:
    """Logits (n, C) with the lowest finite number at the classes outside the mask `present` (C,): probability 0."""
    return torch.where(present, logits, torch.finfo(logits.dtype).min)


def check_one_hot(targets: Tensor) -> None:
    """Raise ValueError unless the targets have the shape and dtype of one-hot rows."""
    if targets.ndim != 2 or not targets.is_floating_point():
        raise ValueError(
            f"targets must be one-hot (n, ways), got {str(targets.dtype).removeprefix('torch.')} "
            f"{tuple(targets.shape)}; pass class ids through one_hot() or Batch.of(..., ways=...)"
        )


def check_distributions(batch: Batch) -> None:
    """Raise ValueError unless targets (..., n, C) are one-hot or soft labels: not negative, with the sum 1 in a row."""
    targets = to_numpy(batch.targets)
    wrong = np.abs(targets.sum(-1) - 1) >= SUM_TOLERANCE
    if not wrong.any() and targets.min(initial=0) >= 0:
        return
    wrong = (wrong | (targets < 0).any(-1)) & (to_numpy(batch.weight) > 0)
    if not wrong.any():
        return
    index = tuple(np.argwhere(wrong)[0].tolist())
    row = targets[index]
    if (row < 0).any() or (row > 1).any():
        problem = "has values outside 0 … 1; pass class ids through one_hot() or Batch.of(..., ways=...)"
    elif row.sum() < 1:
        problem = f"sums to {float(row.sum()):.3g}, not 1; give a row that belongs to none of the classes the weight 0"
    else:
        problem = (
            f"sums to {float(row.sum()):.3g}, not 1: if an example may have several labels, use objectives.multilabel; "
            "divide soft labels by their sum"
        )
    raise ValueError(f"targets: row {index[-1]}{f' of task {index[0]}' if len(index) > 1 else ''} {problem}")


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless logits and one-hot targets are both (n, ways)."""
    check_one_hot(targets)
    the_tensor(logits, "is scored")
    if logits.shape != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} but the targets are {tuple(targets.shape)} (n, ways): "
            "give its last layer as many outputs as the task has ways"
        )


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy (), in nats, of logits (n, C)."""
    check_logits(logits, batch.targets)
    return weighted_mean(-(batch.targets * torch.log_softmax(logits, -1)).sum(-1), batch.weight)


def _accuracy(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    check_logits(logits, batch.targets)
    correct = (logits.argmax(-1) == batch.targets.argmax(-1)).to(batch.weight.dtype)
    return {"accuracy": weighted_mean(correct, batch.weight)}


classification = Objective(
    cross_entropy,
    _accuracy,
    task_specific_classes=True,
    predicts="classes",
    check_targets=check_one_hot,
    check_values=check_distributions,
    name="classification",
)
r"""Classification where the classes differ from task to task:
$-\frac{1}{\sum w} \sum_i w_i \sum_c y_{ic} \log \mathrm{softmax}(\hat y_i)_c$; logits (n, C),
one-hot or soft targets (n, C), which sum to 1 in each row. Metric: accuracy, in 0 … 1."""

shared_classification = classification._replace(task_specific_classes=False, name="shared_classification")
"""As `classification`, with the same classes in all tasks, such as pass and fail; a support set may lack one."""


def check_symbols(targets: Tensor) -> None:
    """Raise ValueError unless the targets are integers (n, L)."""
    if targets.ndim != 2 or targets.is_floating_point():
        raise ValueError(
            f"next-token tasks need integer targets (n, length), got {targets.dtype} {tuple(targets.shape)}"
        )


def _symbol_loss(logits: Tensor, batch: Batch) -> Tensor:
    targets = batch.targets
    check_symbols(targets)
    the_tensor(logits, "is scored")
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} and the targets are {tuple(targets.shape)}; "
            "next-token tasks need logits (n, length, symbols)"
        )
    log_prob = torch.log_softmax(logits, -1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)  # (n, L)
    scored = (targets >= 0) * batch.weight[:, None]
    return weighted_mean(-log_prob.flatten(), scored.flatten())


def _bits_per_symbol(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"bits_per_character": _symbol_loss(logits, batch) / math.log(2)}


def _certain_logits(symbols: Tensor) -> Tensor:
    """Logits (n, L, V) that put almost all probability on the symbols (n, L)."""
    return CERTAIN_LOGIT * torch.nn.functional.one_hot(symbols.clamp(min=0)).to(torch.get_default_dtype())


next_token = Objective(
    _symbol_loss,
    _bits_per_symbol,
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
