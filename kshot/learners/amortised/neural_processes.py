"""Neural processes: a network reads the support set and says how to predict. No gradient is taken to adapt.

Shape legend: n support rows, m query rows, D inputs, Y targets, d width, K clusters.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import OpenFraction, PositiveInt
from kshot.inner.functional import Function
from kshot.learner import Learner
from kshot.learners.amortised.attention import Attention, log_weight, perceptron
from kshot.learners.gradient.cavia import FiLM
from kshot.models.spread import Spread
from kshot.objectives import Objective
from kshot.types import Batch, Tree


class NeuralProcess(Learner):
    """What the neural processes have in common: inputs as rows (n, D), targets (n, Y), and what is predicted of them.

    That is `numbers` a row: a mean and a spread each for `objectives.gaussian`, else as many as targets.
    """

    def __init__(
        self, inputs: int, outputs: int, *, min_std: float, objective: Objective, embedding: nn.Module | None
    ) -> None:
        super().__init__(objective)
        if objective.task_specific_classes:
            raise ValueError(
                "a neural process predicts numbers, or classes that all tasks share; where each task has classes of "
                "its own take a learner that compares examples, such as protonet or prior_fitted"
            )
        self.inputs, self.outputs = inputs, outputs
        gaussian = objective.predicts == "distribution"
        self.numbers = 2 * outputs if gaussian else outputs
        spread = Spread(min_std)
        self.spread = spread if gaussian else nn.Identity()
        self.embedding = embedding
        self.function = None if embedding is None else Function(embedding, "running")

    def _rows(self, inputs: Tree) -> Tensor:
        """Inputs (n, ...), or what the embedding makes of them, as rows (n, D)."""
        if self.function is not None:
            inputs = self.function.query({}, {}, inputs)
        elif isinstance(inputs, dict):
            raise ValueError(f"inputs of several parts ({', '.join(inputs)}) need an embedding that makes rows of them")
        if prod(inputs.shape[1:]) != self.inputs:
            raise ValueError(f"this learner takes {self.inputs} inputs a row, got {tuple(inputs.shape)}")
        return inputs.flatten(1)

    def _pairs(self, support: Batch) -> Tensor:
        """Inputs and targets side by side, (n, D + Y)."""
        if support.targets.shape[1:] != (self.outputs,):
            raise ValueError(f"targets must be (n, {self.outputs}), got {tuple(support.targets.shape)}")
        return torch.cat([self._rows(support.inputs), support.targets], 1)


class ConditionalProcess(NeuralProcess):
    r"""The support set as one vector, the mean of what a network makes of each point; see `cnp`.

    The state is `{"summary": (d,)}`; zero for a support without rows.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, **common: Any) -> None:
        super().__init__(inputs, outputs, **common)
        self.encoder = perceptron(inputs + outputs, width, width, depth)
        self.decoder = perceptron(inputs + width, width, self.numbers, depth)

    def _adapt(self, support: Batch) -> Tree:
        return {"summary": _mean(self.encoder(self._pairs(support)), support.weight)}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        return self.spread(self.decoder(torch.cat([rows, state["summary"].expand(len(rows), -1)], 1)))


class ModulatedProcess(NeuralProcess):
    """A conditional process whose decoder is modulated by who the task is like; see `tanp`.

    The state is `{"summary": (d,), "context": (d,)}`.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, clusters: int, **common: Any) -> None:
        super().__init__(inputs, outputs, **common)
        self.encoder, self.identity = (perceptron(inputs + outputs, width, width, depth) for _ in range(2))
        self.pool = nn.Parameter(nn.init.xavier_uniform_(torch.empty(clusters, width)))
        hidden = [str(2 * number) for number in range(depth)]  # the linear layers but the last
        self.decoder = FiLM(perceptron(inputs + width, width, self.numbers, depth), hidden, width)
        self.decoding = Function(self.decoder, "running")

    def _adapt(self, support: Batch) -> Tree:
        pairs = self._pairs(support)
        own = _mean(self.identity(pairs), support.weight)
        near = 1 / (1 + (own - self.pool).square().sum(1))
        return {
            "summary": _mean(self.encoder(pairs), support.weight),
            "context": own + near / near.sum() @ self.pool,
        }

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        given = torch.cat([rows, state["summary"].expand(len(rows), -1)], 1)
        return self.spread(self.decoding.query({"context": state["context"]}, {}, given))


class AttentiveProcess(NeuralProcess):
    r"""Each query reads the points of the support set that matter to it; see `attentive_np`.

    The state is `{"summary": (d,), "key": (n, d), "value": (n, d), "weight": (n,)}`.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, heads: int, **common: Any) -> None:
        super().__init__(inputs, outputs, **common)
        self.encoder = perceptron(inputs + outputs, width, width, depth)
        self.place = perceptron(inputs, width, width, depth)
        self.attention = Attention(width, heads)
        self.decoder = perceptron(inputs + 2 * width, width, self.numbers, depth)

    def _adapt(self, support: Batch) -> Tree:
        points = self.encoder(self._pairs(support))
        key, value = self.attention.memory(self.place(self._rows(support.inputs)), points)
        return {"summary": _mean(points, support.weight), "key": key, "value": value, "weight": support.weight}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        memory = state["key"], state["value"]
        read = self.attention(self.place(rows), memory, log_weight(state["weight"]))
        return self.spread(self.decoder(torch.cat([rows, read, state["summary"].expand(len(rows), -1)], 1)))


class TransformerProcess(NeuralProcess):
    r"""A transformer over support and query points, the queries blind to one another; see `tnp_d`.

    The state is `{"memory": {layer: {"key": (n, d), "value": (n, d)}}, "weight": (n,)}`.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, depth: int, layers: int, heads: int, **common: Any
    ) -> None:
        super().__init__(inputs, outputs, **common)
        self.point = perceptron(inputs + outputs + 1, width, width, depth)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), perceptron(width, width, self.numbers))

    def _adapt(self, support: Batch) -> Tree:
        pairs = self._pairs(support)
        points = self.point(torch.cat([pairs, torch.ones_like(pairs[:, :1])], 1))
        rows = log_weight(support.weight)
        memories = {}
        for number, block in enumerate(self._blocks()):
            key, value = memory = block.memory(points)
            memories[str(number)] = {"key": key, "value": value}
            if number < len(self.blocks) - 1:
                points = block(points, memory, rows)
        return {"memory": memories, "weight": support.weight}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        points = self.point(torch.nn.functional.pad(rows, (0, self.outputs + 1)))  # no target, and no sign of one
        weight = log_weight(state["weight"])
        for number, block in enumerate(self._blocks()):
            memory = state["memory"][str(number)]
            points = block(points, (memory["key"], memory["value"]), weight)
        return self.spread(self.out(points))

    def _blocks(self) -> list[TransformerBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


class TransformerBlock(nn.Module):
    """Rows read the support's rows, then go through a perceptron; normalised before each (pre-LN).

    Args:
        width: d.
        heads: a divisor of d.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.mixed = Attention(width, heads), perceptron(width, 2 * width, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)

    def memory(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (n, d) of support rows (n, d)."""
        return self.attention.memory(self.before(rows))

    def forward(self, rows: Tensor, memory: tuple[Tensor, Tensor], log_weight: Tensor) -> Tensor:
        rows = rows + self.attention(self.before(rows), memory, log_weight)
        return rows + self.mixed(self.between(rows))


def cnp(
    inputs: int,
    outputs: int,
    *,
    width: PositiveInt = 128,
    depth: PositiveInt = 3,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: nn.Module | None = None,
) -> ConditionalProcess:
    r"""Conditional neural process: the mean of the support points' codes, and a network that predicts from it.

    $$ r = \frac{\sum_i w_i h_\theta(x_i, y_i)}{\sum_i w_i}, \qquad (\mu, \sigma)(x) = g_\theta(x, r) $$

    Args:
        inputs: D, numbers of an input; those of more axes are flattened. With an embedding, those that it makes.
        outputs: Y, numbers of a target.
        width: of the layers and of $r$.
        depth: hidden layers of $h$ and of $g$.
        min_std: the least standard deviation that is predicted, in the targets' unit.
        objective: what the tasks ask: `gaussian`, of a prediction `{"mean": (m, Y), "std": (m, Y)}`, or a regression or
            classes that all tasks share, of the targets or logits (m, Y); `min_std` is of no use then.
        embedding: any module: a task's inputs, such as an item's number and features, to rows (n, D); it is trained.

    Returns:
        A learner for any number of shots, whose states are `width` numbers.

    Raises:
        ValueError: a least deviation outside 0 … 1; tasks with classes of their own; inputs or targets of another size.

    Example:
        >>> learner = cnp(1, 1, width=16)
        >>> state = learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))
        >>> {name: part.shape for name, part in learner.predict(state, torch.zeros(5, 1)).items()}
        {'mean': torch.Size([5, 1]), 'std': torch.Size([5, 1])}

    References:
        Garnelo et al.: Conditional Neural Processes, ICML 2018, arXiv:1807.01613.

    Deviations:
        GELU in place of ReLU; the paper's least deviation is 0.1.
    """
    return ConditionalProcess(
        inputs, outputs, width=width, depth=depth, min_std=min_std, objective=objective, embedding=embedding
    )


def tanp(
    inputs: int,
    outputs: int,
    *,
    width: PositiveInt = 128,
    depth: PositiveInt = 3,
    clusters: PositiveInt = 8,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: nn.Module | None = None,
) -> ModulatedProcess:
    r"""Task-adaptive neural process: a `cnp` whose decoder's layers are scaled and shifted by what tasks it is like.

    $$ t = \frac{\sum_i w_i k_\theta(x_i, y_i)}{\sum_i w_i}, \qquad
       c_j \propto \frac{1}{1 + \lVert t - a_j \rVert^2}, \qquad \varphi = t + \sum_j c_j a_j, \qquad
       h \leftarrow (1 + \gamma(\varphi)) \odot h + \beta(\varphi) $$

    Args:
        inputs, outputs, width, depth, min_std, objective, embedding: as in `cnp`.
        clusters: K, of tasks; each has a vector $a_j$, all tasks share them.

    Returns:
        A learner for any number of shots, whose states are twice `width` numbers.

    Raises:
        ValueError: as `cnp`.

    Example:
        >>> learner = tanp(1, 1, width=16)
        >>> learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))["context"].shape
        torch.Size([16])

    References:
        Lin, Wu, Zhou, Pan, Cao, Wang: Task-adaptive Neural Process for User Cold-Start Recommendation, WWW 2021,
        arXiv:2103.06137.

    Deviations:
        There is no latent path, as in `attentive_np`, and so no divergence of what query and support say of it; and no
        loss that draws clusters apart, which would need several tasks at once. Scales are linear in $\varphi$ and
        around 1, in place of a hyperbolic tangent around 0.
    """
    return ModulatedProcess(
        inputs,
        outputs,
        width=width,
        depth=depth,
        clusters=clusters,
        min_std=min_std,
        objective=objective,
        embedding=embedding,
    )


def attentive_np(
    inputs: int,
    outputs: int,
    *,
    width: PositiveInt = 128,
    depth: PositiveInt = 3,
    heads: PositiveInt = 8,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: nn.Module | None = None,
) -> AttentiveProcess:
    r"""Attentive neural process, its deterministic path: each query reads the support points that are near to it.

    $$ r(x) = \sum_i a_i(x)\, V h_\theta(x_i, y_i), \quad a_i(x) \propto w_i \exp\bigl(q(x)^\top k(x_i)\bigr), \quad
       (\mu, \sigma)(x) = g_\theta(x, r(x), \bar h) $$

    Args:
        inputs, outputs, width, depth, min_std, objective, embedding: as in `cnp`.
        heads: of the attention; a divisor of `width`.

    Returns:
        A learner for any number of shots, whose states hold two vectors of each support point.

    Raises:
        ValueError: as `cnp`; heads that do not divide the width.

    Example:
        >>> learner = attentive_np(1, 1, width=16, heads=2)
        >>> learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))["value"].shape
        torch.Size([3, 16])

    References:
        Kim et al.: Attentive Neural Processes, ICLR 2019, arXiv:1901.05761.

    Deviations:
        There is no latent path, so that a prediction is a function of the support set: the mean $\bar h$ of the codes
        takes its place. The support points do not attend to one another.
    """
    return AttentiveProcess(
        inputs,
        outputs,
        width=width,
        depth=depth,
        heads=heads,
        min_std=min_std,
        objective=objective,
        embedding=embedding,
    )


def tnp_d(
    inputs: int,
    outputs: int,
    *,
    width: PositiveInt = 64,
    depth: PositiveInt = 1,
    layers: PositiveInt = 4,
    heads: PositiveInt = 4,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: nn.Module | None = None,
) -> TransformerProcess:
    r"""Transformer neural process with independent predictions (TNP-D): points are tokens, queries read the support.

    $$ h^{l+1}_j = \mathrm{block}_l\bigl(h^l_j, \{h^l_i\}_{i \in \text{support}}\bigr), \qquad
       (\mu, \sigma)(x_j) = g_\theta(h^L_j), \qquad h^0 = e_\theta(x, y, 1) \text{ or } e_\theta(x, 0, 0) $$

    Args:
        inputs, outputs, min_std, objective, embedding: as in `cnp`.
        width: of a token.
        depth: hidden layers of $e$.
        layers: blocks.
        heads: a divisor of `width`.

    Returns:
        A learner for any number of shots, whose states hold two vectors of each support point and block.

    Raises:
        ValueError: as `attentive_np`.

    Example:
        >>> learner = tnp_d(1, 1, width=16, layers=2)
        >>> sorted(learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))["memory"])
        ['0', '1']

    References:
        Nguyen, Grover: Transformer Neural Processes, ICML 2022, arXiv:2207.04179.

    Deviations:
        Layers are normalised before each part, in place of after; a query does not attend to itself, its own token
        being carried along anyway, so that keys and values of the support are all that a state holds.
    """
    return TransformerProcess(
        inputs,
        outputs,
        width=width,
        depth=depth,
        layers=layers,
        heads=heads,
        min_std=min_std,
        objective=objective,
        embedding=embedding,
    )


def _mean(codes: Tensor, weight: Tensor) -> Tensor:
    return weight @ codes / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
