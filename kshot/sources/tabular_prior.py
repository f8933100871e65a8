"""Small tables from a prior over data-generating mechanisms, to train in-context learners of tables.

Shape legend: n rows, F features, K latent causes, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import pad

from kshot import objectives, types
from kshot.annotations import PositiveInt, Size
from kshot.argument_checks import check_arguments
from kshot.objectives import Objective
from kshot.supplied import Seed
from kshot.tasks.sampling import Range
from kshot.tasks.source import TaskSource, generator
from kshot.types import Batch, Split, Task

Random = np.random.Generator
TargetType = Literal["classification", "regression"]

GROUP = 16
"""Number of consecutive tasks of equal numbers of rows and features, so that their stack needs no padding."""

KEPT = 0.25
"""Acceptance probability of tables whose features predict their classes poorly; real tables seldom do."""

ACTIVATIONS: list[Callable[[np.ndarray], np.ndarray]] = [
    np.tanh,
    lambda h: np.maximum(h, 0),
    lambda h: h,
    np.sin,
    np.abs,
    lambda h: np.exp(-(h**2)),
    lambda h: (h > 0).astype(h.dtype),
    lambda h: np.sign(h) * np.log1p(np.abs(h)),
]


@check_arguments
def tabular_priors(
    *,
    target_type: TargetType = "classification",
    rows: Size = (10, 100),
    features: Size = (2, 32),
    classes: Size = (2, 10),
    queries: PositiveInt = 32,
    seed: Seed = 0,
) -> TabularPriors:
    r"""Synthetic tables; a task is a random mechanism of features and target, and rows sampled from it.

    Latent causes, clustered or not, determine the features by a linear map, or by a random network whose nodes are
    observed. The target is a function of the causes or of the features: a sparse linear function, a random network,
    random trees or distances to points; or a class is the cluster of a row. Some features are noise, some are warped,
    discretised or heavy-tailed, and the target is noisy.

    Inputs are (n, F), zero where a table has fewer features than its stack. Targets are one-hot (n, largest number of
    classes) for classification, (n, 1) for regression. Query rows of a class without support rows have weight 0.

    Args:
        target_type: "classification", or "regression" of a mean and a standard deviation (`objectives.gaussian`).
        rows, features: number of support rows and of features, an int or log-uniform in (low, high).
        classes: number of classes, for classification.
        queries: number of query rows.
        seed: random seed of task sampling.

    Example:
        >>> task = tabular_priors(rows=20, features=4, queries=8).task("train", 0)
        >>> task.support.inputs.shape, task.support.targets.shape
        (torch.Size([20, 4]), torch.Size([20, 10]))

    References:
        Müller et al.: Transformers Can Do Bayesian Inference, ICLR 2022, arXiv:2112.10510; Hollmann et al.: TabPFN,
        ICLR 2023, arXiv:2207.01848, whose prior of causal models this resembles, without following it in detail.
    """
    ranges = Range.of(rows, "rows", 4), Range.of(features, "features", 1), Range.of(classes, "classes", 2)
    objective = objectives.classification if target_type == "classification" else objectives.gaussian
    return TabularPriors(target_type, *ranges, queries, seed, objective)


@dataclass(eq=False)
class TabularPriors(TaskSource):
    """Tasks of `tabular_priors`."""

    unit = "size of table"
    copies_are_errors = False  # rows of a few columns of categories are equal by chance

    target_type: TargetType
    rows: Range
    features: Range
    classes: Range
    queries: int
    seed: int
    objective: Objective

    def __post_init__(self) -> None:
        self.varying_width = self.features.low < self.features.high

    def task(self, split: Split, index: int) -> Task:
        rows, features = self._sizes(split, index // GROUP)
        random = generator(self.seed, split, index)
        n = rows + self.queries
        low, high = self.classes
        counts = np.exp(np.linspace(np.log(low), np.log(high + 0.99), 50)).astype(int)  # few classes are likelier
        while True:
            causes, cluster = _causes(random, n)
            x = _features(random, causes, features)
            if self.target_type == "regression":
                targets, weight = _regression(random, causes, x)[:, None], np.ones(n)
                break
            count = min(int(random.choice(counts)), max(self.classes.low, rows // 4))
            labels = _labels(random, causes, x, cluster, count)
            seen = np.isin(labels, labels[:rows])
            enough = len(np.unique(labels[:rows])) >= self.classes.low and seen[rows:].any()
            if enough and (random.random() < KEPT or _learnable(x, labels, rows)):
                targets, weight = np.eye(self.classes.high)[labels], seen.astype(np.float64)
                break
        leaves = [torch.from_numpy(leaf.astype(np.float32)) for leaf in (x, targets, weight)]
        return Task(*(Batch(*(leaf[part] for leaf in leaves)) for part in (slice(0, rows), slice(rows, None))))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        """The tasks as one stack, padded with rows of weight 0 and columns of zeros."""
        tasks = [self.task(split, index) for index in indices]
        rows, features = (max(task.support.inputs.shape[axis] for task in tasks) for axis in (0, 1))
        sizes = (rows, features), (self.queries, features)
        return types.stack([Task(*(_padded(batch, *size) for batch, size in zip(task, sizes))) for task in tasks])

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The number of the group of tasks that share their numbers of rows and features."""
        return np.asarray(indices, np.int64) // GROUP

    def describe(self) -> dict[str, Any]:
        sizes = {name: getattr(self, name).plain() for name in ("rows", "features", "classes")}
        about = {"source": "tabular_priors", "target_type": self.target_type, **sizes}
        return about | {"queries": self.queries, "seed": self.seed}

    def _sizes(self, split: Split, group: int) -> list[int]:
        """Numbers of rows and features of a group of tasks, log-uniform."""
        draws = generator(self.seed, split, 2**40 + group).random(2)
        ends = [(np.log(size.low), np.log(size.high + 1)) for size in (self.rows, self.features)]
        return [int(np.exp(low + draw * (high - low))) for (low, high), draw in zip(ends, draws)]


def _padded(batch: Batch, rows: int, features: int) -> Batch:
    more = rows - len(batch.weight)
    inputs = pad(batch.inputs, (0, features - batch.inputs.shape[1], 0, more))
    return Batch(inputs, pad(batch.targets, (0, 0, 0, more)), pad(batch.weight, (0, more)))


def _learnable(x: np.ndarray, labels: np.ndarray, rows: int) -> bool:
    """Whether a nearest-neighbour classifier is clearly better than predicting the most frequent class."""
    z = _standard(x)
    support, query = z[:rows], z[rows:]
    distance = (support**2).sum(1) - 2 * query @ support.T
    right = (labels[distance.argmin(1)] == labels[rows:]).mean()
    commonest = (labels[rows:] == np.bincount(labels[:rows]).argmax()).mean()
    return bool(right - commonest > 0.3 * (1 - commonest))


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def _causes(random: Random, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Latent causes (n, K) and the cluster (n,) of each row."""
    size = int(np.exp(random.uniform(0, np.log(12.99))))
    clusters = int(random.choice([1, 2, 3, 5, 10, 15]))
    share = random.dirichlet(np.full(clusters, random.choice([1.0, 5.0, 50.0])))
    cluster = random.choice(clusters, n, p=share)
    separation = random.uniform(0.5, 4.0)
    centre = separation * random.normal(size=(clusters, size))
    of_cluster = np.exp(random.normal(0, random.choice([0.0, 0.3, 0.7]), (clusters, 1)))
    spread = of_cluster * np.exp(random.normal(0, random.choice([0.0, 0.5, 1.0]), size))
    noise = random.normal(size=(n, size)) if random.random() < 0.8 else random.uniform(-1.7, 1.7, (n, size))
    return centre[cluster] + spread[cluster] * noise, cluster


def _network(random: Random, h: np.ndarray, outputs: int, noise: float, depth: int) -> list[np.ndarray]:
    """The nodes of each layer of a random network on h (n, K); the last layer has `outputs`."""
    layers = []
    width = int(random.integers(4, 32))
    for layer in range(depth):
        out = outputs if layer == depth - 1 else width
        weight = random.normal(size=(h.shape[1], out)) * (random.random((h.shape[1], out)) < random.uniform(0.3, 1.0))
        h = _standard(h @ weight + 1e-3 * random.normal(size=(len(h), out))) * random.uniform(0.7, 2.0)
        if layer < depth - 1 or random.random() < 0.3:
            h = ACTIVATIONS[random.integers(len(ACTIVATIONS))](h + random.normal(0, 0.5, out))
        h = h + noise * random.normal(size=h.shape)
        layers.append(h)
    return layers


def _features(random: Random, causes: np.ndarray, count: int) -> np.ndarray:
    """Features (n, F) as a function of the causes."""
    n, size = causes.shape
    noise = random.choice([0.01, 0.05, 0.1, 0.3, 0.6])
    branch = random.random()
    if branch < 0.35:  # a linear map of the causes
        weight = random.normal(size=(size, count)) * (random.random((size, count)) < random.uniform(0.2, 1.0))
        x = _standard(causes @ weight)
    elif branch < 0.55:  # the causes themselves, repeated if there are too few
        x = _standard(causes)[:, np.arange(count) % size]
        if count > size:
            x = x @ np.linalg.qr(random.normal(size=(count, count)))[0] if random.random() < 0.3 else x
    else:  # nodes of a network
        depth = int(random.integers(1, 4))
        nodes = np.concatenate(_network(random, _standard(causes), max(count, 4), 0.1 * noise, depth), 1)
        x = _standard(nodes[:, random.permutation(nodes.shape[1])[:count]])
    x = _standard(x + noise * np.exp(random.normal(0, 0.5, count)) * random.normal(size=(n, count)))
    blank = random.random(count) < random.choice([0.0, 0.0, 0.0, 0.3])
    x = np.where(blank, random.normal(size=x.shape), x)
    for column in np.flatnonzero(random.random(count) < random.choice([0.0, 0.3, 0.8])):
        x[:, column] = _warped(random, x[:, column])
    return x[:, random.permutation(count)] * np.exp(random.normal(0, 1, count)) + random.normal(0, 1, count)


def _warped(random: Random, x: np.ndarray) -> np.ndarray:
    kind = random.integers(6)
    if kind == 0:
        return np.exp(random.uniform(0.3, 1.2) * x)
    if kind == 1:
        return np.sign(x) * np.abs(x) ** random.uniform(0.5, 2.5)
    if kind == 2:
        return np.tanh(random.uniform(1, 3) * (x + random.normal()))
    if kind == 3:
        return np.maximum(x - random.normal(0, 0.5), 0)
    levels = 2 if kind == 4 else int(random.integers(3, 10))
    return np.searchsorted(np.sort(random.normal(size=levels - 1)), x).astype(np.float64)


def _scores(random: Random, causes: np.ndarray, x: np.ndarray, outputs: int) -> np.ndarray:
    """Standardised scores (n, outputs) of the rows: a function of the features or of the causes."""
    z = _standard(x) if random.random() < 0.5 else (causes - causes.mean(0)) / causes.std()
    z = np.clip(z, -4, 4)
    size = z.shape[1]
    relevant = random.random(size) < random.choice([0.1, 0.3, 1.0])
    relevant[random.integers(size)] = True
    z = z[:, relevant] * np.exp(random.normal(0, random.choice([0.0, 0.7]), relevant.sum()))
    branch = random.random()
    if branch < 0.5:
        scores = z @ random.normal(size=(z.shape[1], outputs))
    elif branch < 0.7:
        scores = _network(random, z, outputs, 0.0, 2)[-1]
    elif branch < 0.9:
        scores = _trees(random, z, outputs)
    else:
        centre = z[random.choice(len(z), (outputs, 2))] + 0.3 * random.normal(size=(outputs, 2, z.shape[1]))
        scores = -((z[:, None, None] - centre) ** 2).mean(-1).min(-1)
    return _standard(scores)


def _trees(random: Random, z: np.ndarray, outputs: int) -> np.ndarray:
    """A sum of oblivious trees: all nodes of a depth share their split."""
    total = np.zeros((len(z), outputs))
    for _ in range(random.integers(1, 5)):
        depth = random.integers(1, 4)
        column = random.integers(z.shape[1], size=depth)
        cut = z[random.integers(len(z), size=depth), column]
        leaf = ((z[:, column] > cut) << np.arange(depth)).sum(1)
        total += random.normal(size=(2**depth, outputs))[leaf]
    return total


def _regression(random: Random, causes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A noisy target (n,) of random scale and offset."""
    y = _scores(random, causes, x, 1)[:, 0]
    if random.random() < 0.2:
        y = _standard(np.exp(random.uniform(0.3, 1.0) * np.clip(y, -3, 3)))
    noise = random.choice([0.03, 0.1, 0.3, 0.6, 1.0, 1.5])
    draws = random.normal(size=len(y)) if random.random() < 0.8 else random.standard_t(4, len(y))
    return (y + noise * draws) * np.exp(random.normal(0, 1)) + random.normal(0, 2)


def _labels(random: Random, causes: np.ndarray, x: np.ndarray, cluster: np.ndarray, count: int) -> np.ndarray:
    """Class numbers (n,) of at most `count` classes, in random order."""
    branch = random.random()
    if branch < 0.4 and cluster.max() > 0:
        labels = cluster % count
    elif branch < 0.6 and count <= 5:
        score = _scores(random, causes, x, 1)[:, 0] + random.choice([0.0, 0.05, 0.2]) * random.normal(size=len(x))
        share = np.cumsum(random.dirichlet(np.full(count, random.choice([1.5, 5.0, 30.0]))))[:-1]
        labels = np.searchsorted(np.quantile(score, share), score)
    else:
        score = random.choice([3.0, 10.0, 30.0, 100.0]) * _scores(random, causes, x, count)
        score += random.choice([0.0, 0.5, 1.5]) * random.normal(size=count)
        labels = (score + random.gumbel(size=score.shape)).argmax(1)
    wrong = random.random(len(labels)) < random.choice([0.0, 0.0, 0.0, 0.05, 0.15])
    labels = np.where(wrong, random.integers(count, size=len(labels)), labels)
    return random.permutation(count)[labels]
