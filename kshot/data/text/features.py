"""Texts as numbers: hashed n-grams, or padded ids of characters.

A featuriser is any function from texts to `Dataset`; a sentence encoder is another one.

Shape legend: n texts, W features of a text (width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from kshot.data.cache import cached, texts_key
from kshot.data.dataset import Dataset
from kshot.data.text.vocabulary import PADDING, Vocabulary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Featuriser = Callable[[Sequence[str]], Dataset]
"""Makes examples of texts: text i is example i."""

_VERSION = 1  # of the features below; part of the name of cached files


class SparseExamples:
    """Rows of a sparse matrix, scipy CSR (n, W) of float32, made dense when they are taken."""

    def __init__(self, matrix: csr_matrix) -> None:
        self.matrix = matrix

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def take(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.matrix[rows.ravel()].toarray()).unflatten(0, rows.shape)


class SpanDataset:
    """Spans of one long array, int64, padded with 0 at their end to a common length.

    Args:
        flat: integers (m,), an array or a memory map.
        starts, stops: (n,) of each span; elements from `start + length` on are not taken.
        length: of an example.

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
        index = self.starts[rows][..., None] + np.arange(self.length)
        inside = index < self.stops[rows][..., None]
        elements = self.flat[np.minimum(index, len(self.flat) - 1)]
        return torch.from_numpy(np.where(inside, elements, PADDING).astype(np.int64, copy=False))


def hashed_ngrams(
    texts: Sequence[str], *, of: Literal["words", "characters"], ngrams: tuple[int, int], width: int, keep: bool = False
) -> SparseExamples:
    r"""Counts of n-grams, hashed to a fixed width and normalised; nothing is fitted, so nothing can leak.

    $$ \phi_j(x) = \sum_{g \in x} s(g) [h(g) = j], \qquad x \mapsto \phi(x) / \lVert \phi(x) \rVert_2, $$

    with MurmurHash3 for $h$ and the sign $s$. Case is ignored. N-grams of characters stay within words, with a space at
    each end. A text without n-grams is all zeros.

    Args:
        texts: n texts.
        of: "words" (runs of letters, digits and `_`) or "characters".
        ngrams: smallest and largest n.
        width: W; a larger one has fewer collisions.
        keep: whether the features are cached.

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

    def compute() -> dict[str, np.ndarray]:
        vectorizer = HashingVectorizer(
            analyzer="word" if of == "words" else "char_wb",
            token_pattern=r"\b\w+\b" if of == "words" else None,
            ngram_range=tuple(ngrams),
            n_features=width,
            dtype=np.float32,
        )
        counts = vectorizer.transform(texts)
        return {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}

    key = texts_key((_VERSION, __version__, of, tuple(ngrams), width), texts) if keep else ""
    arrays = cached(f"ngrams-{key}", compute) if keep else compute()
    parts = (arrays["data"], arrays["indices"], arrays["indptr"])
    return SparseExamples(csr_matrix(parts, shape=(len(texts), width)))


def character_ids(texts: Sequence[str], *, vocabulary: Vocabulary, width: int) -> SpanDataset:
    """The ids (width,) of a text's first `width` characters, padded with 0.

    Example:
        >>> vocabulary = Vocabulary.fit(["ab"])
        >>> character_ids(["ba", "?abba"], vocabulary=vocabulary, width=4).take(np.array([0, 1])).tolist()
        [[3, 2, 0, 0], [1, 2, 3, 3]]
    """
    ids = [vocabulary.encode(text[:width]) for text in texts]
    stops = np.cumsum([len(row) for row in ids])
    starts = np.concatenate([[0], stops[:-1]])
    return SpanDataset(np.concatenate(ids).astype(np.int32), starts, stops, width)
