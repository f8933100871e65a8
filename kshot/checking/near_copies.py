r"""Near copies: examples that differ by noise, resizing, re-encoding, case, spacing or punctuation only.

An example has a *sketch*, a short vector in which near copies are near; `nearest` finds them by a k-d tree.

Shape legend: n and m examples, F features, K entries of a sketch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.types import Tree, tree_leaves

PICTURE_RADIUS = 0.1
"""Largest distance of the sketches of two pictures that are near copies: 1 % of the contrast's energy.

On the 48,000 photos of CIFAR-FS, 46 pairs are nearer than this, 19 of them bitwise equal; all but one show one photo
under two labels. On 32,460 drawings of Omniglot no pair is.
"""

ROW_RADIUS = 1e-4
"""Largest distance of two rows that are near copies, in each feature, relative to the feature's spread."""

_WIDER, _CROWD = 10.0, 6  # rows have neighbours by chance if so many are within a wider radius
_SIDE, _LOWEST = 16, 8  # pictures are averaged to 16 × 16, and described by 8 × 8 cosine frequencies
_BRIGHTNESS = 4.0  # weight of the mean brightness, in 0 … 1: a difference of 0.02 is one radius
_LEAST_CONTRAST = 0.02  # root mean square of what a picture needs to be compared, in 0 … 1
_MOST = 16  # entries of the sketch of a row, and entries of those of pictures that are searched first
_NEIGHBOURS = 8  # pictures near in those entries whose whole sketches are compared


def normalise(text: str) -> str:
    r"""A text without what near copies differ in: case, Unicode form, spacing, and punctuation that is not in a number.

    A text of nothing but punctuation is kept.

    Example:
        >>> normalise("  Where IS\u00a0my card?"), normalise("pay 3.50 €!"), normalise("?!")
        ('where is my card', 'pay 3.50 €', '?!')
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    words = " ".join(re.sub(r"[^\w\s€$£¥%+<>=^~|°]|_", _number_signs, plain).split())
    return words or plain


def _number_signs(match: re.Match[str]) -> str:
    """A sign that belongs to a number, such as the dot of 3.5 or the minus of -2; else, no text."""
    after = match.string[match.end() : match.end() + 1]
    return match[0] if after.isdigit() and match[0] in ".,-:/" else " " if match[0] in "-/_:" else ""


class Scale(NamedTuple):
    """How rows of features become sketches: centre and spread of each feature (F,), and directions (F, K), if any."""

    centre: np.ndarray
    spread: np.ndarray
    directions: np.ndarray | None


class Sketcher:
    r"""Computes sketches of examples of one kind: pictures, rows of numbers, or neither.

    Pictures, (n, 1 or 3, H, W) of at least 8 × 8, are described by their low frequencies (a perceptual hash that is not
    rounded to bits): averaged to 16 × 16, transformed by a cosine transform $c$ of which 8 × 8 frequencies of each
    channel are kept, and normalised by their contrast, next to the mean brightness $b$,

    $$ s = \Bigl(\frac{c}{\lVert c \rVert}, 4 b\Bigr). $$

    Resizing and re-encoding change these little; pictures of almost no contrast have no sketch. Rows are divided by
    the spread of each feature, the distance of its 10th and 90th percentiles; of more than 16 features, 16 random
    projections are kept, which preserve distances (Johnson, Lindenstrauss).

    Args:
        inputs: some examples, leaves (m, ...), which tell the kind of data and the spread of features.

    Attributes:
        kind: "pictures", "rows", or "" for data without near copies, such as symbols.

    Example:
        >>> rows = torch.randn(100, 5, generator=torch.manual_seed(0))
        >>> sketcher = Sketcher(rows)
        >>> copies = nearest(sketcher(rows[:3] + 1e-6), sketcher(rows), sketcher.radius)
        >>> sketcher.kind, copies.tolist()
        ('rows', [0, 1, 2])
    """

    def __init__(self, inputs: Tree) -> None:
        leaves = tree_leaves(inputs)
        self.kind = _kind(leaves)
        self.radius = PICTURE_RADIUS if self.kind == "pictures" else ROW_RADIUS
        self._scale = _scale_of(_flat(leaves)) if self.kind == "rows" else None
        low, high = (float(value) for value in leaves[0].aminmax()) if self.kind == "pictures" else (0.0, 1.0)
        self._range = 1.0 if low >= 0 and high <= 1 else high - low

    def __call__(self, inputs: Tree) -> np.ndarray:
        """The sketches (n, K) of examples; NaN for those that have none, K = 0 for data without near copies."""
        leaves = tree_leaves(inputs)
        if self.kind == "pictures" and leaves[0].ndim == 4:
            return picture_sketches(leaves[0] / self._range)
        if self._scale is not None:
            rows = _flat(leaves)
            if rows.shape[1] == len(self._scale.centre):
                scaled = (rows - self._scale.centre) / self._scale.spread
                return scaled if self._scale.directions is None else scaled @ self._scale.directions
        return np.empty((len(leaves[0]), 0))


def _kind(leaves: Sequence[Tensor]) -> str:
    first = leaves[0]
    if not all(leaf.is_floating_point() for leaf in leaves):
        return ""
    if len(leaves) == 1 and first.ndim == 4 and first.shape[1] in (1, 3) and min(first.shape[2:]) >= _LOWEST:
        return "pictures"
    return "rows"


def _flat(leaves: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([leaf.detach().cpu().double().reshape(len(leaf), -1).numpy() for leaf in leaves], 1)


def _scale_of(rows: np.ndarray) -> Scale:
    rows = np.where(np.isfinite(rows), rows, 0.0)
    low, centre, high = np.percentile(rows, (10, 50, 90), axis=0)
    spread = high - low
    size = np.where(np.abs(centre) > 1e-12, np.abs(centre), 1.0)
    spread = np.where(spread > 1e-9 * size, spread, rows.std(0))  # such as a feature that is mostly 0
    spread = np.where(spread > 1e-9 * size, spread, size)
    count = rows.shape[1]
    directions = None
    if count > _MOST:
        directions = np.random.default_rng(count).normal(size=(count, _MOST)) / np.sqrt(_MOST)
    return Scale(centre, spread, directions)


def picture_sketches(images: Tensor) -> np.ndarray:
    """The sketches (n, K) of pictures (n, C, H, W) with values 0 … 1, or other values of any range."""
    pixels = images.detach().cpu().float()
    low = torch.nn.functional.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
    cosines = _cosines()
    frequencies = torch.einsum("ui,ncij,vj->ncuv", cosines, low, cosines) / _SIDE  # root mean square by Parseval
    brightness = frequencies[:, :, 0, 0].mean(1)
    frequencies[:, :, 0, 0] -= brightness[:, None]  # what remains is the tint of each channel
    contrast = frequencies.flatten(1) / pixels.shape[1] ** 0.5
    norm = contrast.norm(dim=1, keepdim=True)
    sketches = torch.cat([contrast / norm.clamp_min(1e-12), _BRIGHTNESS * brightness[:, None]], 1)
    sketches[norm[:, 0] < _LEAST_CONTRAST] = torch.nan
    return sketches.numpy()


@cache
def _cosines() -> Tensor:
    """The lowest rows (8, 16) of the orthonormal cosine transform."""
    from scipy.fft import dct

    return torch.from_numpy(dct(np.eye(_SIDE), axis=0, norm="ortho")[:_LOWEST]).float()


def nearest(sketches: np.ndarray, others: np.ndarray | None, radius: float) -> np.ndarray:
    """For each example, the number of its near copy among `others`, or among the examples themselves if None; else -1.

    Rows may be near by chance, as two numbers out of many are. Then ten times the radius contains more neighbours, which
    those of near copies do not have; where it does for most, no near copies are reported.

    Args:
        sketches, others: (n, K) and (m, K) of one `Sketcher`.
        radius: `Sketcher.radius`.

    Returns:
        Numbers (n,), -1 for examples without a near copy.
    """
    found = np.full(len(sketches), -1)
    known = sketches if others is None else others
    mine, yours = (np.flatnonzero(np.isfinite(each).all(1)) for each in (sketches, known))
    width = sketches.shape[1] if sketches.ndim == 2 else 0
    if not width or known.shape[1:] != sketches.shape[1:] or not len(mine) or len(yours) < (2 if others is None else 1):
        return found
    pairs = _picture_pairs if radius == PICTURE_RADIUS else _row_pairs
    near, index = pairs(sketches[mine], known[yours], others is None, radius)
    found[mine[near]] = yours[index[near]]
    return found


def _row_pairs(rows: np.ndarray, known: np.ndarray, same: bool, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row has a near copy, and its number; `same` if both are the same rows."""
    from scipy.spatial import cKDTree

    ranks = [1, 2, _CROWD]
    distance, index = cKDTree(known).query(rows, k=ranks, distance_upper_bound=_WIDER * radius, p=np.inf)
    crowded = np.isfinite(distance[:, 2])
    distance, index = _without_itself(distance, index) if same else (distance[:, 0], index[:, 0])
    near = distance <= radius
    by_chance = (np.isfinite(distance) & ~near).sum() > near.sum() or (near & crowded).sum() > near.sum() / 2
    return near & (not by_chance), index


def _picture_pairs(rows: np.ndarray, known: np.ndarray, same: bool, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The same for pictures, by the entries that differ most, and then by all of them."""
    from scipy.spatial import cKDTree

    first = np.argsort(-known.var(0))[:_MOST]
    ranks = list(range(1, _NEIGHBOURS + 1))
    distance, index = cKDTree(known[:, first]).query(rows[:, first], k=ranks, distance_upper_bound=radius)
    for rank in range(_NEIGHBOURS):
        some = np.flatnonzero(np.isfinite(distance[:, rank]))
        distance[some, rank] = np.linalg.norm(rows[some] - known[index[some, rank]], axis=1)
    if same:
        distance[index == np.arange(len(rows))[:, None]] = np.inf
    best = distance.argmin(1)[:, None]
    distance, index = (np.take_along_axis(each, best, 1)[:, 0] for each in (distance, index))
    return distance <= radius, index


def _without_itself(distance: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance and number of the nearest other row, of the two nearest rows (n, 2)."""
    itself = index[:, 0] == np.arange(len(index))
    distance = np.where(itself, distance[:, 1], distance[:, 0])
    return distance, np.where(itself, index[:, 1], index[:, 0])
