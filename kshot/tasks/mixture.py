"""Several sources as one: tasks of several domains at once, or domains that are never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch

from kshot.tasks.source import TaskSource, generator
from kshot.types import SPLITS, Batch, Split, Task, tree_leaves, tree_map


class Mixture(TaskSource):
    r"""Each task comes from one of several sources, drawn by their weights.

    Task i of a split is task i of the same split of source s, where $s \sim w_s / \sum w$ is drawn anew for each task.
    A source that is held out for a split gives its tasks there and nowhere else, and the split has no others: held out
    for test, it is a domain that nothing was trained or chosen on.

    Args:
        sources: name to source. Their objective is the same, and so are the shapes of their tasks.
        weights: name to weight, 1 by default; 0 or more.
        heldout: "val" and "test" to the names of the sources that are held out for them.
        seed: names the sequence of sources; the sources keep their own seeds.

    Attributes:
        sources: name to source.

    Raises:
        ValueError: fewer than two sources, a name or weight that fits none, nothing left to train on, sources whose
            objectives or shapes differ.

    Example:
        >>> from kshot.sources.functions import sinusoids
        >>> both = mixture({"dense": sinusoids(shots=10), "other": sinusoids(shots=10, seed=1)}, weights={"dense": 3})
        >>> both.describe()["share"]
        {'train': {'dense': 0.75, 'other': 0.25}, ...}

    References:
        Triantafillou et al.: Meta-Dataset, ICLR 2020, arXiv:1903.03096, section 3: sources that are tested on only.
    """

    def __init__(
        self,
        sources: Mapping[str, TaskSource],
        *,
        weights: Mapping[str, float] | None = None,
        heldout: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> None:
        if len(sources) < 2:
            raise ValueError(f"a mixture needs at least two sources, got {', '.join(sources) or 'none'}")
        weights, heldout = weights or {}, heldout or {}
        for name in [*weights, *(name for held in heldout.values() for name in held)]:
            if name not in sources:
                raise ValueError(f"the mixture has no source {name!r}; it has {', '.join(sources)}")
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {name!r} must be 0 or more, got {weight}")
        for part, held in heldout.items():
            if part not in ("val", "test") or isinstance(held, str) or not held:
                raise ValueError(f"heldout takes val and test, each a list of names of sources; got {part}: {held!r}")
        self.sources, self.seed = dict(sources), seed
        self.objective = next(iter(self.sources.values())).objective
        for name, source in self.sources.items():
            if source.objective != self.objective:
                raise ValueError(f"{name!r} asks something else than {next(iter(sources))!r}: their objectives differ")
        first, *others = (source.preprocessor for source in self.sources.values())
        self.preprocessor = first if all(other == first for other in others) else None
        self.shares = {split: self._shares(split, weights, heldout) for split in SPLITS}
        for split in SPLITS:
            self._check_shapes(split)

    def task(self, split: Split, index: int) -> Task:
        return self.sources[self.source_of(split, index)].task(split, index)

    def source_of(self, split: Split, index: int) -> str:
        """The name of the source that a task comes from."""
        shares = self.shares[split]
        place = generator(self.seed, split, index).random()
        return list(shares)[int(np.cumsum([*shares.values()])[:-1].searchsorted(place, side="right"))]

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        places: dict[str, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(self.source_of(split, index), []).append(place)
        stacks = [self.sources[name].stack(split, [indices[place] for place in own]) for name, own in places.items()]
        order = torch.tensor([place for own in places.values() for place in own]).argsort()
        return tree_map(lambda *leaves: torch.cat(leaves)[order], *stacks)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """Training examples of all training sources by their shares; classes of one's own stand side by side."""
        shares = {name: share for name, share in self.shares["train"].items() if share}
        parts = [
            self.sources[name].pretraining_batch(step, max(1, round(size * share))) for name, share in shares.items()
        ]
        if self.objective.task_specific_classes:
            widths = [part.targets.shape[1] for part in parts]
            for number, part in enumerate(parts):
                around = sum(widths[:number]), sum(widths[number + 1 :])
                parts[number] = part._replace(targets=torch.nn.functional.pad(part.targets, around))
        return Batch(*tree_map(lambda *leaves: torch.cat(leaves), *map(tuple, parts)))

    def with_shots(self, shots: int) -> Mixture:
        other = copy(self)
        other.sources = {name: source.with_shots(shots) for name, source in self.sources.items()}
        for split in SPLITS:
            other._check_shapes(split)
        return other

    def describe(self) -> dict[str, Any]:
        each = {name: source.describe() for name, source in self.sources.items()}
        first = next(iter(each.values()))
        same = [key for key in ("ways", "shots", "queries", "train_queries") if key in first]
        same = [key for key in same if all(about.get(key) == first[key] for about in each.values())]
        return {
            "source": f"mixture of {', '.join(each)}",
            **{key: first[key] for key in same},
            "seed": self.seed,
            "share": {
                split: {name: round(share, 4) for name, share in own.items()} for split, own in self.shares.items()
            },
            "sources": each,
        }

    def _shares(
        self, split: Split, weights: Mapping[str, float], heldout: Mapping[str, Sequence[str]]
    ) -> dict[str, float]:
        """The share of each source that has tasks in a split."""
        held = {name for names in heldout.values() for name in names}
        names = [name for name in self.sources if name in heldout[split]] if split in heldout else []
        names = names or [name for name in self.sources if name not in held]
        total = sum(weights.get(name, 1.0) for name in names)
        if not total:
            raise ValueError(f"no source of the mixture is left for {split}: all are held out, or have weight 0")
        return {name: weights.get(name, 1.0) / total for name in names if weights.get(name, 1.0)}

    def _check_shapes(self, split: Split) -> None:
        first = None
        for name in self.shares[split]:
            shapes = _shapes(self.sources[name].task(split, 0))
            first = first or (name, shapes)
            if shapes != first[1]:
                raise ValueError(
                    f"the {split} tasks of {first[0]!r} are {first[1]}, those of {name!r} are {shapes}; give both the "
                    "same ways, shots, queries and size of examples"
                )


def _shapes(task: Task) -> str:
    """The shapes of a task's inputs and targets, in words."""
    return ", ".join(
        f"{part} {field} {' + '.join(str(tuple(leaf.shape)) for leaf in tree_leaves(getattr(batch, field)))}"
        for part, batch in zip(Task._fields, task)
        for field in ("inputs", "targets")
    )


mixture = Mixture  # sources are made by lower-case names throughout
