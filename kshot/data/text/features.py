"""Texts as numbers that a model takes: hashed n-grams, or padded ids of characters.

A featuriser is any function from texts to `Dataset`; an encoder of sentences is one more of them.

Shape legend: n texts, W numbers a text (width).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from kshot.data.cache import cached
from kshot.data.dataset import Dataset
from kshot.data.text.vocabulary import PADDING, Vocabulary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Featuriser = Callable[[Sequence[str]], Dataset]
"""What makes examples of texts, row by row: text i is example i."""

_VERSION = 1  # counts the changes to the features below: part of the cache's name


class SparseExamples:
    """Rows of a sparse matrix, float32; a row is dense when it is taken.

    Args:
        matrix: scipy CSR (n, W).
    """

    def __init__(self, matrix: csr_matrix) -> None:
        self.matrix = matrix

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def take(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.matrix[rows.ravel()].toarray()).unflatten(0, rows.shape)


class SpanDataset:
    """Stretches of one long array, int64, padded with 0 behind their end to a common length.

    Args:
        flat: integers (m,), an array or a memory map.
        starts: (n,) where each stretch starts in it.
        stops: (n,) where each ends; what is behind `start + length` is not taken.
        length: of what is taken.

    Example:
        >>> spans = SpanDataset(np.array([5, 6, 7, 8]), np.array([0, 3]), np.array([3, 4]), length=2)
        >>> spans.take(np.array([0, 1])).tolist()
        [[5, 6], [8, 0]]
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray, stops: np.ndarray, length: int) -> None:
        self.flat, self.starts, self.stops, self.length = flat, starts, stops, length

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray) -> Tensor:
        at = self.starts[rows][..., None] + np.arange(self.length)
        inside = at < self.stops[rows][..., None]
        taken = self.flat[np.minimum(at, len(self.flat) - 1)]
        return torch.from_numpy(np.where(inside, taken, PADDING).astype(np.int64, copy=False))


def hashed_ngrams(
    texts: Sequence[str],
    *,
    of: Literal["words", "characters"],
    ngrams: tuple[int, int],
    width: int,
    keep: bool = False,
) -> SparseExamples:
    r"""Counts of n-grams, hashed to a fixed width and scaled to length 1: nothing is fitted, so nothing can leak.

    $$ \phi_j(x) = \sum_{g \in x} s(g) [h(g) = j], \qquad x \mapsto \phi(x) / \lVert \phi(x) \rVert_2, $$

    with MurmurHash3 for $h$ and the sign $s$. Case is ignored. N-grams of characters stay inside words, with a space
    at each end. A text without any n-gram is all zeros.

    Args:
        texts: n of them.
        of: words, which are runs of letters, digits and `_`; or characters.
        ngrams: the smallest and the largest n.
        width: numbers a text becomes; more of them let fewer n-grams share a place.
        keep: whether what is made is kept in the cache, and taken from there the next time.

    Example:
        >>> examples = hashed_ngrams(["to be or not", "Not to be", "?"], of="words", ngrams=(1, 1), width=64)
        >>> a, b, nothing = examples.take(np.arange(3))
        >>> float(a @ b), float(nothing.norm())
        (0.866..., 0.0)

    References:
        Weinberger, Dasgupta, Attenberg, Langford, Smola: Feature Hashing for Large Scale Multitask Learning, ICML 2009,
        arXiv:0902.2206.
    """
    from scipy.sparse import csr_matrix
    from sklearn import __version__
    from sklearn.feature_extraction.text import HashingVectorizer

    def make() -> dict[str, np.ndarray]:
        vectorizer = HashingVectorizer(
            analyzer="word" if of == "words" else "char_wb",
            token_pattern=r"\b\w+\b" if of == "words" else None,
            ngram_range=tuple(ngrams),
            n_features=width,
            dtype=np.float32,
        )
        counts = vectorizer.transform(texts)
        return {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}

    def matrix(made: dict[str, np.ndarray]) -> SparseExamples:
        return SparseExamples(csr_matrix((made["data"], made["indices"], made["indptr"]), shape=(len(texts), width)))

    if not keep:
        return matrix(make())
    key = hashlib.sha256(repr((_VERSION, __version__, of, tuple(ngrams), width)).encode())
    for text in texts:
        content = text.encode()
        key.update(len(content).to_bytes(8, "little") + content)
    return matrix(cached(f"ngrams-{key.hexdigest()[:16]}", make))


def character_ids(texts: Sequence[str], *, vocabulary: Vocabulary, width: int) -> SpanDataset:
    """The ids (width,) of a text's characters: the first `width` of them, padded with 0.

    Example:
        >>> vocabulary = Vocabulary.fit(["ab"])
        >>> character_ids(["ba", "?abba"], vocabulary=vocabulary, width=4).take(np.array([0, 1])).tolist()
        [[3, 2, 0, 0], [1, 2, 3, 3]]
    """
    ids = [vocabulary.encode(text[:width]) for text in texts]
    stops = np.cumsum([len(own) for own in ids])
    starts = np.concatenate([[0], stops[:-1]])
    return SpanDataset(np.concatenate(ids).astype(np.int32), starts, stops, width)
