"""Neural processes: a network encodes the support set and predicts from the code. Adapting takes no gradient.

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
from kshot.learners.amortised.attention import Attention, perceptron, weighted_row_mean
from kshot.learners.gradient.cavia import FiLM
from kshot.learners.heads.distances import log_weight
from kshot.models.layers import Spread
from kshot.objectives import Objective
from kshot.objectives.outputs import the_tensor
from kshot.supplied import Embedding, FeatureCount, NumOutputs
from kshot.types import Batch, Tree


class NeuralProcess(Learner):
    """Base of the neural processes: inputs as rows (n, D), targets (n, Y), and the form of a prediction.

    Attributes:
        numbers: outputs of the decoder for a row: a mean and a standard deviation of each target for
            `objectives.gaussian`, else one number of each.
    """

    def __init__(
        self, inputs: int, outputs: int, *, min_std: float, objective: Objective, embedding: nn.Module | None
    ) -> None:
        super().__init__(objective)
        if objective.task_specific_classes:
            raise ValueError(
                "a neural process predicts numbers, or classes that all tasks share; for task-specific classes use a "
                "learner that compares examples, such as protonet or prior_fitted"
            )
        self.inputs, self.outputs = inputs, outputs
        gaussian = objective.predicts == "distribution"
        self.numbers = 2 * outputs if gaussian else outputs
        spread = Spread(min_std)
        self.spread = spread if gaussian else nn.Identity()
        self.embedding = embedding
        self.function = None if embedding is None else Function(embedding, "running")

    def _rows(self, inputs: Tree) -> Tensor:
        """Inputs (n, ...), or the embedding's output for them, as rows (n, D)."""
        if self.function is not None:
            inputs = the_tensor(self.function.query({}, {}, inputs), "holds the features")
        elif isinstance(inputs, dict):
            raise ValueError(f"inputs of several parts ({', '.join(inputs)}) need an embedding that makes rows of them")
        if prod(inputs.shape[1:]) != self.inputs:
            raise ValueError(f"this learner takes {self.inputs} inputs a row, got {tuple(inputs.shape)}")
        return inputs.flatten(1)

    def _pairs(self, support: Batch) -> Tensor:
        """Inputs and targets, concatenated, (n, D + Y)."""
        if support.targets.shape[1:] != (self.outputs,):
            raise ValueError(f"targets must be (n, {self.outputs}), got {tuple(support.targets.shape)}")
        rows = self._rows(support.inputs)
        return torch.cat([rows, support.targets.to(rows.dtype)], 1)


class ConditionalProcess(NeuralProcess):
    r"""Encodes the support set as one vector, the mean of its points' codes; see `cnp`.

    The state is `{"summary": (d,)}`; zero for a support without rows.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, **common: Any) -> None:
        super().__init__(inputs, outputs, **common)
        self.encoder = perceptron(inputs + outputs, width, width, depth)
        self.decoder = perceptron(inputs + width, width, self.numbers, depth)

    def _adapt(self, support: Batch) -> Tree:
        return {"summary": weighted_row_mean(self.encoder(self._pairs(support)), support.weight)}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        return self.spread(self.decoder(torch.cat([rows, state["summary"].expand(len(rows), -1)], 1)))


class ModulatedProcess(NeuralProcess):
    """A conditional process whose decoder is modulated by the similarity of the task to clusters; see `tanp`.

    The state is `{"summary": (d,), "context": (d,)}`.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, clusters: int, **common: Any) -> None:
        super().__init__(inputs, outputs, **common)
        self.encoder, self.task_encoder = (perceptron(inputs + outputs, width, width, depth) for _ in range(2))
        self.clusters = nn.Parameter(nn.init.xavier_uniform_(torch.empty(clusters, width)))
        hidden_layers = [str(2 * number) for number in range(depth)]
        self.decoder = FiLM(perceptron(inputs + width, width, self.numbers, depth), hidden_layers, width)
        self.decoding = Function(self.decoder, "running")

    def _adapt(self, support: Batch) -> Tree:
        pairs = self._pairs(support)
        task = weighted_row_mean(self.task_encoder(pairs), support.weight)
        similarity = 1 / (1 + (task - self.clusters).square().sum(1))
        return {
            "summary": weighted_row_mean(self.encoder(pairs), support.weight),
            "context": task + similarity / similarity.sum() @ self.clusters,
        }

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        rows = torch.cat([rows, state["summary"].expand(len(rows), -1)], 1)
        return self.spread(self.decoding.query({"context": state["context"]}, {}, rows))


class AttentiveProcess(NeuralProcess):
    r"""Each query attends to the points of the support set; see `attentive_np`.

    The state is `{"summary": (d,), "key": (n, d), "value": (n, d), "weight": (n,)}`.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, heads: int, **common: Any) -> None:
        super().__init__(inputs, outputs, **common)
        self.encoder = perceptron(inputs + outputs, width, width, depth)
        self.input_encoder = perceptron(inputs, width, width, depth)
        self.attention = Attention(width, heads)
        self.decoder = perceptron(inputs + 2 * width, width, self.numbers, depth)

    def _adapt(self, support: Batch) -> Tree:
        points = self.encoder(self._pairs(support))
        key, value = self.attention.memory(self.input_encoder(self._rows(support.inputs)), points)
        summary = weighted_row_mean(points, support.weight)
        return {"summary": summary, "key": key, "value": value, "weight": support.weight}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        memory = state["key"], state["value"]
        read = self.attention(self.input_encoder(rows), memory, log_weight(state["weight"]))
        return self.spread(self.decoder(torch.cat([rows, read, state["summary"].expand(len(rows), -1)], 1)))


class TransformerProcess(NeuralProcess):
    r"""A transformer over support and query points, in which queries attend to the support only; see `tnp_d`.

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
        weight = log_weight(support.weight)
        memories = {}
        for number, block in enumerate(self._blocks()):
            key, value = memory = block.memory(points)
            memories[str(number)] = {"key": key, "value": value}
            if number < len(self.blocks) - 1:
                points = block(points, memory, weight)
        return {"memory": memories, "weight": support.weight}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        rows = self._rows(inputs)
        points = self.point(torch.nn.functional.pad(rows, (0, self.outputs + 1)))  # target and its indicator are 0
        weight = log_weight(state["weight"])
        for number, block in enumerate(self._blocks()):
            memory = state["memory"][str(number)]
            points = block(points, (memory["key"], memory["value"]), weight)
        return self.spread(self.out(points))

    def _blocks(self) -> list[TransformerBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


class TransformerBlock(nn.Module):
    """Attention to the support's rows, then a perceptron; each normalises its input (pre-LN).

    Args:
        width: d.
        heads: number of heads, a divisor of d.
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
    inputs: FeatureCount,
    outputs: NumOutputs,
    *,
    width: PositiveInt = 128,
    depth: PositiveInt = 3,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: Embedding | None = None,
) -> ConditionalProcess:
    r"""Conditional neural process: the mean of the support points' codes, and a network that predicts from it.

    $$ r = \frac{\sum_i w_i h_\theta(x_i, y_i)}{\sum_i w_i}, \qquad (\mu, \sigma)(x) = g_\theta(x, r) $$

    Args:
        inputs: D, the size of an input, flattened; with an embedding, of its output.
        outputs: Y, the size of a target.
        width: width of the layers and of $r$.
        depth: number of hidden layers of $h$ and of $g$.
        min_std: smallest standard deviation that is predicted, in the targets' unit.
        objective: `gaussian`, with predictions `{"mean": (m, Y), "std": (m, Y)}`; or a regression, or classes that all
            tasks share, with targets or logits (m, Y), for which `min_std` has no effect.
        embedding: any module that maps a task's inputs, such as an item's number and features, to rows (n, D); it is
            trained too.

    Returns:
        A learner for any number of shots, whose states are `width` numbers.

    Raises:
        ValueError: task-specific classes, or (when called) inputs or targets of another size.

    Example:
        >>> learner = cnp(1, 1, width=16)
        >>> state = learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))
        >>> {name: part.shape for name, part in learner.predict(state, torch.zeros(5, 1)).items()}
        {'mean': torch.Size([5, 1]), 'std': torch.Size([5, 1])}

    References:
        Garnelo et al.: Conditional Neural Processes, ICML 2018, arXiv:1807.01613.

    Deviations:
        The outer loss is that of the queries; the paper's is of the support points too, which the targets include.
        GELU instead of ReLU, and as many hidden layers in $g$ as in $h$, where the authors' code has 2 and 3. The
        smallest standard deviation is 0.1 in the paper, from which `Spread` continues as the authors' code does.
    """
    options: dict[str, Any] = {"min_std": min_std, "objective": objective, "embedding": embedding}
    return ConditionalProcess(inputs, outputs, width=width, depth=depth, **options)


def tanp(
    inputs: FeatureCount,
    outputs: NumOutputs,
    *,
    width: PositiveInt = 128,
    depth: PositiveInt = 3,
    clusters: PositiveInt = 8,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: Embedding | None = None,
) -> ModulatedProcess:
    r"""Task-adaptive neural process: a `cnp` whose decoder is modulated by the task's similarity to clusters of tasks.

    $$ t = \frac{\sum_i w_i k_\theta(x_i, y_i)}{\sum_i w_i}, \qquad
       c_j \propto \frac{1}{1 + \lVert t - a_j \rVert^2}, \qquad \varphi = t + \sum_j c_j a_j, \qquad
       h \leftarrow (1 + \gamma(\varphi)) \odot h + \beta(\varphi) $$

    Args:
        inputs, outputs, width, depth, min_std, objective, embedding: as in `cnp`.
        clusters: K, the number of clusters, each with a learned vector $a_j$.

    Returns:
        A learner for any number of shots, whose states are twice `width` numbers.

    Example:
        >>> learner = tanp(1, 1, width=16)
        >>> learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))["context"].shape
        torch.Size([16])

    References:
        Lin, Wu, Zhou, Pan, Cao, Wang: Task-adaptive Neural Process for User Cold-Start Recommendation, WWW 2021,
        arXiv:2103.06137.

    Deviations:
        Those of `cnp`. There is no latent path, as in `attentive_np`, and so no divergence between its distributions
        given query and support; and no loss that separates clusters, which would need several tasks at once. Scales are
        linear in $\varphi$ and relative to 1, instead of a hyperbolic tangent around 0.
    """
    options: dict[str, Any] = {"min_std": min_std, "objective": objective, "embedding": embedding}
    return ModulatedProcess(inputs, outputs, width=width, depth=depth, clusters=clusters, **options)


def attentive_np(
    inputs: FeatureCount,
    outputs: NumOutputs,
    *,
    width: PositiveInt = 128,
    depth: PositiveInt = 3,
    heads: PositiveInt = 8,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: Embedding | None = None,
) -> AttentiveProcess:
    r"""Attentive neural process, its deterministic path: each query attends to the support points near it.

    $$ r(x) = O \sum_i a_i(x)\, V h_\theta(x_i, y_i), \quad
       a_i(x) \propto w_i \exp\bigl(q(x)^\top k(x_i) / \sqrt{d_q}\bigr), \quad
       (\mu, \sigma)(x) = g_\theta(x, r(x), \bar h) $$

    for each head, on its share of $d_q$ = width / heads numbers; $O$ mixes the heads. $\bar h$ is the weighted mean of
    the codes $h_\theta(x_i, y_i)$; $q$ and $k$ are linear maps of one network's output for an input.

    Args:
        inputs, outputs, width, depth, min_std, objective, embedding: as in `cnp`.
        heads: number of attention heads, a divisor of `width`.

    Returns:
        A learner for any number of shots, whose states hold two vectors of each support point.

    Raises:
        ValueError: as `cnp`, or heads that do not divide the width.

    Example:
        >>> learner = attentive_np(1, 1, width=16, heads=2)
        >>> learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))["value"].shape
        torch.Size([3, 16])

    References:
        Kim et al.: Attentive Neural Processes, ICLR 2019, arXiv:1901.05761.

    Deviations:
        There is no latent path, so that a prediction is a function of the support set: the mean $\bar h$ of the codes
        replaces it, and the outer loss has no divergence of latent distributions. It is that of the queries, where the
        paper's targets include the support points. The support points do not attend to one another. GELU instead of
        ReLU; the smallest standard deviation is 0.1 in the paper.
    """
    options: dict[str, Any] = {"min_std": min_std, "objective": objective, "embedding": embedding}
    return AttentiveProcess(inputs, outputs, width=width, depth=depth, heads=heads, **options)


def tnp_d(
    inputs: FeatureCount,
    outputs: NumOutputs,
    *,
    width: PositiveInt = 64,
    depth: PositiveInt = 1,
    layers: PositiveInt = 4,
    heads: PositiveInt = 4,
    min_std: OpenFraction = 0.01,
    objective: Objective = objectives.gaussian,
    embedding: Embedding | None = None,
) -> TransformerProcess:
    r"""Transformer neural process with independent predictions (TNP-D): points are tokens, queries read the support.

    $$ h^{l+1}_j = \mathrm{block}_l\bigl(h^l_j, \{h^l_i\}_{i \in \text{support}}\bigr), \qquad
       (\mu, \sigma)(x_j) = g_\theta(h^L_j), \qquad h^0 = e_\theta(x, y, 1) \text{ or } e_\theta(x, 0, 0) $$

    Args:
        inputs, outputs, min_std, objective, embedding: as in `cnp`.
        width: width of a token.
        depth: number of hidden layers of $e$.
        layers: number of blocks.
        heads: number of attention heads, a divisor of `width`.

    Returns:
        A learner for any number of shots, whose states hold two vectors of each support point and block.

    Example:
        >>> learner = tnp_d(1, 1, width=16, layers=2)
        >>> sorted(learner.adapt(Batch.of(torch.zeros(3, 1), torch.ones(3, 1)))["memory"])
        ['0', '1']

    References:
        Nguyen, Grover: Transformer Neural Processes, ICML 2022, arXiv:2207.04179.

    Deviations:
        Layers are normalised before each part rather than after, with GELU instead of ReLU. A token also tells whether
        it has a target, where the authors' tokens of queries have zeros for a target and nothing else. The standard
        deviation is that of `Spread`, where the authors' code takes an exponential or a bounded softplus. The authors'
        masks let a query attend to the support alone too; keys and values of the support are therefore all that a state
        holds. Depths and widths are this package's.
    """
    options: dict[str, Any] = {"min_std": min_std, "objective": objective, "embedding": embedding}
    return TransformerProcess(inputs, outputs, width=width, depth=depth, layers=layers, heads=heads, **options)
