"""A transformer that has learned to learn from small tables: in-context, fitted to a prior over tables.

Shape legend: n support rows, m query rows, F features, Y targets (classes, or 1), K kernels, R ridges, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kshot import objectives
from kshot.learner import Learner
from kshot.learners.amortised import TransformerBlock
from kshot.learners.attention import Attention, log_weight, perceptron
from kshot.models.spread import Spread
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Tree

KERNELS = 3
RIDGES = (0.003, 0.03, 0.3, 3.0, 30.0)
LEAST = 1e-12  # of a sum of weights or squares, so that nothing is divided by zero


class PriorFitted(Learner):
    r"""Reads a table's support rows as they are, and predicts the rows asked for; see `prior_fitted`.

    Features are standardised by the support set. Where they do not vary there, as where they are padding, they are left
    out. The state holds what standardises, the fits of `KernelRidges`, and the keys and values of each block.
    """

    def __init__(
        self, objective: Objective, *, classes: int, cell_width: int, width: int, heads: int, layers: tuple[int, int]
    ) -> None:
        super().__init__(objective)
        self.classifies = objective.own_classes
        targets = classes if self.classifies else 1
        self.targets = targets
        self.fits = KernelRidges()
        self.cell = perceptron(6, cell_width, cell_width)
        self.known = nn.Linear(targets, cell_width)
        self.guessed = nn.Linear(KERNELS * targets, cell_width)
        self.unknown = nn.Parameter(torch.zeros(cell_width))
        self.cells = nn.ModuleList(CellBlock(cell_width, heads) for _ in range(layers[0]))
        self.widen = nn.Linear(cell_width, width)
        self.rows = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers[1]))
        self.norm = nn.LayerNorm(width)
        self.trust = nn.Linear(width, KERNELS)
        self.correction = nn.Linear(width, targets if self.classifies else 2)
        for part in (self.trust, self.correction):  # it starts as the mean of the fits
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        self.spread = Spread()

    def adapt(self, support: Batch) -> Tree:
        weight = support.weight
        share = weight / weight.sum().clamp_min(LEAST)
        x, y, state = support.inputs.flatten(1), support.targets, {"weight": weight}
        state["mean"] = share @ x
        variance = share @ (x - state["mean"]).square()
        varies = variance > 1e-10 * (1 + state["mean"].square())
        state["scale"] = torch.where(varies, variance.clamp_min(LEAST).rsqrt(), 0.0)
        if self.classifies:
            state["present"] = classes_present(support)
            y = self._all_classes(y)
        else:
            state["center"] = share @ y
            state["spread"] = (share @ (y - state["center"]).square()).clamp_min(LEAST).sqrt()
            y = (y - state["center"]) / state["spread"]
        z = self._standardized(state, x)
        state["fits"], guess = self.fits.fit(z, y, weight)
        own = self.known(y) + self.guessed(guess)
        return state | {"memory": self._run(state, z, own)[1]}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        z = self._standardized(state, inputs.flatten(1))
        guess = self.fits.predict(state["fits"], z)
        rows, _ = self._run(state, z, self.unknown + self.guessed(guess), state["memory"])
        rows = self.norm(rows)
        each = guess.unflatten(1, (KERNELS, self.targets))
        start = (self.trust(rows).exp()[..., None] * each).mean(1)
        correction = self.correction(rows)
        if self.classifies:
            logits = 6 * start + correction + torch.log(state["fits"]["mean"] + 0.01)
            return only_present(logits[:, : len(state["present"])], state["present"])
        raw = correction + pad(start, (0, 1))
        found = self.spread(raw)
        return {
            "mean": state["center"] + state["spread"] * found["mean"],
            "std": state["spread"] * found["std"],
        }

    def _run(self, state: Tree, z: Tensor, own: Tensor, memory: Tree | None = None) -> tuple[Tensor, Tree]:
        """Rows (m, d) after all blocks, reading the support rows' memory; they make it where there is none."""
        kept: dict[str, Tree] = {}

        def remembered(block: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
            if memory is not None:
                entry = memory[str(len(kept))]
            else:
                key, value = block.memory(rows)
                entry = {"key": key, "value": value}
            kept[str(len(kept))] = entry
            return entry["key"], entry["value"]

        varies = pad((state["scale"] > 0).to(z.dtype), (0, 1), value=1.0)
        columns, weight = log_weight(varies), log_weight(state["weight"])
        cells = torch.cat([self.cell(_basis(z)), own[:, None]], 1)  # (m, F + 1, d), the target in the last column
        block: Any
        for number, block in enumerate(self.cells):
            last = number == len(self.cells) - 1
            cells = block.across(cells, columns, slice(-1, None) if last else slice(None))
            cells = block(cells, remembered(block, cells), weight)
        rows = self.widen(cells[:, -1])
        for block in self.rows:
            rows = block(rows, remembered(block, rows), weight)
        return rows, kept

    def _standardized(self, state: Tree, x: Tensor) -> Tensor:
        z = (x - state["mean"]) * state["scale"]
        return 4 * torch.tanh(z / 4)  # outliers drawn in

    def _all_classes(self, targets: Tensor) -> Tensor:
        if targets.ndim != 2 or targets.shape[1] > self.targets:
            raise ValueError(
                f"targets must be one-hot (n, ways) of at most {self.targets} ways, got {tuple(targets.shape)}: "
                "train a learner with more classes"
            )
        return pad(targets, (0, self.targets - targets.shape[1]))


class CellBlock(nn.Module):
    """Cells attend to the cells of their row, then to their column's cells in the support rows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.by_row, self.by_column = Attention(width, heads), Attention(width, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mixed = perceptron(width, 2 * width, width)

    def across(self, cells: Tensor, columns: Tensor, wanted: slice) -> Tensor:
        """What a row (m, F + 1, d) can do alone; only the wanted columns go on."""
        normed = self.norms[0](cells)
        return cells[:, wanted] + self.by_row(normed[:, wanted], self.by_row.memory(normed), columns)

    def memory(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (columns, n, d) of support rows that have been `across`."""
        return self.by_column.memory(self.norms[1](cells).transpose(0, 1))

    def forward(self, cells: Tensor, memory: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
        """What a row does with the support rows."""
        read = self.by_column(self.norms[1](cells).transpose(0, 1), memory, weight)
        cells = cells + read.transpose(0, 1)
        return cells + self.mixed(self.norms[2](cells))


class KernelRidges(nn.Module):
    r"""Kernel ridge regressions of a table, each with the ridge that predicts its own rows best when they are left out.

    $$ \hat y(z) = \bar y + k(z, Z)\,\alpha, \qquad \alpha = (K + \lambda I)^{-1} (Y - \bar y), \qquad
       y_i - \hat y_{-i} = \frac{\alpha_i}{[(K + \lambda I)^{-1}]_{ii}} $$

    under the kernels $z^\top z' / F$, $\exp(-\lVert z - z' \rVert^2 / 2F)$ and $\frac1F \sum_f \exp(-|z_f - z'_f|)$.
    """

    def fit(self, z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tree, Tensor]:
        """What `predict` needs, and the predictions of the support rows (n, K Y), each from the others."""
        mean = weight @ y / weight.sum().clamp_min(LEAST)
        root = weight.sqrt()
        values, vectors = torch.linalg.eigh(root[:, None] * self.kernels(z, z) * root)  # (K, n), (K, n, n)
        ridges = torch.tensor(RIDGES, dtype=z.dtype, device=z.device)
        inverse = 1 / (values.clamp_min(0) + ridges[:, None, None])  # (R, K, n)
        target = vectors.mT @ (root[:, None] * (y - mean))
        dual = vectors @ (inverse[..., None] * target)  # (R, K, n, Y)
        residual = dual / (vectors.square() @ inverse[..., None])
        error = residual.square().sum((-1, -2))  # (R, K)
        best = (error == error.amin(0)).to(z.dtype)
        best = (best / best.sum(0))[..., None, None]
        left_out = y - mean - (best * residual).sum(0) / root.clamp_min(LEAST)[:, None]  # (K, n, Y)
        left_out = torch.where(weight[:, None] > 0, left_out, 0.0)
        state = {"mean": mean, "rows": z, "dual": root[:, None] * (best * dual).sum(0)}
        return state, left_out.transpose(0, 1).flatten(1)

    def predict(self, state: Tree, z: Tensor) -> Tensor:
        """Predictions (m, K Y), less the mean."""
        return (self.kernels(z, state["rows"]) @ state["dual"]).transpose(0, 1).flatten(1)

    def kernels(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernels between rows (m, F) and (n, F): (K, m, n)."""
        count = ((b.square().sum(0) > 0).sum()).clamp_min(1)
        inner = a @ b.mT / count
        square = a.square().sum(1)[:, None] / count + b.square().sum(1) / count - 2 * inner
        apart = (a[:, None] - b).abs()
        varies = b.square().sum(0) > 0
        additive = ((-apart).exp() * varies).sum(-1) / count
        return torch.stack([inner, (-square / 2).exp(), additive])


def _basis(z: Tensor) -> Tensor:
    """Functions of each number (..., 6), so that near and far values differ in direction."""
    return torch.stack([z, z.square() / 4, z.sin(), z.cos(), (2 * z).sin(), (2 * z).cos()], -1)


def prior_fitted(
    *,
    objective: Objective = objectives.classification,
    classes: int = 10,
    cell_width: int = 32,
    width: int = 96,
    heads: int = 4,
    cell_layers: int = 2,
    layers: int = 3,
) -> PriorFitted:
    return PriorFitted(
        objective,
        classes=classes,
        cell_width=cell_width,
        width=width,
        heads=heads,
        layers=(cell_layers, layers),
    )
