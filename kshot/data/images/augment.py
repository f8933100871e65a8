"""Images varied at random, for training tasks; what comes of it depends on the images and the generator alone.

Shape legend: n images, C channels, H rows and W columns of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.annotations import Degrees, Fraction, FractionBelowOne, NonNegativeInt, OptionsOf
from kshot.data.dataset import Dataset


@dataclass(frozen=True)
class Augment:
    r"""Images mirrored, shifted, warped and changed in colour, each on its own.

    The warp takes the pixel at $u$, from the middle of the image, from $A u$ by bilinear interpolation, with
    $\alpha, a, b, h$ uniform in $\pm$ `rotate`, `scale`, `scale`, `shear`:

    $$ A = \begin{pmatrix} \cos\alpha & -\sin\alpha \\ \sin\alpha & \cos\alpha \end{pmatrix}
           \begin{pmatrix} 1 + a & h \\ 0 & 1 + b \end{pmatrix} $$

    With $b, c, s \sim U[1 - j, 1 + j]$ for a jitter of $j$, the image's grey $g(x)$ (ITU-R 601) and its mean $\mu$,

    $$ x \mapsto b x, \quad x \mapsto c x + (1 - c) \mu(g(x)), \quad x \mapsto s x + (1 - s) g(x), $$

    in this order, each cut to 0 … 1.

    Attributes:
        flip: mirror left and right with a chance of one half.
        shift: move by up to so many pixels up or down and left or right, the edge repeated where the image ends.
        rotate: turn by up to so many degrees.
        scale: widths and heights, each on its own, are divided by 1 plus or minus up to this, below 1.
        shear: slant by up to this share of the height.
        jitter: how far brightness, contrast and saturation may go from 1, 0 … 1.

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
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0 pixels, got {self.shift}")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"rotate must be 0 … 180 degrees, got {self.rotate}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale must be at least 0 and below 1, got {self.scale}")
        if not 0 <= self.shear <= 1:
            raise ValueError(f"shear must be 0 … 1, got {self.shear}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be 0 … 1, got {self.jitter}")

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Float32 images (n, C, H, W) in 0 … 1, varied."""
        if self.flip or self.shift:
            images = self._moved(images, random)
        if self.rotate or self.scale or self.shear:
            images = self._warped(images, random)
        return self._recoloured(images, random) if self.jitter else images

    def _moved(self, images: Tensor, random: np.random.Generator) -> Tensor:
        n, _, height, width = images.shape
        mirrored = random.random(n) < 0.5
        down, right = random.integers(-self.shift, self.shift + 1, (2, n, 1))
        rows = (np.arange(height) - down).clip(0, height - 1)
        columns = (np.arange(width) - right).clip(0, width - 1)
        if self.flip:
            columns = np.where(mirrored[:, None], width - 1 - columns, columns)
        at = np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]
        number, row, column = (torch.from_numpy(index) for index in at)
        return images[number, :, row, column].movedim(-1, 1).contiguous()

    def _warped(self, images: Tensor, random: np.random.Generator) -> Tensor:
        angle, wide, high, slant = random.uniform(-1, 1, (4, len(images)))
        angle = np.deg2rad(self.rotate) * angle
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        one, none = np.ones_like(angle), np.zeros((2, len(angle)))
        stretch = np.array([[one + self.scale * wide, self.shear * slant], [none[0], one + self.scale * high]])
        aspect = images.shape[2] / images.shape[3]  # the grid has both sides from -1 to 1
        matrix = np.einsum("ijn,jkn->nik", turn, stretch) * [[1, aspect], [1 / aspect, 1]]
        affine = torch.from_numpy(np.concatenate([matrix, none.T[:, :, None]], 2).astype(np.float32))
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _recoloured(self, images: Tensor, random: np.random.Generator) -> Tensor:
        draws = 1 + self.jitter * (2 * random.random((3, len(images), 1, 1, 1)) - 1)
        brightness, contrast, saturation = torch.from_numpy(draws.astype(np.float32))
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


class Turned:
    """Square images in four quarter turns: row $t n + i$ is image i of n, turned counter-clockwise t times.

    Example:
        >>> from kshot.data.dataset import ImageDataset
        >>> turned = Turned(ImageDataset(np.array([[[[51, 0], [0, 0]]]], np.uint8)))
        >>> turned.take(np.arange(4)).flatten(1).argmax(1).tolist()
        [0, 2, 3, 1]
    """

    def __init__(self, examples: Dataset) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return 4 * len(self.examples)

    @property
    def images(self) -> Any:
        """The images as they are, unturned."""
        return getattr(self.examples, "images", None)

    def take(self, rows: np.ndarray) -> Tensor:
        """The images of rows, int64 (...), as float32 (..., C, H, W)."""
        turns, own = np.divmod(rows, len(self.examples))
        images = self.examples.take(own)
        for turn in np.unique(turns[turns > 0]).tolist():
            which = torch.from_numpy(turns == turn)
            images[which] = images[which].rot90(turn, (-2, -1))
        return images


class Mirrored:
    """Images and their mirror images: row n + i is image i of n, left and right exchanged.

    Example:
        >>> from kshot.data.dataset import ImageDataset
        >>> mirrored = Mirrored(ImageDataset(np.array([[[[51, 0], [0, 0]]]], np.uint8)))
        >>> mirrored.take(np.arange(2)).flatten(1).argmax(1).tolist()
        [0, 1]
    """

    def __init__(self, examples: Dataset) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return 2 * len(self.examples)

    @property
    def images(self) -> Any:
        """The images as they are."""
        return getattr(self.examples, "images", None)

    def take(self, rows: np.ndarray) -> Tensor:
        """The images of rows, int64 (...), as float32 (..., C, H, W)."""
        mirror, own = np.divmod(rows, len(self.examples))
        images = self.examples.take(own)
        which = torch.from_numpy(mirror > 0)
        images[which] = images[which].flip(-1)
        return images
