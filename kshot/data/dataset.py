"""Data sets: examples by row number. A source chooses rows and takes them in one gather."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kshot.types import Tree, tree_leaves, tree_map


class Dataset(Protocol):
    """Examples by row number."""

    def __len__(self) -> int:
        """The number of examples."""

    def take(self, rows: np.ndarray) -> Tree:
        """The examples of rows, int64 (...), as tensors (..., *example shape); a pure function."""


class RowArray(Protocol):
    """An array of which rows are read: that of NumPy, a memory map, or rows of files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *row shape)."""

    @property
    def dtype(self) -> np.dtype:
        """Of the elements."""

    def __len__(self) -> int:
        """The number of rows."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """The rows of positions, int64 (...), as (..., *row shape)."""


class ImageDataset:
    """Images as float32 in 0 … 1.

    Args:
        images: uint8 (n, C, H, W) for n examples, an array or a memory map, of which only the taken rows are read.

    Raises:
        ValueError: the images have another type or shape.

    Example:
        >>> examples = ImageDataset(np.full((4, 3, 8, 8), 51, np.uint8))
        >>> taken = examples.take(np.array([[0, 1], [2, 2]]))
        >>> taken.shape, float(taken[0, 0, 0, 0, 0])
        (torch.Size([2, 2, 3, 8, 8]), 0.2...)
    """

    def __init__(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 (num_images, C, H, W), got {images.dtype} {images.shape}; "
                "scale floats to 0 … 255, and give grey images a channel axis of 1"
            )
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.images[rows]).to(torch.float32).div_(255)


class ArrayDataset:
    """A tree of arrays: floats are taken as float32, integers as int64, booleans unchanged.

    Args:
        arrays: leaves (n, ...) for n examples, arrays, memory maps or others that are a `RowArray`.

    Raises:
        ValueError: the leaves differ in length, or are not numeric.

    Example:
        >>> examples = ArrayDataset({"age": np.arange(4.0), "visits": np.arange(12).reshape(4, 3)})
        >>> {name: leaf.tolist() for name, leaf in examples.take(np.array([3])).items()}
        {'age': [3.0], 'visits': [[9, 10, 11]]}
    """

    def __init__(self, arrays: Tree) -> None:
        leaves = tree_leaves(arrays)
        lengths = sorted({len(leaf) for leaf in leaves})
        if len(lengths) != 1:
            raise ValueError(f"the arrays must hold the same number of examples on their first axis, got {lengths}")
        for leaf in leaves:
            if leaf.dtype.kind not in "fiub":
                raise ValueError(f"the arrays must hold numbers or booleans, got {leaf.dtype} {leaf.shape}")
        self.arrays = arrays
        self._length = lengths[0]

    def __len__(self) -> int:
        return self._length

    def take(self, rows: np.ndarray) -> Tree:
        def tensor(leaf: np.ndarray) -> Tensor:
            dtype = {"f": np.float32, "b": np.bool_}.get(leaf.dtype.kind, np.int64)
            return torch.from_numpy(np.ascontiguousarray(leaf[rows], dtype))

        return tree_map(tensor, self.arrays)
