"""OnTooFew tables drawn from a prior over how tables come about: what an in-context learner of tables is trained on.

Shape legend: n rows, F features, K latent causes, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.nn.functional import pad

from kshot import objectives, types
from kshot.annotations import PositiveInt
from kshot.tasks.sampling import Range, Size
from kshot.tasks.source import TaskSource, generator
from kshot.types import Batch, Split, Task

Random = np.random.Generator
TargetType = Literal["classification", "regression"]

GROUP = 16
"""Consecutive tasks that share their numbers of rows and features, so that a stack of them holds no padding."""

KEPT = 0.25
"""The share kept of the tables that tell little of their classes; those of the world are seldom so."""

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


class TabularPriors(TaskSource):
    r"""Synthetic tables; a task is one mechanism that makes features and a target, and rows drawn from it.

    Latent causes, in clusters or not, bring about the features: by a linear map, or by a random network whose nodes are
    measured. The target comes of the causes, or of the features themselves: by a sparse linear function, a random
    network, random trees or distances to points; or a class is the cluster that a row is from. Some features are noise,
    some are warped, rounded to levels or heavy-tailed, and the target is noisy.

    Inputs are (n, F), zero where a table has fewer features than its stack. Targets are one-hot (n, classes' upper end)
    for classification, (n, 1) for regression. A query row of a class that the support lacks has weight 0.

    Args:
        target_type: "classification", or "regression" (of a mean and a standard deviation, see `objectives.gaussian`).
        rows: of a support set; an int or (low, high), small numbers being likelier, as are those of features.
        features: of a table.
        classes: of a table, for classification.
        queries: query rows of a task.
        seed: names the sequence of tasks.

    Example:
        >>> task = TabularPriors(rows=20, features=4, queries=8).task("train", 0)
        >>> task.support.inputs.shape, task.support.targets.shape
        (torch.Size([20, 4]), torch.Size([20, 10]))

    References:
        Müller et al.: Transformers Can Do Bayesian Inference, ICLR 2022, arXiv:2112.10510; Hollmann et al.: TabPFN,
        ICLR 2023, arXiv:2207.01848, whose prior of causal models this follows in kind, not in detail.
    """

    def __init__(
        self,
        *,
        target_type: TargetType = "classification",
        rows: Size = (10, 100),
        features: Size = (2, 32),
        classes: Size = (2, 10),
        queries: PositiveInt = 32,
        seed: int = 0,
    ) -> None:
        if target_type not in get_args(TargetType):
            raise ValueError(f"target_type must be one of {', '.join(get_args(TargetType))}, got {target_type!r}")
        if queries < 1:
            raise ValueError(f"a task needs at least one query row, got {queries=}")
        self.target_type, self.queries, self.seed = target_type, queries, seed
        self.rows, self.features = Range.of(rows, "rows", 4), Range.of(features, "features", 1)
        self.classes = Range.of(classes, "classes", 2)
        self.objective = objectives.classification if target_type == "classification" else objectives.gaussian

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
        """The tasks as one stack; where they are of several sizes, rows of weight 0 and columns of zeros fill up."""
        tasks = [self.task(split, index) for index in indices]
        rows, features = (max(task.support.inputs.shape[axis] for task in tasks) for axis in (0, 1))
        return types.stack([_padded(task, rows, features) for task in tasks])

    def describe(self) -> dict[str, Any]:
        sizes = {name: getattr(self, name).plain() for name in ("rows", "features", "classes")}
        return {
            "source": "tabular_priors",
            "target_type": self.target_type,
            **sizes,
            "queries": self.queries,
            "seed": self.seed,
        }

    def _sizes(self, split: Split, group: int) -> tuple[int, int]:
        """Rows and features of a group of tasks, the logarithm uniform."""
        draws = generator(self.seed, split, 2**40 + group).random(2)
        return tuple(
            int(np.exp(np.log(size.low) + draw * (np.log(size.high + 1) - np.log(size.low))))
            for size, draw in zip((self.rows, self.features), draws)
        )  # type: ignore[return-value]


tabular_priors = TabularPriors  # sources are made by lower-case names throughout


def _padded(task: Task, rows: int, features: int) -> Task:
    def wide(batch: Batch, more: int) -> Batch:
        inputs = pad(batch.inputs, (0, features - batch.inputs.shape[1], 0, more))
        return Batch(inputs, pad(batch.targets, (0, 0, 0, more)), pad(batch.weight, (0, more)))

    return Task(wide(task.support, rows - len(task.support.weight)), wide(task.query, 0))


def _learnable(x: np.ndarray, labels: np.ndarray, rows: int) -> bool:
    """Whether the nearest support row tells the class of the other rows clearly better than the commonest class."""
    z = _standard(x)
    seen, asked = z[:rows], z[rows:]
    apart = (seen**2).sum(1) - 2 * asked @ seen.T
    right = (labels[apart.argmin(1)] == labels[rows:]).mean()
    commonest = (labels[rows:] == np.bincount(labels[:rows]).argmax()).mean()
    return bool(right - commonest > 0.3 * (1 - commonest))


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def _causes(random: Random, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Latent causes (n, K) and the cluster (n,) that each row is from."""
    size = int(np.exp(random.uniform(0, np.log(12.99))))
    clusters = int(random.choice([1, 2, 3, 5, 10, 15]))
    share = random.dirichlet(np.full(clusters, random.choice([1.0, 5.0, 50.0])))
    cluster = random.choice(clusters, n, p=share)
    apart = random.uniform(0.5, 4.0)
    centre = apart * random.normal(size=(clusters, size))
    spread = np.exp(random.normal(0, random.choice([0.0, 0.3, 0.7]), (clusters, 1))) * np.exp(
        random.normal(0, random.choice([0.0, 0.5, 1.0]), size)
    )
    noise = random.normal(size=(n, size)) if random.random() < 0.8 else random.uniform(-1.7, 1.7, (n, size))
    return centre[cluster] + spread[cluster] * noise, cluster


def _network(random: Random, h: np.ndarray, outputs: int, noise: float, depth: int) -> list[np.ndarray]:
    """The nodes of each layer of a random network on h (n, K); the last has `outputs`."""
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
    """Features (n, F) that the causes bring about."""
    n, size = causes.shape
    noise = random.choice([0.01, 0.05, 0.1, 0.3, 0.6])
    way = random.random()
    if way < 0.35:  # a linear map of the causes
        weight = random.normal(size=(size, count)) * (random.random((size, count)) < random.uniform(0.2, 1.0))
        x = _standard(causes @ weight)
    elif way < 0.55:  # the causes themselves, as far as there are any
        x = _standard(causes)[:, np.arange(count) % size]
        if count > size:
            x = x @ np.linalg.qr(random.normal(size=(count, count)))[0] if random.random() < 0.3 else x
    else:  # nodes of a network
        nodes = np.concatenate(
            _network(random, _standard(causes), max(count, 4), 0.1 * noise, int(random.integers(1, 4))), 1
        )
        x = _standard(nodes[:, random.permutation(nodes.shape[1])[:count]])
    x = x + noise * np.exp(random.normal(0, 0.5, count)) * random.normal(size=(n, count))
    x = _standard(x)
    blank = random.random(count) < random.choice([0.0, 0.0, 0.0, 0.3])
    x = np.where(blank, random.normal(size=x.shape), x)
    warped = random.random(count) < random.choice([0.0, 0.3, 0.8])
    for column in np.flatnonzero(warped):
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
    """Scores (n, outputs) of the rows, standardised: a function of the features or of their causes."""
    z = _standard(x) if random.random() < 0.5 else (causes - causes.mean(0)) / causes.std()
    z = np.clip(z, -4, 4)
    size = z.shape[1]
    relevant = random.random(size) < random.choice([0.1, 0.3, 1.0])
    relevant[random.integers(size)] = True
    z = z[:, relevant] * np.exp(random.normal(0, random.choice([0.0, 0.7]), relevant.sum()))
    way = random.random()
    if way < 0.5:
        found = z @ random.normal(size=(z.shape[1], outputs))
    elif way < 0.7:
        found = _network(random, z, outputs, 0.0, 2)[-1]
    elif way < 0.9:
        found = _trees(random, z, outputs)
    else:
        centre = z[random.choice(len(z), (outputs, 2))] + 0.3 * random.normal(size=(outputs, 2, z.shape[1]))
        apart = ((z[:, None, None] - centre) ** 2).mean(-1)
        found = -apart.min(-1)
    return _standard(found)


def _trees(random: Random, z: np.ndarray, outputs: int) -> np.ndarray:
    """A sum of trees, each asking the same question at all nodes of a depth."""
    total = np.zeros((len(z), outputs))
    for _ in range(random.integers(1, 5)):
        depth = random.integers(1, 4)
        column = random.integers(z.shape[1], size=depth)
        cut = z[random.integers(len(z), size=depth), column]
        leaf = ((z[:, column] > cut) << np.arange(depth)).sum(1)
        total += random.normal(size=(2**depth, outputs))[leaf]
    return total


def _regression(random: Random, causes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A target (n,) with noise, of any unit."""
    y = _scores(random, causes, x, 1)[:, 0]
    if random.random() < 0.2:
        y = _standard(np.exp(random.uniform(0.3, 1.0) * np.clip(y, -3, 3)))
    noise = random.choice([0.03, 0.1, 0.3, 0.6, 1.0, 1.5])
    draws = random.normal(size=len(y)) if random.random() < 0.8 else random.standard_t(4, len(y))
    return (y + noise * draws) * np.exp(random.normal(0, 1)) + random.normal(0, 2)


def _labels(random: Random, causes: np.ndarray, x: np.ndarray, cluster: np.ndarray, count: int) -> np.ndarray:
    """Classes (n,), of at most `count`, under random numbers."""
    way = random.random()
    if way < 0.4 and cluster.max() > 0:
        of_cluster = np.arange(cluster.max() + 1) % count
        labels = of_cluster[cluster]
    elif way < 0.6 and count <= 5:
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
