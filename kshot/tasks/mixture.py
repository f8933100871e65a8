"""Several sources as one: tasks of several domains, or domains that are held out of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch

from kshot.supplied import Seed
from kshot.tasks.source import TaskSource, generator
from kshot.types import SPLITS, Batch, Split, Task, UnequalShapes, tree_leaves, tree_map

Shares = Mapping[Split, Mapping[str, float]]


def mixture(
    sources: Mapping[str, TaskSource],
    *,
    weights: Mapping[str, float] | None = None,
    heldout: Mapping[str, Sequence[str]] | None = None,
    seed: Seed = 0,
) -> Mixture:
    r"""Draw each task from one of several sources.

    Task i of a split is task i of the same split of source s, where $s \sim w_s / \sum w$ is drawn for each task. A
    source that is held out for a split has tasks there and nowhere else, and the split has no others: held out for
    test, it is a domain that neither training nor model selection has seen.

    Args:
        sources: name to source. They share their objective and the shapes of their tasks.
        weights: name to weight, 1 by default; 0 or more.
        heldout: "val" and "test" to the names of the sources that are held out for them.
        seed: random seed of the choice of sources; the sources keep their own seeds.

    Raises:
        ValueError: fewer than two sources, a name or weight that matches none, no source left to train on, sources
            whose objectives or shapes differ.

    Example:
        >>> from kshot.sources.functions import sinusoids
        >>> both = mixture({"dense": sinusoids(shots=10), "other": sinusoids(shots=10, seed=1)}, weights={"dense": 3})
        >>> both.describe()["share"]
        {'train': {'dense': 0.75, 'other': 0.25}, ...}

    References:
        Triantafillou et al.: Meta-Dataset, ICLR 2020, arXiv:1903.03096, section 3: sources for testing only.
    """
    if len(sources) < 2:
        raise ValueError(f"a mixture needs at least two sources, got {', '.join(sources) or 'none'}")
    weights, heldout = weights or {}, heldout or {}
    for name in [*weights, *(name for names in heldout.values() for name in names)]:
        if name not in sources:
            raise ValueError(f"the mixture has no source {name!r}; it has {', '.join(sources)}")
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of {name!r} must be 0 or more, got {weight}")
    for split, names in heldout.items():
        if split not in ("val", "test") or isinstance(names, str) or not names:
            raise ValueError(f"heldout takes val and test, each a list of names of sources; got {split}: {names!r}")
    objective = next(iter(sources.values())).objective
    for name, source in sources.items():
        if source.objective != objective:
            raise ValueError(f"the objective of {name!r} differs from that of {next(iter(sources))!r}")
    return Mixture(sources, {split: _shares(split, sources, weights, heldout) for split in SPLITS}, seed)


class Mixture(TaskSource):
    """Tasks of `mixture`; `shares` is the probability of each source that has tasks in a split."""

    def __init__(self, sources: Mapping[str, TaskSource], shares: Shares, seed: int) -> None:
        self.sources, self.shares, self.seed = dict(sources), shares, seed
        self.objective = next(iter(sources.values())).objective
        self.varying_width = any(source.varying_width for source in sources.values())
        self.has_names = any(source.has_names for source in sources.values())
        members = {source.member for source in sources.values()}
        self.member = members.pop() if len(members) == 1 else "unit"
        units = {source.unit or source.member for source in sources.values()}
        self.unit = units.pop() if len(units) == 1 else "unit"
        first, *others = (source.preprocessor for source in sources.values())
        self.preprocessor = first if all(other == first for other in others) else None
        self._check_shapes()

    def task(self, split: Split, index: int) -> Task:
        return self.sources[self.source_of(split, index)].task(split, index)

    def source_of(self, split: Split, index: int) -> str:
        """The name of the source of a task."""
        shares = self.shares[split]
        draw = generator(self.seed, split, index).random()
        return list(shares)[int(np.cumsum([*shares.values()])[:-1].searchsorted(draw, side="right"))]

    @property
    def raw(self) -> TaskSource:
        sources = {name: source.raw for name, source in self.sources.items()}
        if all(sources[name] is source for name, source in self.sources.items()):
            return self
        other = copy(self)
        other.sources = sources
        return other

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        of_task = [self.source_of(split, index) for index in indices]
        found, start, named = dict[str, np.ndarray](), 0, self._units_have_names(split)
        for position, name in enumerate(self.shares[split]):
            units = self.sources[name].units(split, indices)
            if units is None:
                return None
            number = units + start if named else units * len(self.shares[split]) + position
            found[name] = np.where(units < 0, -1, number).reshape(len(indices), -1)
            start += len(self.sources[name].unit_names(split))
        width = max(units.shape[1] for units in found.values())
        padded = {k: np.pad(v, ((0, 0), (0, width - v.shape[1])), constant_values=-1) for k, v in found.items()}
        joined = np.stack([padded[name][number] for number, name in enumerate(of_task)])
        return joined[:, 0] if width == 1 else joined

    def unit_names(self, split: Split) -> Sequence[str]:
        if not self._units_have_names(split):
            return []
        return [f"{name}: {unit}" for name in self.shares[split] for unit in self.sources[name].unit_names(split)]

    def _units_have_names(self, split: Split) -> bool:
        return all(len(self.sources[name].unit_names(split)) for name in self.shares[split])

    def classes_of(self, split: Split, indices: Sequence[int]) -> list[list[str]] | None:
        of_task = [self.source_of(split, index) for index in indices]
        found = list[list[str]]([] for _ in indices)
        for name in dict.fromkeys(of_task):
            positions = [position for position, source in enumerate(of_task) if source == name]
            names = self.sources[name].classes_of(split, [indices[position] for position in positions])
            if names is None:
                return None
            prefix = f"{name}: " if self.objective.task_specific_classes else ""
            for position, of_one in zip(positions, names):
                found[position] = [prefix + each for each in of_one]
        return found

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The rows in the task's own source, see `source_of`."""
        return self.sources[self.source_of(split, index)].example_rows(split, index)

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        positions: dict[str, list[int]] = {}
        for position, index in enumerate(indices):
            positions.setdefault(self.source_of(split, index), []).append(position)
        stacks = [self.sources[name].stack(split, [indices[p] for p in where]) for name, where in positions.items()]
        order = torch.tensor([position for where in positions.values() for position in where]).argsort()
        try:
            return tree_map(lambda *leaves: torch.cat(leaves)[order], *stacks)
        except RuntimeError as error:
            raise UnequalShapes(f"tasks of different sources must have equal shapes to be stacked ({error})") from error

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """Examples of all training sources in proportion to their shares; task-specific classes are concatenated."""
        parts = [
            self.sources[name].pretraining_batch(step, max(1, round(size * share)))
            for name, share in self.shares["train"].items()
        ]
        if self.objective.task_specific_classes:
            widths = [part.targets.shape[1] for part in parts]
            for number, part in enumerate(parts):
                around = sum(widths[:number]), sum(widths[number + 1 :])
                parts[number] = part._replace(targets=torch.nn.functional.pad(part.targets, around))
        return Batch(*tree_map(lambda *leaves: torch.cat(leaves), *map(tuple, parts)))

    @property
    def training_settings(self) -> dict[str, Any]:
        """Those that all training sources have; one that differs between them is a list of their values."""
        first, *others = (self.sources[name].training_settings for name in self.shares["train"])
        shared = {name: [each[name] for each in (first, *others)] for name in first if all(name in o for o in others)}
        return {name: of[0] if all(each == of[0] for each in of) else of for name, of in shared.items()}

    def with_training(self, **settings: Any) -> Mixture:
        other = copy(self)
        changed = {name: self.sources[name].with_training(**settings) for name in self.shares["train"]}
        other.sources = self.sources | changed
        return other

    def with_shots(self, shots: int) -> Mixture:
        other = copy(self)
        other.sources = {name: source.with_shots(shots) for name, source in self.sources.items()}
        other._check_shapes()
        return other

    def describe(self) -> dict[str, Any]:
        described = {name: source.describe() for name, source in self.sources.items()}
        first = next(iter(described.values()))
        shared = [key for key in ("ways", "shots", "queries", "train_queries", "encoder") if key in first]
        share = {split: {name: round(value, 4) for name, value in of.items()} for split, of in self.shares.items()}
        return {
            "source": f"mixture of {', '.join(described)}",
            **{key: first[key] for key in shared if all(about.get(key) == first[key] for about in described.values())},
            "seed": self.seed,
            "share": share,
            "sources": described,
        }

    def _check_shapes(self) -> None:
        for split in SPLITS:
            (first, expected), *others = (
                (name, _shapes(self.sources[name].task(split, 0))) for name in self.shares[split]
            )
            for name, shapes in others:
                if shapes != expected:
                    raise ValueError(
                        f"the {split} tasks of {first!r} are {expected}, those of {name!r} are {shapes}; give both the "
                        "same ways, shots, queries and size of examples"
                    )


def _shares(
    split: Split, sources: Mapping[str, TaskSource], weights: Mapping[str, float], heldout: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The probability of each source in a split, without those of probability 0."""
    held = {name for names in heldout.values() for name in names}
    names = [name for name in sources if name in heldout[split]] if split in heldout else []
    names = names or [name for name in sources if name not in held]
    total = sum(weights.get(name, 1.0) for name in names)
    if not total:
        raise ValueError(f"no source of the mixture is left for {split}: all are held out, or have weight 0")
    return {name: weights.get(name, 1.0) / total for name in names if weights.get(name, 1.0)}


def _shapes(task: Task) -> str:
    """The shapes of inputs and targets of a task, for messages."""
    return ", ".join(
        f"{part} {field} {' + '.join(str(tuple(leaf.shape)) for leaf in tree_leaves(getattr(batch, field)))}"
        for part, batch in zip(Task._fields, task)
        for field in ("inputs", "targets")
    )
