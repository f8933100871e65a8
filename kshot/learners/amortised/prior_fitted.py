"""A transformer that has learned to learn from small tables: in-context, fitted to a prior over tables.

Shape legend: n support rows, m query rows, F features, Y targets (classes, or 1), K kernels, R ridges, d width.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import pad

from kshot import objectives
from kshot.annotations import PositiveInt
from kshot.learner import Learner
from kshot.learners.amortised.attention import Attention, log_weight, perceptron
from kshot.learners.amortised.neural_processes import TransformerBlock
from kshot.models.spread import Spread
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Tree

KERNELS = 3
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
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
        self.classifies = objective in (objectives.classification, objectives.shared_classification)
        if not self.classifies and objective != objectives.gaussian:
            raise ValueError("a prior-fitted learner takes the objectives classification and gaussian")
        self.targets = targets = classes if self.classifies else 1
        self.fits = KernelRidges()
        self.cell = perceptron(6, cell_width, cell_width)
        self.known = nn.Linear(targets, cell_width)
        self.guessed = nn.Linear(KERNELS * (targets + 1) + 1, cell_width)
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

    def _adapt(self, support: Batch) -> Tree:
        weight = support.weight
        share = weight / weight.sum().clamp_min(LEAST)
        x, y, state = support.inputs.flatten(1), support.targets, {"weight": weight}
        state["mean"] = share @ x
        variance = share @ (x - state["mean"]).square()
        varies = variance > 1e-10 * (1 + state["mean"].square())
        state["scale"] = torch.where(varies, variance.clamp_min(LEAST).rsqrt(), 0.0)
        self._check(y)
        if self.classifies:
            every = torch.ones_like(y[0], dtype=torch.bool)
            state["present"] = classes_present(support) if self.objective.task_specific_classes else every
            y = pad(y, (0, self.targets - y.shape[1]))
        else:
            state["center"] = share @ y
            state["spread"] = (share @ (y - state["center"]).square()).clamp_min(LEAST).sqrt()
            y = (y - state["center"]) / state["spread"]
        z = self._standardized(state, x)
        state["fits"], guess = self.fits.fit(z, y, weight)
        own = self.known(y) + self._guessed(state, guess)
        return state | {"memory": self._run(state, z, own)[1]}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        z = self._standardized(state, inputs.flatten(1))
        guess = self.fits.predict(state["fits"], z)
        rows, _ = self._run(state, z, self.unknown + self._guessed(state, guess), state["memory"])
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

    def _guessed(self, state: Tree, guess: Tensor) -> Tensor:
        """What the fits say of rows (m, d), with how well they do on the support, and how many rows it has."""
        size = state["weight"].sum().clamp_min(1.0).log()[None] / 5
        about = torch.cat([state["fits"]["error"], size])
        return self.guessed(torch.cat([guess, about.expand(len(guess), -1)], 1))

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

    def _check(self, targets: Tensor) -> None:
        if targets.ndim != 2 or targets.shape[1] > self.targets:
            wanted = f"one-hot (n, ways) of at most {self.targets} ways" if self.classifies else "(n, 1)"
            raise ValueError(f"targets must be {wanted} for this learner, got {tuple(targets.shape)}")


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
    r"""Kernel ridge regressions of a table, averaged over ridges by how well each predicts rows that it has not seen.

    $$ \hat y(z) = \bar y + k(z, Z) \sum_\lambda q_\lambda \alpha_\lambda, \qquad
       \alpha_\lambda = (K + \lambda I)^{-1} (Y - \bar y), \qquad
       q_\lambda \propto (E_\lambda + 0.001)^{-0.15 n}, \qquad
       E_\lambda = \sum_i \Bigl\lVert \frac{\alpha_i}{[(K + \lambda I)^{-1}]_{ii}} \Bigr\rVert^2 \Big/
       \sum_i \lVert y_i - \bar y \rVert^2 $$

    where the first fraction is the error in a row that is left out, in closed form. The kernels are $z^\top z' / F$,
    $\exp(-\lVert z - z' \rVert^2 / 2F)$ and $\frac1F \sum_f \exp(-|z_f - z'_f|)$.
    """

    def fit(self, z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tree, Tensor]:
        """What `predict` needs, and the predictions of the support rows (n, K Y), less the mean, each from the others.

        The state is {"mean": (Y,), "rows": (n, F), "dual": (K, n, Y), "error": (K,)}; the last is the mean squared
        error in rows left out, as a share of the variance.
        """
        size = weight.sum().clamp_min(LEAST)
        mean, root = weight @ y / size, weight.sqrt()[:, None]
        values, vectors = torch.linalg.eigh(root * self.kernels(z, z) * root.mT)  # (K, n), (K, n, n)
        ridges = torch.tensor(RIDGES, dtype=z.dtype, device=z.device)
        inverse = 1 / (values.clamp_min(0) + ridges[:, None, None])  # (R, K, n)
        target = root * (y - mean)
        dual = vectors @ (inverse[..., None] * (vectors.mT @ target))  # (R, K, n, Y)
        residual = dual / (vectors.square() @ inverse[..., None])
        error = residual.square().sum((-1, -2)) / target.square().sum().clamp_min(LEAST)  # (R, K)
        share = (-0.15 * size * (error + 1e-3).log()).softmax(0)[..., None, None]
        missed = (share * residual).sum(0) / root.clamp_min(LEAST)  # (K, n, Y)
        left_out = torch.where(root > 0, y - mean - missed, 0.0)
        state = {"mean": mean, "rows": z, "dual": root * (share * dual).sum(0)}
        state["error"] = (share[..., 0, 0] * error).sum(0)
        return state, left_out.transpose(0, 1).flatten(1)

    def predict(self, state: Tree, z: Tensor) -> Tensor:
        """Predictions (m, K Y), less the mean."""
        return (self.kernels(z, state["rows"]) @ state["dual"]).transpose(0, 1).flatten(1)

    def kernels(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernels between rows (m, F) and (n, F): (K, m, n)."""
        varies = b.square().sum(0) > 0
        count = varies.sum().clamp_min(1)
        inner = a @ b.mT / count
        apart = a.square().sum(1)[:, None] / count + b.square().sum(1) / count - 2 * inner
        additive = ((-(a[:, None] - b).abs()).exp() * varies).sum(-1) / count
        return torch.stack([inner, (-apart / 2).exp(), additive])


def _basis(z: Tensor) -> Tensor:
    """Functions of each number (..., 6), so that near and far values differ in direction."""
    return torch.stack([z, z.square() / 4, z.sin(), z.cos(), (2 * z).sin(), (2 * z).cos()], -1)


def prior_fitted(
    *,
    objective: Objective = objectives.classification,
    classes: Annotated[int, Ge(2)] = 10,
    cell_width: PositiveInt = 32,
    width: PositiveInt = 96,
    heads: PositiveInt = 4,
    cell_layers: PositiveInt = 2,
    layers: PositiveInt = 3,
) -> PriorFitted:
    r"""A prior-fitted network: a transformer that reads a small table, trained on synthetic tables (in-context).

    $$ \hat y(x) = \log p + 6 \sum_k \tfrac{1}{K} e^{a_k(h)} \hat y_k(x) + b(h), \qquad
       h = \mathrm{transformer}_\theta(x, \text{support}) $$

    for classes, with their shares $p$ in the support; for numbers without $\log p$ and the 6, and with a deviation read
    from $h$. The $\hat y_k$ are kernel ridge regressions (see `KernelRidges`), from whose mean an untrained network
    starts. A row is a cell for each feature, and one for its target: what is known of it (of a support row) and what
    the fits say of it, in a support row from the others. Cells attend to their row, then to their column in the
    support; then target cells, widened, attend to those of the support.

    It takes tables of any number of features, and any number of rows; the order of features does not matter. Nothing is
    trained on a table: meta-train it on `sources.tabular_priors`, as the recipes `tabular` and `tabular-regression` do.

    Args:
        objective: `objectives.classification`, or `objectives.gaussian` for one number to predict.
        classes: the most that a table may have. Their order matters little, but it matters.
        cell_width, width: of a cell and of a row; multiples of `heads`.
        heads: of each attention.
        cell_layers, layers: blocks over cells, then over rows.

    Returns:
        A learner whose states hold what is kept of the support rows: keys and values, and the fits.

    Raises:
        ValueError: widths that the heads do not divide.

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
        The closed-form fits, which let minutes of training do where the papers take days of many accelerators; features
        have no place of their own, and no ensemble over permutations is taken; a normal distribution for numbers, in
        place of a histogram; a prior of our own.
    """
    return PriorFitted(
        objective,
        classes=classes,
        cell_width=cell_width,
        width=width,
        heads=heads,
        layers=(cell_layers, layers),
    )
