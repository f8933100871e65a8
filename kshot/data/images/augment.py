"""Random variation of the images of training tasks, as a function of the images and a generator alone.

Shape legend: n images, C channels, H rows and W columns of pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.annotations import Degrees, Fraction, FractionBelowOne, NonNegativeInt, OptionsOf
from kshot.argument_checks import check_values
from kshot.data.dataset import Dataset


@dataclass(frozen=True)
class Augment:
    r"""Random flips, shifts, warps and changes of colour, independent for each image.

    The warp takes the pixel at $u$, from the centre of the image, from $A u$ by bilinear interpolation, with
    $\alpha, a, b, h$ uniform in $\pm$ `rotate`, `scale`, `scale`, `shear`:

    $$ A = \begin{pmatrix} \cos\alpha & -\sin\alpha \\ \sin\alpha & \cos\alpha \end{pmatrix}
           \begin{pmatrix} 1 + a & h \\ 0 & 1 + b \end{pmatrix} $$

    With $b, c, s \sim U[1 - j, 1 + j]$ for a jitter of $j$, the grey image $g(x)$ (ITU-R 601) and its mean $\mu$,

    $$ x \mapsto b x, \quad x \mapsto c x + (1 - c) \mu(g(x)), \quad x \mapsto s x + (1 - s) g(x), $$

    in this order, each clipped to 0 … 1.

    Attributes:
        flip: flip left and right with probability one half.
        shift: largest shift in pixels, vertical and horizontal; edges are repeated.
        rotate: largest rotation in degrees.
        scale: width and height are divided by 1 ± up to this, below 1.
        shear, jitter: largest slant, as a fraction of the height; largest deviation of the colour factors from 1.

    Raises:
        ValueError: an option out of bounds.

    Example:
        >>> image = torch.arange(4.0).reshape(1, 1, 1, 4)
        >>> Augment(flip=True)(image, np.random.default_rng(0)).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
        >>> Augment(flip=True)(image, np.random.default_rng(2)).flatten().tolist()
        [3.0, 2.0, 1.0, 0.0]
    """

    flip: bool = False
    shift: NonNegativeInt = 0
    rotate: Degrees = 0.0
    scale: FractionBelowOne = 0.0
    shear: Fraction = 0.0
    jitter: Fraction = 0.0

    def __post_init__(self) -> None:
        check_values(vars(self), get_type_hints(Augment, include_extras=True))

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Vary float32 images (n, C, H, W) in 0 … 1."""
        if self.flip or self.shift:
            images = self._flip_and_shift(images, random)
        if self.rotate or self.scale or self.shear:
            images = self._warp(images, random)
        return self._recolour(images, random) if self.jitter else images

    def _flip_and_shift(self, images: Tensor, random: np.random.Generator) -> Tensor:
        n, _, height, width = images.shape
        flipped = random.random(n) < 0.5
        down, right = random.integers(-self.shift, self.shift + 1, (2, n, 1))
        rows = (np.arange(height) - down).clip(0, height - 1)
        columns = (np.arange(width) - right).clip(0, width - 1)
        if self.flip:
            columns = np.where(flipped[:, None], width - 1 - columns, columns)
        index = np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]
        image, row, column = map(torch.from_numpy, index)
        return images[image, :, row, column].movedim(-1, 1).contiguous()

    def _warp(self, images: Tensor, random: np.random.Generator) -> Tensor:
        angle, width, height, slant = random.uniform(-1, 1, (4, len(images)))
        angle = np.deg2rad(self.rotate) * angle
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        one, zeros = np.ones_like(angle), np.zeros((2, len(angle)))
        stretch = np.array([[one + self.scale * width, self.shear * slant], [zeros[0], one + self.scale * height]])
        aspect = images.shape[2] / images.shape[3]  # the grid has both sides from -1 to 1
        matrix = np.einsum("ijn,jkn->nik", rotation, stretch) * [[1, aspect], [1 / aspect, 1]]
        affine = torch.from_numpy(np.concatenate([matrix, zeros.T[:, :, None]], 2).astype(np.float32))
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _recolour(self, images: Tensor, random: np.random.Generator) -> Tensor:
        factors = 1 + self.jitter * (2 * random.random((3, len(images), 1, 1, 1)) - 1)
        brightness, contrast, saturation = torch.from_numpy(factors.astype(np.float32))
        images = (brightness * images).clamp_(0, 1)
        images = torch.lerp(_grey(images).mean((1, 2, 3), keepdim=True), images, contrast).clamp_(0, 1)
        return torch.lerp(_grey(images), images, saturation).clamp_(0, 1)


AugmentOptions = Annotated[Mapping[str, Any], OptionsOf(Augment)]
"""The attributes of `Augment` by name."""


def _grey(images: Tensor) -> Tensor:
    """The brightness (n, 1, H, W) of images."""
    if images.shape[1] != 3:
        return images
    return (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


class _Copies(ABC):
    """Images and transformed copies of them: row $k n + i$ is copy k of image i of n, copy 0 the image itself."""

    num_copies: int

    def __init__(self, examples: Dataset) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return self.num_copies * len(self.examples)

    @property
    def images(self) -> Any:
        """The original images."""
        return getattr(self.examples, "images", None)

    def take(self, rows: np.ndarray) -> Tensor:
        """The images of rows, int64 (...), as float32 (..., C, H, W)."""
        copies, originals = np.divmod(rows, len(self.examples))
        images = self.examples.take(originals)
        for copy in np.unique(copies[copies > 0]).tolist():
            where = torch.from_numpy(copies == copy)
            images[where] = self._transform(images[where], copy)
        return images

    @abstractmethod
    def _transform(self, images: Tensor, copy: int) -> Tensor: ...


class Turned(_Copies):
    """Square images in four rotations: row $t n + i$ is image i of n, rotated counter-clockwise by t quarter turns.

    Example:
        >>> from kshot.data.dataset import ImageDataset
        >>> turned = Turned(ImageDataset(np.array([[[[51, 0], [0, 0]]]], np.uint8)))
        >>> turned.take(np.arange(4)).flatten(1).argmax(1).tolist()
        [0, 2, 3, 1]
    """

    num_copies = 4

    def _transform(self, images: Tensor, copy: int) -> Tensor:
        return images.rot90(copy, (-2, -1))


class Mirrored(_Copies):
    """Images and their mirror images: row n + i is image i of n, left and right exchanged.

    Example:
        >>> from kshot.data.dataset import ImageDataset
        >>> mirrored = Mirrored(ImageDataset(np.array([[[[51, 0], [0, 0]]]], np.uint8)))
        >>> mirrored.take(np.arange(2)).flatten(1).argmax(1).tolist()
        [0, 1]
    """

    num_copies = 2

    def _transform(self, images: Tensor, copy: int) -> Tensor:
        return images.flip(-1)
