r"""Near copies: examples that differ by noise, resizing, re-encoding, mirroring, case, spacing or punctuation only.

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

PICTURE_RADIUS = {1: 0.07, 3: 0.13}
"""Largest distance of the sketches of two pictures that are near copies, by the number of channels.

Of the 9,600 photos of the validation classes of CIFAR-FS, 12 pairs are nearer than this, 4 of them mirrored, and 17
more are within 0.16; each shows the same photo, or the same object moments later (`benchmarks/near_copies.py`). Of the
32,460 drawings of Omniglot, no pair is within 0.07.
"""

ROW_RADIUS = 1e-4
"""Largest distance of two rows that are near copies, in each feature, relative to the feature's spread."""

_CROWD = 6  # neighbours within ten times the radius that are a crowd
_CHANCE = 0.0015  # largest probability that as many rows are near by chance
_SIDE, _LOWEST = 16, 8  # pictures are averaged to 16 × 16, and described by 8 × 8 cosine frequencies
_BRIGHTNESS = 4.0  # weight of the mean brightness, in 0 … 1: a difference of 0.02 is one radius
_LEAST_CONTRAST = 0.02  # root mean square, over space, of what a picture needs to be compared, in 0 … 1
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

    Pictures, (n, 1 or 3, H, W) of at least 8 × 8 with values 0 … 1 or 0 … 255, are described by their low frequencies
    (a perceptual hash that is not rounded to bits): averaged to 16 × 16, transformed by a cosine transform $c$ of which
    8 × 8 frequencies of each channel are kept, and normalised by their contrast, next to the mean brightness $b$,

    $$ s = \Bigl(\frac{c}{\lVert c \rVert}, 4 b\Bigr). $$

    Resizing and re-encoding change these little, and mirroring changes the sign of each odd horizontal frequency;
    pictures of nearly one colour have no sketch. Mirrored copies are found of pictures in colour alone: of drawings,
    such as b and d, they are different symbols. Rows are divided by
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
        self.radius = PICTURE_RADIUS[leaves[0].shape[1]] if self.kind == "pictures" else ROW_RADIUS
        self._scale = _scale_of(_flat(leaves)) if self.kind == "rows" else None
        self._range = 255.0 if self.kind == "pictures" and leaves[0].max() > 1 else 1.0

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
    if len(leaves) == 1 and first.ndim == 4 and first.shape[1] in PICTURE_RADIUS and min(first.shape[2:]) >= _LOWEST:
        return "pictures" if first.min() >= 0 and first.max() <= 255 else "rows"
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
    """The sketches (n, K) of pictures (n, C, H, W) with values 0 … 1."""
    pixels = images.detach().cpu().float()
    low = torch.nn.functional.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
    cosines = _cosines()
    frequencies = torch.einsum("ui,ncij,vj->ncuv", cosines, low, cosines) / _SIDE  # root mean square by Parseval
    brightness = frequencies[:, :, 0, 0].mean(1)
    frequencies[:, :, 0, 0] -= brightness[:, None]  # what remains is the tint of each channel
    contrast = frequencies.flatten(1) / pixels.shape[1] ** 0.5
    norm = contrast.norm(dim=1, keepdim=True)
    sketches = torch.cat([contrast / norm.clamp_min(1e-12), _BRIGHTNESS * brightness[:, None]], 1)
    tint = frequencies[:, :, 0, 0].square().sum(1) / pixels.shape[1]
    sketches[norm[:, 0].square() - tint < _LEAST_CONTRAST**2] = torch.nan  # one colour all over is no picture
    return sketches.numpy()


@cache
def _cosines() -> Tensor:
    """The lowest rows (8, 16) of the orthonormal cosine transform."""
    from scipy.fft import dct

    return torch.from_numpy(dct(np.eye(_SIDE), axis=0, norm="ortho")[:_LOWEST]).float()


def mirrored(sketches: np.ndarray) -> np.ndarray:
    """The sketches (n, K) of the mirror images of pictures in colour; entries that follow those are kept."""
    signs = np.ones(sketches.shape[1], sketches.dtype)
    signs[: 3 * _LOWEST**2] = np.tile((-1) ** np.arange(_LOWEST), 3 * _LOWEST)
    return sketches * signs


def nearest(sketches: np.ndarray, others: np.ndarray | None, radius: float) -> np.ndarray:
    """For each example, the number of its near copy among `others`, or among the examples themselves if None; else -1.

    Rows may be near by chance, as two numbers out of many are. How many of them are is extrapolated from the number of
    neighbours within 10, 100 and 1000 times the radius; near copies are only reported if there are more, with a
    probability of 0.15 % of being wrong, and not where rows are so dense that none can be distinguished.

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
    pairs = _row_pairs if radius == ROW_RADIUS else _picture_pairs
    near, index = pairs(sketches[mine], known[yours], others is None, radius)
    found[mine[near]] = yours[index[near]]
    return found


def _row_pairs(rows: np.ndarray, known: np.ndarray, same: bool, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row has a near copy, and its number; `same` if both are the same rows."""
    distance, index, crowded = _nearest_rows(rows, known, same, radius)
    near = distance <= radius
    count = int(near.sum())
    chance = _chance_of(
        count, [float((distance <= radius * 10**power).sum()) - count for power in (1, 2, 3)], len(rows)
    )
    return near & (chance <= _CHANCE and 2 * (near & crowded).sum() <= count), index


def _nearest_rows(
    rows: np.ndarray, known: np.ndarray, same: bool, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance and number of the nearest other row within 1000 radii, and whether a crowd is within 10.

    Equal rows are searched for as one, as the time that a k-d tree takes grows with the square of their number.
    """
    from scipy.spatial import cKDTree

    kept, first, of_known, count = np.unique(known, axis=0, return_index=True, return_inverse=True, return_counts=True)
    ranks, bound = list(range(1, _CROWD + 1)), 1000 * radius
    distance, place = cKDTree(kept).query(rows, k=ranks, distance_upper_bound=bound, p=np.inf)
    first, count = np.append(first, 0), np.append(count, 0)  # the place of a row that is missing is one beyond the end
    crowded = (count[place] * (distance <= 10 * radius)).sum(1) >= _CROWD
    if not same:
        return distance[:, 0], first[place[:, 0]], crowded
    own, number = place[:, 0], np.arange(len(rows))
    last = np.zeros(len(kept), np.int64)
    last[of_known.ravel()] = number
    twin = np.where(first[own] == number, last[own], first[own])
    has_twin = count[own] > 1
    return np.where(has_twin, 0.0, distance[:, 1]), np.where(has_twin, twin, first[place[:, 1]]), crowded


def _chance_of(count: int, wider: Sequence[float], num_rows: int) -> float:
    r"""The probability that `count` rows are near by chance, if `wider` others are within 10, 100 and 1000 radii.

    The number of neighbours within a radius grows as $r^d$, with $d \ge 1$ for continuous data, so that of those within
    $10^k$ radii at most a share of $10^{-k}$ is near by chance; a quarter is added for uneven densities. A number that
    an eighth of the rows have reached no longer grows so, and bounds nothing: without a bound, all may be by chance.
    """
    from scipy.special import betainc  # the binomial distribution's, without the import of scipy.stats

    powers = [power for power, number in zip((1, 2, 3), wider) if number < num_rows / 8]
    chances = [float(betainc(count, wider[power - 1] + 1, 1.25 * 10.0**-power)) for power in powers]
    return min(chances, default=1.0) if count else 1.0


def _picture_pairs(rows: np.ndarray, known: np.ndarray, same: bool, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The same for pictures; of those in colour, also for their mirror images."""
    distance, index = _nearest_pictures(rows, known, same, radius)
    if radius == PICTURE_RADIUS[3]:
        turned, other = _nearest_pictures(mirrored(rows), known, same, radius)
        distance, index = np.minimum(distance, turned), np.where(turned < distance, other, index)
    return distance <= radius, index


def _nearest_pictures(rows: np.ndarray, known: np.ndarray, same: bool, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Distance and number of the nearest picture, by the entries that differ most, and then by all of them."""
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
    return distance, index


class Sketches(NamedTuple):
    """What near copies of n examples are found by: normal forms of texts, or sketches of other examples.

    Attributes:
        texts: the normal form of each example (n,), for sources of texts; else None.
        vectors: sketches (k, K), k ≤ n, empty for texts.
        places: the number of the example of each sketch (k,).
        radius: of the sketcher.
    """

    texts: list[str] | None
    vectors: np.ndarray
    places: np.ndarray
    radius: float

    def copies(self, others: Sketches | None, left_out: np.ndarray) -> np.ndarray:
        """For each example, the number of its near copy in `others`, or among those before it if None; else -1, (n,).

        Args:
            others: sketches by the same sketcher.
            left_out: examples (n,) that are not compared, such as exact copies.
        """
        found = np.full(len(left_out), -1)
        if self.texts is not None:
            known: dict[str, int] = {}
            if others is not None:
                known = {text: number for number, text in enumerate(others.texts or ())}
            for number in np.flatnonzero(~left_out).tolist():
                text = self.texts[number]
                found[number] = known.setdefault(text, -1) if others is None else known.get(text, -1)
                if others is None and known[text] < 0:
                    known[text] = number
            return found
        mine = ~left_out[self.places]
        if others is None:
            index = nearest(self.vectors[mine], None, self.radius)
            places = self.places[mine]
            index = np.where(index < np.arange(len(index)), index, -1)  # the later one is the copy
            found[places[index >= 0]] = places[index[index >= 0]]
            return found
        index = nearest(self.vectors[mine], others.vectors, self.radius)
        found[self.places[mine][index >= 0]] = others.places[index[index >= 0]]
        return found


class NearlyShown:
    """Counts the queries that are near copies of an example in the support set of their own task."""

    def __init__(self) -> None:
        self._sketcher: Sketcher | None = None
        self._support: list[np.ndarray] = []
        self._query: list[np.ndarray] = []

    def add(self, support: Tree, query: Tree, exact: Sequence[bool]) -> None:
        """Add a task: its examples, leaves (n, ...) and (m, ...), and which queries are exact copies (m,)."""
        if not len(exact):
            return
        self._sketcher = self._sketcher or Sketcher(support)
        number = len(self._support)
        for sketches, examples in ((self._support, support), (self._query, query)):
            own = self._sketcher(examples)
            # Examples of different tasks are moved far apart.
            sketches.append(np.concatenate([own, np.full((len(own), 1), 100.0 * number)], 1) if own.size else own)
        self._query[-1] = self._query[-1][~np.asarray(exact, bool)]

    def count(self) -> int:
        """The number of such queries."""
        shapes = {each.shape[1] for each in (*self._support, *self._query)}
        if self._sketcher is None or shapes == {0}:
            return 0
        width = max(shapes)
        support, query = (
            np.concatenate([each for each in own if each.shape[1] == width] or [np.empty((0, width))])
            for own in (self._support, self._query)
        )
        return int((nearest(query, support, self._sketcher.radius) >= 0).sum())
