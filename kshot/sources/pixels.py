"""Image completion: a task is an image of which a few pixels are known.

Shape legend: T tasks, S support and Q query pixels, H height, W width, C channels, F frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveInt, Size
from kshot.argument_checks import check_arguments
from kshot.sources.glyphs import glyphs
from kshot.sources.omniglot import omniglot
from kshot.supplied import Seed
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.sampling import Range, by_split
from kshot.tasks.source import StackedSource, generator
from kshot.types import Batch, Split, Task

KNOWN = {"glyphs": glyphs, "omniglot": omniglot}


@check_arguments
def pixels(
    of: Literal["glyphs", "omniglot"] | ClassTasks = "glyphs",
    *,
    shots: Size = (10, 200),
    queries: PositiveInt = 200,
    train_queries: PositiveInt | None = None,
    frequencies: NonNegativeInt = 0,
    seed: Seed = 0,
) -> Pixels:
    r"""Complete an image from a few of its pixels: regression from coordinates to intensities.

    A task is a random image of a random class; no class, and so no character, occurs in two splits. Support and query
    are disjoint random pixels of the image. Inputs (S, 2 + 4F) and (Q, 2 + 4F) are coordinates and Fourier features,

    $$ (u, v) \in [-1, 1]^2, \quad \text{inputs} = \bigl(u, v,
       \{\sin, \cos\}(2^f \pi u), \{\sin, \cos\}(2^f \pi v)\bigr)_{f = 0 \dots F - 1}, $$

    and targets (S, C) and (Q, C) are intensities in 0 … 1.

    Args:
        of: the images: "glyphs", "omniglot", or a source of classes of images.
        shots: number of support pixels, an int or (low, high), drawn for each task; smaller sets are padded with rows
            of weight 0.
        queries, train_queries: number of query pixels; the latter, `queries` by default, in training tasks.
        frequencies: F, at least 0.
        seed: random seed of task sampling.

    Raises:
        ValueError: examples that are no images, or more pixels than an image has.

    Example:
        >>> source = pixels("glyphs", shots=20, queries=100)
        >>> task = source.task("test", 0)
        >>> task.support.inputs.shape, task.query.targets.shape, source.image("test", 0).shape
        (torch.Size([20, 2]), torch.Size([100, 1]), torch.Size([1, 28, 28]))

    References:
        Garnelo et al.: Conditional Neural Processes, ICML 2018, arXiv:1807.01613, section 4.2. Fourier features: Tancik
        et al.: Fourier Features Let Networks Learn High Frequency Functions, NeurIPS 2020, arXiv:2006.10739.
    """
    images = KNOWN[of](queries=1) if isinstance(of, str) else of
    sizes = {split: size.high for split, size in by_split(queries, train_queries, "queries").items()}
    return Pixels(images, Range.of(shots, "shots", 1), sizes, frequencies, seed)


@dataclass(eq=False)
class Pixels(StackedSource):
    """Tasks of `pixels`; `size` is (H, W), `positions` (H W, 2 + 4F) the inputs of all pixels in row-major order."""

    of: ClassTasks
    shots: Range
    queries: dict[Split, int]
    frequencies: int
    seed: int
    objective = objectives.gaussian
    unit = "class"
    copies_are_errors = False  # two images may have a pixel of one value at one place

    def __post_init__(self) -> None:
        shape = self.of.examples.take(np.array([0])).shape[1:]
        if len(shape) != 3:
            raise ValueError(f"{self.of.name} gives examples {tuple(shape)}, no images (channels, height, width)")
        self.size = height, width = shape[1], shape[2]
        needed = self.shots.high + max(self.queries.values())
        if needed > (count := height * width):
            raise ValueError(f"an image of {height}×{width} has {count} pixels; shots and queries ask for {needed}")
        self._rows = {split: list(self.of.classes(split).values()) for split in self.of.class_names}
        self.positions = _positions(self.size, self.frequencies)

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        generators = [generator(self.seed, split, index) for index in indices]
        rows, shots = zip(*(self._draw(random, split) for random in generators))
        S, Q, num_pixels = self.shots.high, self.queries[split], len(self.positions)
        chosen = torch.from_numpy(np.stack([random.permutation(num_pixels)[: S + Q] for random in generators]))
        images = self.of.examples.take(np.array(rows)).flatten(2).transpose(1, 2)  # (T, H W, C)
        targets = images.gather(1, chosen[:, :, None].expand(-1, -1, images.shape[2]))
        inputs = self.positions[chosen]
        weight = (torch.arange(S) < torch.tensor(shots)[:, None]).to(targets.dtype)
        query = Batch(inputs[:, S:], targets[:, S:], torch.ones(len(indices), Q))
        return Task(Batch(inputs[:, :S], targets[:, :S], weight), query)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The class of the image of each task."""
        first = np.array([generator(self.seed, split, index).random() for index in indices])
        return (first * len(self._rows[split])).astype(np.int64)

    def unit_names(self, split: Split) -> Sequence[str]:
        return self.of.class_names[split]

    def image(self, split: Split, index: int) -> Tensor:
        """The complete image of a task, (C, H, W)."""
        row, _ = self._draw(generator(self.seed, split, index), split)
        return self.of.examples.take(np.array([row]))[0]

    def with_shots(self, shots: int) -> Pixels:
        return replace(self, shots=Range.of(shots, "shots", 1))

    def describe(self) -> dict[str, Any]:
        about = {"source": f"pixels of {self.of.name}", "shots": self.shots.plain(), "queries": self.queries["test"]}
        about |= {"train_queries": self.queries["train"], "frequencies": self.frequencies, "seed": self.seed}
        return about | {"classes": {split: len(classes) for split, classes in self._rows.items()}}

    def _draw(self, random: np.random.Generator, split: Split) -> tuple[int, int]:
        """The row of the image of a task and its number of shots; the first draws of its generator."""
        if split not in self._rows:
            raise ValueError(f"{self.of.name} has no {split!r} split, only {', '.join(self._rows)}")
        of_class, of_image, of_shots = random.random(3)
        images = self._rows[split][int(of_class * len(self._rows[split]))]
        return int(images[int(of_image * len(images))]), int(self.shots.at(of_shots))


def _positions(size: tuple[int, int], frequencies: int) -> Tensor:
    """The inputs (H W, 2 + 4F) of all pixels of an image."""
    axes = [torch.linspace(-1, 1, count) for count in size]
    uv = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
    waves = [wave(2.0**f * torch.pi * uv) for f in range(frequencies) for wave in (torch.sin, torch.cos)]
    return torch.cat([uv, *waves], 1)
