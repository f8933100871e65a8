"""A small network that weighs plans by the descriptors of a task, fitted to the losses of their mixtures.

Shape legend: T tasks, B tasks of a step, D descriptors, P plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kshot.types import Tree, tree_leaves, tree_map

HIDDEN, DROPOUT = 32, 0.1
STEPS, BATCH, RATE, DECAY = 800, 128, 3e-3, 0.01
FARTHEST = 4.0
"""Bound of standardised descriptors."""


class Gate(nn.Module):
    r"""Weights of P plans from D descriptors, $w = \mathrm{softmax}(g(z))$, with a perceptron $g$ of one hidden layer.

    Descriptors are standardised, and 0 where they are NaN. Nothing of the gate is trained by gradient steps of its
    learner: its parameters require no gradient.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, descriptors: int, plans: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(descriptors))
        self.register_buffer("scale", torch.ones(descriptors))
        self.hidden, self.output = nn.Linear(descriptors, HIDDEN), nn.Linear(HIDDEN, plans)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.requires_grad_(False)

    def forward(self, descriptor_BD: Tensor, dropout: float = 0.0) -> Tensor:
        """Weights (B, P), float32; before `fit` all plans have the same."""
        unit_BD = (descriptor_BD.to(self.mean.device) - self.mean) / self.scale
        hidden_BH = nn.functional.gelu(self._linear(self.hidden, unit_BD.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)))
        return self._linear(self.output, nn.functional.dropout(hidden_BH, dropout)).softmax(-1)

    def _linear(self, layer: nn.Linear, values: Tensor) -> Tensor:
        return nn.functional.linear(values.float(), layer.weight.float(), layer.bias.float())

    def fit(self, descriptor_TD: Tensor, tasks: Sequence[Tree], loss: Callable[[Tensor, Any], Tensor]) -> None:
        r"""Minimise the mean loss of the mixtures, $\frac1T \sum_t L_t(w(z_t))$, by AdamW, from new weights, in place.

        Args:
            descriptor_TD: descriptors, NaN where missing.
            tasks: for each task a tree of tensors, whatever its loss depends on. Tasks of equal shapes are stacked.
            loss: (weights (P,), one of the tasks) -> (), differentiable, under `vmap`.
        """
        known_TD = torch.where(descriptor_TD.isfinite(), descriptor_TD, torch.nan)
        mean_D = known_TD.nanmean(0).nan_to_num(0.0)
        scale_D = (known_TD - mean_D).square().nanmean(0).nan_to_num(0.0).sqrt()
        self.mean.copy_(mean_D)
        self.scale.copy_(torch.where(scale_D > 0, scale_D, 1.0))
        self.hidden.reset_parameters()
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        stacks = stacked(tasks)
        share = torch.tensor([float(len(places)) for places, _ in stacks])
        optimizer = torch.optim.AdamW(self.requires_grad_().parameters(), RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        with torch.enable_grad():
            for _ in range(STEPS):
                places, stack = stacks[int(share.multinomial(1))]
                chosen = torch.randint(len(places), (min(BATCH, len(places)),))
                batch = tree_map(lambda leaf, chosen=chosen: leaf[chosen.to(leaf.device)], stack)
                weight_BP = self(descriptor_TD[places[chosen]], DROPOUT)
                optimizer.zero_grad()
                torch.func.vmap(loss)(weight_BP, batch).mean().backward()
                optimizer.step()
                schedule.step()
        self.requires_grad_(False)


def stacked(tasks: Sequence[Tree]) -> list[tuple[Tensor, Tree]]:
    """The tasks of each shape: their places (t,), and a tree with leaves (t, ...)."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, task in enumerate(tasks):
        groups.setdefault(tuple(leaf.shape for leaf in tree_leaves(task)), []).append(place)
    return [
        (torch.tensor(places), tree_map(lambda *leaves: torch.stack(leaves), *(tasks[place] for place in places)))
        for places in groups.values()
    ]
