"""Image completion: a task is one image, of which a few pixels are known.

Shape legend: T tasks, S support and Q query pixels, H height, W width, C channels, D numbers of a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveInt
from kshot.sources.glyphs import glyphs
from kshot.sources.omniglot import omniglot
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.sampling import Range, Size
from kshot.tasks.source import TaskSource, generator
from kshot.types import SPLITS, Batch, Split, Task, tree_map

KNOWN = {"glyphs": glyphs, "omniglot": omniglot}


class Pixels(TaskSource):
    r"""Complete an image from a few of its pixels: a function from a place to an intensity, as for any regression.

    A task is an image of one class, drawn like the class; no class, and so no character, stands in two splits. The
    support is pixels at random, the query others of the same image. A place is its coordinates and, where asked for,
    waves of rising frequency along both:

    $$ (u, v) \in [-1, 1]^2, \quad \text{inputs} = \bigl(u, v,
       \{\sin, \cos\}(2^f \pi u), \{\sin, \cos\}(2^f \pi v)\bigr)_{f = 0 \dots F - 1} $$

    Inputs are (S, 2 + 4F) and (Q, 2 + 4F), targets (S, C) and (Q, C), intensities in 0 … 1.

    Args:
        of: the images: "glyphs", "omniglot", or a source of classes of images.
        shots: support pixels, an int or a range that is drawn anew for each task; a smaller set ends in rows of
            weight 0.
        queries: query pixels.
        train_queries: the same in training tasks, `queries` by default.
        frequencies: F, at least 0.
        seed: names the sequence of tasks.

    Attributes:
        size: (H, W).
        places: the inputs of all pixels, (H W, 2 + 4F), row by row.

    Raises:
        ValueError: other images, more pixels than they have, frequencies below 0.

    Example:
        >>> source = pixels("glyphs", shots=20, queries=100)
        >>> task = source.task("test", 0)
        >>> task.support.inputs.shape, task.query.targets.shape, source.image("test", 0).shape
        (torch.Size([20, 2]), torch.Size([100, 1]), torch.Size([1, 28, 28]))

    References:
        Garnelo et al.: Conditional Neural Processes, ICML 2018, arXiv:1807.01613, section 4.2. The waves: Tancik et
        al.: Fourier Features Let Networks Learn High Frequency Functions, NeurIPS 2020, arXiv:2006.10739.
    """

    objective = objectives.gaussian

    def __init__(
        self,
        of: Literal["glyphs", "omniglot"] | ClassTasks = "glyphs",
        *,
        shots: Size = (10, 200),
        queries: PositiveInt = 200,
        train_queries: PositiveInt | None = None,
        frequencies: NonNegativeInt = 0,
        seed: int = 0,
    ) -> None:
        if isinstance(of, str) and of not in KNOWN:
            raise ValueError(f"of must be {' or '.join(KNOWN)}, or a source of classes of images, got {of!r}")
        if frequencies < 0:
            raise ValueError(f"frequencies must be at least 0, got {frequencies}")
        self.of = KNOWN[of](queries=1) if isinstance(of, str) else of
        self.shots, self.seed, self.frequencies = Range.of(shots, "shots", 1), seed, frequencies
        asked = Range.of(queries, "queries", 1).high
        train = asked if train_queries is None else Range.of(train_queries, "train_queries", 1).high
        self.queries = dict.fromkeys(SPLITS, asked) | {"train": train}
        shape = self.of.examples.take(np.array([0])).shape[1:]
        if len(shape) != 3:
            raise ValueError(f"{self.of.name} gives examples {tuple(shape)}, no images (channels, height, width)")
        self.size = (shape[1], shape[2])
        self._check_pixels()
        self._rows = {
            split: list(self.of.classes(split).values()) for split in SPLITS if split in self.of.class_names
        }  # fmt: skip
        self.places = _places(self.size, frequencies)

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        random = [generator(self.seed, split, index) for index in indices]
        rows, shots = zip(*(self._drawn(each, split) for each in random))
        most, asked = self.shots.high, self.queries[split]
        chosen = torch.from_numpy(
            np.stack([each.permutation(self.size[0] * self.size[1])[: most + asked] for each in random])
        )
        images = self.of.examples.take(np.array(rows)).flatten(2).transpose(1, 2)  # (T, H W, C)
        targets = images.gather(1, chosen[:, :, None].expand(-1, -1, images.shape[2]))
        inputs = self.places[chosen]
        weight = (torch.arange(most) < torch.tensor(shots)[:, None]).to(targets.dtype)
        return Task(
            Batch(inputs[:, :most], targets[:, :most], weight),
            Batch(inputs[:, most:], targets[:, most:], torch.ones(len(indices), asked)),
        )

    def image(self, split: Split, index: int) -> Tensor:
        """The whole image of a task, (C, H, W)."""
        row, _ = self._drawn(generator(self.seed, split, index), split)
        return self.of.examples.take(np.array([row]))[0]

    def with_shots(self, shots: int) -> Pixels:
        other = copy(self)
        other.shots = Range.of(shots, "shots", 1)
        other._check_pixels()
        return other

    def describe(self) -> dict[str, Any]:
        return {
            "source": f"pixels of {self.of.name}",
            "shots": self.shots.plain(),
            "queries": self.queries["test"],
            "train_queries": self.queries["train"],
            "frequencies": self.frequencies,
            "seed": self.seed,
            "classes": {split: len(own) for split, own in self._rows.items()},
        }

    def _check_pixels(self) -> None:
        height, width = self.size
        needed = self.shots.high + max(self.queries.values())
        if needed > height * width:
            raise ValueError(
                f"an image of {height}×{width} has {height * width} pixels; shots and queries ask for {needed}"
            )

    def _drawn(self, random: np.random.Generator, split: Split) -> tuple[int, int]:
        """The row of a task's image, and how many of its pixels are known; the first that a task draws."""
        if split not in self._rows:
            raise ValueError(f"{self.of.name} has no {split!r} split, only {', '.join(self._rows)}")
        of_class, of_image, of_shots = random.random(3)
        own = self._rows[split][int(of_class * len(self._rows[split]))]
        return int(own[int(of_image * len(own))]), int(self.shots.at(of_shots))


pixels = Pixels  # sources are made by lower-case names throughout


def _places(size: tuple[int, int], frequencies: int) -> Tensor:
    """The inputs (H W, 2 + 4F) of all pixels of an image."""
    axes = [torch.linspace(-1, 1, count) for count in size]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
    waves = [wave(2.0**f * torch.pi * at) for f in range(frequencies) for wave in (torch.sin, torch.cos)]
    return torch.cat([at, *waves], 1)
