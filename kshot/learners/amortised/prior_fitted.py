"""Prior-fitted networks: a transformer that predicts small tables in context, trained on a prior over tables.

Shape legend: n support rows, m query rows, F features, Y targets (classes, or 1), K kernels, R ridges, d width.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import pad

from kshot import objectives
from kshot.annotations import MOST, PositiveInt
from kshot.inner.precision import at_least_float32, in_type_of
from kshot.learner import Learner
from kshot.learners.amortised.attention import Attention, perceptron
from kshot.learners.amortised.neural_processes import TransformerBlock
from kshot.learners.heads.distances import log_weight
from kshot.models.layers import Spread
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Tree

KERNELS = 3
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
EPSILON = 1e-12  # smallest sum of weights or squares that is divided by


class PriorFitted(Learner):
    r"""Predicts the queries of a table from its support rows in one forward pass; see `prior_fitted`.

    Features are standardised by the support set; those that are constant there, such as padding, are ignored. The state
    holds the constants of the standardisation, the fits of `KernelRidges`, and the keys and values of each block.

    Attributes:
        sizes: the arguments of `prior_fitted` but the objective.
    """

    def __init__(
        self, objective: Objective, *, classes: int, cell_width: int, width: int, heads: int, layers: tuple[int, int]
    ) -> None:
        super().__init__(objective)
        self.classifies = objective in (objectives.classification, objectives.shared_classification)
        if not self.classifies and objective != objectives.gaussian:
            raise ValueError("a prior-fitted learner takes the objectives classification and gaussian")
        self.sizes = {"classes": classes, "cell_width": cell_width, "width": width, "heads": heads}
        self.sizes |= {"cell_layers": layers[0], "layers": layers[1]}
        self.targets = targets = classes if self.classifies else 1
        self.fits = KernelRidges()
        self.cell = perceptron(6, cell_width, cell_width)
        self.target_embedding = nn.Linear(targets, cell_width)
        self.fit_embedding = nn.Linear(KERNELS * (targets + 1) + 1, cell_width)
        self.query_embedding = nn.Parameter(torch.zeros(cell_width))
        self.cells = nn.ModuleList(CellBlock(cell_width, heads) for _ in range(layers[0]))
        self.widen = nn.Linear(cell_width, width)
        self.rows = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers[1]))
        self.norm = nn.LayerNorm(width)
        self.fit_weights = nn.Linear(width, KERNELS)
        self.correction = nn.Linear(width, targets if self.classifies else 2)
        for layer in (self.fit_weights, self.correction):  # an untrained learner predicts the mean of the fits
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.spread = Spread()

    def _adapt(self, support: Batch) -> Tree:
        x = at_least_float32(support.inputs.flatten(1))
        y, weight = support.targets.to(x.dtype), support.weight.to(x.dtype)
        state, share = {"weight": weight}, weight / weight.sum().clamp_min(EPSILON)
        mean = share @ x
        state["mean"] = mean = mean + share @ (x - mean)  # the second pass takes the rounding of the first away
        variance = share @ (x - mean).square()
        rounding = 4 * torch.finfo(x.dtype).eps * mean
        varies = variance > 1e-10 + rounding.square()
        state["scale"] = torch.where(varies, variance.clamp_min(EPSILON).rsqrt(), 0.0)
        if y.ndim != 2 or y.shape[1] > self.targets:
            expected = f"one-hot (n, ways) of at most {self.targets} ways" if self.classifies else "(n, 1)"
            raise ValueError(f"targets must be {expected} for this learner, got {tuple(y.shape)}")
        if self.classifies:
            all_classes = torch.ones_like(y[0], dtype=torch.bool)
            state["present"] = classes_present(support) if self.objective.task_specific_classes else all_classes
            y = pad(y, (0, self.targets - y.shape[1]))
        else:
            state["center"] = share @ y
            state["spread"] = (share @ (y - state["center"]).square()).clamp_min(EPSILON).sqrt()
            y = (y - state["center"]) / state["spread"]
        z = self._standardize(state, x)
        state["fits"], left_out = self.fits.fit(z, y, weight)
        target_cells = self.target_embedding(in_type_of(self.target_embedding, y)) + self._embed_fits(state, left_out)
        return state | {"memory": self._run(state, z, target_cells)[1]}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        z = self._standardize(state, at_least_float32(inputs.flatten(1)))
        fits = self.fits.predict(state["fits"], z)
        rows, _ = self._run(state, z, self.query_embedding + self._embed_fits(state, fits), state["memory"])
        rows = self.norm(rows)
        fits = fits.unflatten(1, (KERNELS, self.targets))
        combined = (self.fit_weights(rows).exp().to(fits.dtype)[..., None] * fits).mean(1)
        correction = self.correction(rows).to(fits.dtype)
        if self.classifies:
            logits = 6 * combined + correction + torch.log(state["fits"]["mean"] + 0.01)
            return only_present(logits[:, : len(state["present"])], state["present"])
        prediction = self.spread(correction + pad(combined, (0, 1)))
        mean = state["center"] + state["spread"] * prediction["mean"]
        return {"mean": mean, "std": state["spread"] * prediction["std"]}

    def _embed_fits(self, state: Tree, fits: Tensor) -> Tensor:
        """Embed predictions of the fits (m, K Y), with their error on the support and its number of rows, (m, d)."""
        size = state["weight"].sum().clamp_min(1.0).log()[None] / 5
        quality = torch.cat([state["fits"]["error"], size])
        row = torch.cat([fits, quality.expand(len(fits), -1)], 1)
        return self.fit_embedding(in_type_of(self.fit_embedding, row))

    def _run(self, state: Tree, z: Tensor, target_cells: Tensor, memory: Tree | None = None) -> tuple[Tensor, Tree]:
        """Rows (m, d) after all blocks, and the memory of the support rows, which is computed from z if None."""
        memories: dict[str, Tree] = {}

        def memory_of(block: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
            if memory is not None:
                entry = memory[str(len(memories))]
            else:
                key, value = block.memory(rows)
                entry = {"key": key, "value": value}
            memories[str(len(memories))] = entry
            return entry["key"], entry["value"]

        varies = pad((state["scale"] > 0).to(z.dtype), (0, 1), value=1.0)
        columns, weight = (log_weight(in_type_of(self.cell, each)) for each in (varies, state["weight"]))
        cells = torch.cat(
            [self.cell(in_type_of(self.cell, _basis(z))), target_cells[:, None]], 1
        )  # (m, F + 1, d), the target last
        block: Any
        for number, block in enumerate(self.cells):
            is_last = number == len(self.cells) - 1
            cells = block.across(cells, columns, slice(-1, None) if is_last else slice(None))
            cells = block(cells, memory_of(block, cells), weight)
        rows = self.widen(cells[:, -1])
        for block in self.rows:
            rows = block(rows, memory_of(block, rows), weight)
        return rows, memories

    def _standardize(self, state: Tree, x: Tensor) -> Tensor:
        z = (x - state["mean"]) * state["scale"]
        return 4 * torch.tanh(z / 4)  # bounds outliers


class CellBlock(nn.Module):
    """Cells attend to the cells of their row, then to the support rows' cells of their column."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.by_row, self.by_column = Attention(width, heads), Attention(width, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mixed = perceptron(width, 2 * width, width)

    def across(self, cells: Tensor, columns: Tensor, selected: slice) -> Tensor:
        """Attention within each row (m, F + 1, d); returns the selected columns."""
        normed = self.norms[0](cells)
        return cells[:, selected] + self.by_row(normed[:, selected], self.by_row.memory(normed), columns)

    def memory(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (columns, n, d) of support rows after `across`."""
        return self.by_column.memory(self.norms[1](cells).transpose(0, 1))

    def forward(self, cells: Tensor, memory: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
        """Attention to the support rows, and the perceptron."""
        read = self.by_column(self.norms[1](cells).transpose(0, 1), memory, weight)
        cells = cells + read.transpose(0, 1)
        return cells + self.mixed(self.norms[2](cells))


class KernelRidges(nn.Module):
    r"""Kernel ridge regressions of a table, averaged over ridges by their leave-one-out error.

    $$ \hat y(z) = \bar y + k(z, Z) \sum_\lambda q_\lambda \alpha_\lambda, \qquad
       \alpha_\lambda = (K + \lambda I)^{-1} (Y - \bar y), \qquad
       q_\lambda \propto (E_\lambda + 0.001)^{-0.15 n}, \qquad
       E_\lambda = \sum_i \Bigl\lVert \frac{\alpha_i}{[(K + \lambda I)^{-1}]_{ii}} \Bigr\rVert^2 \Big/
       \sum_i \lVert y_i - \bar y \rVert^2 $$

    where the first fraction is the leave-one-out error of a row, in closed form. The kernels are $z^\top z' / F$,
    $\exp(-\lVert z - z' \rVert^2 / 2F)$ and $\frac1F \sum_f \exp(-|z_f - z'_f|)$.
    """

    def fit(self, z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tree, Tensor]:
        """The state for `predict`, and the leave-one-out predictions of the support rows (n, K Y) minus the mean.

        The state is {"mean": (Y,), "rows": (n, F), "dual": (K, n, Y), "error": (K,)}; the last is the leave-one-out
        mean squared error as a fraction of the variance.
        """
        size = weight.sum().clamp_min(EPSILON)
        mean, root = weight @ y / size, weight.sqrt()[:, None]
        values, vectors = torch.linalg.eigh(root * self.kernels(z, z) * root.mT)  # (K, n), (K, n, n)
        ridges = torch.tensor(RIDGES, dtype=z.dtype, device=z.device)
        inverse = 1 / (values.clamp_min(0) + ridges[:, None, None])  # (R, K, n)
        target = root * (y - mean)
        dual = vectors @ (inverse[..., None] * (vectors.mT @ target))  # (R, K, n, Y)
        residual = dual / (vectors.square() @ inverse[..., None])
        error = residual.square().sum((-1, -2)) / target.square().sum().clamp_min(EPSILON)  # (R, K)
        share = (-0.15 * size * (error + 1e-3).log()).softmax(0)[..., None, None]
        mean_residual = (share * residual).sum(0) / root.clamp_min(EPSILON)  # (K, n, Y)
        left_out = torch.where(root > 0, y - mean - mean_residual, 0.0)
        state = {"mean": mean, "rows": z, "dual": root * (share * dual).sum(0)}
        state["error"] = (share[..., 0, 0] * error).sum(0)
        return state, left_out.transpose(0, 1).flatten(1)

    def predict(self, state: Tree, z: Tensor) -> Tensor:
        """Predictions (m, K Y), minus the mean."""
        return (self.kernels(z, state["rows"]) @ state["dual"]).transpose(0, 1).flatten(1)

    def kernels(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernels between rows (m, F) and (n, F): (K, m, n)."""
        varies = b.square().sum(0) > 0
        count = varies.sum().clamp_min(1)
        linear = a @ b.mT / count
        distance = a.square().sum(1)[:, None] / count + b.square().sum(1) / count - 2 * linear
        additive = ((-(a[:, None] - b).abs()).exp() * varies).sum(-1) / count
        return torch.stack([linear, (-distance / 2).exp(), additive])


def _basis(z: Tensor) -> Tensor:
    """Functions of each number (..., 6) by which near and far values differ in direction."""
    return torch.stack([z, z.square() / 4, z.sin(), z.cos(), (2 * z).sin(), (2 * z).cos()], -1)


def prior_fitted(
    *,
    objective: Objective = objectives.classification,
    classes: Annotated[int, Ge(2), Le(MOST)] = 10,
    cell_width: PositiveInt = 32,
    width: PositiveInt = 96,
    heads: PositiveInt = 4,
    cell_layers: PositiveInt = 2,
    layers: PositiveInt = 3,
) -> PriorFitted:
    r"""A prior-fitted network: a transformer that reads a small table in context, trained on synthetic tables.

    $$ \hat y(x) = \log(p + 0.01) + 6 \sum_k \tfrac{1}{K} e^{a_k(h)} \bigl(\hat y_k(x) - \bar y\bigr) + b(h), \qquad
       h = \mathrm{transformer}_\theta(x, \text{support}) $$

    for classes, with their shares $p = \bar y$ in the support. For numbers, in units of the support's mean and standard
    deviation, it is without the first term and the 6, and with a standard deviation read from $h$. The $\hat y_k$ are
    kernel ridge regressions (see `KernelRidges`); an untrained network predicts their mean. A row has a cell for each
    feature and one for its target, which holds the target (of a support row) and the predictions of the fits,
    leave-one-out in a support row. Cells attend to their row, then to their column in the support; then target cells,
    widened, attend to those of the support.

    Tables may have any number of features and rows; the order of features does not matter. Nothing is trained on a
    table: meta-train on `sources.tabular_priors`, as the recipes `tabular` and `tabular-regression` do.

    Args:
        objective: `objectives.classification`, or `objectives.gaussian` for one number to predict.
        classes: largest number of classes of a table. Their order has a small effect.
        cell_width, width: width of a cell and of a row, multiples of `heads`.
        heads: number of heads of each attention.
        cell_layers, layers: number of blocks over cells, then over rows.

    Returns:
        A learner whose states hold, for each support row, keys, values and the fits.

    Example:
        >>> learner = prior_fitted()
        >>> table = torch.tensor([[5.1, 0.2], [4.9, 0.3], [6.0, 1.5], [6.2, 1.4]])
        >>> state = learner.adapt(Batch.of(table, torch.tensor([0, 0, 1, 1]), ways=2))
        >>> learner.predict(state, torch.tensor([[5.0, 0.2]])).argmax(1)
        tensor([0])

    References:
        Müller et al.: Transformers Can Do Bayesian Inference, ICLR 2022, arXiv:2112.10510; Hollmann et al.: TabPFN,
        ICLR 2023, arXiv:2207.01848; attention over cells as in Hollmann et al.: Accurate predictions on small data with
        a tabular foundation model, Nature 637, 2025.

    Deviations:
        The closed-form fits, which let minutes of training replace the papers' days on many accelerators; features
        have no positional encoding, and there is no ensemble over permutations; a normal distribution for numbers
        rather than a histogram; a different prior.
    """
    sizes: dict[str, Any] = {"classes": classes, "cell_width": cell_width, "width": width, "heads": heads}
    return PriorFitted(objective, layers=(cell_layers, layers), **sizes)
