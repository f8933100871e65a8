"""Content of examples: hashes to find copies, and blank examples.

Shape legend: n examples.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from kshot.types import Tree, tree_leaves

LEAST = 16
"""Number of values from which on an example of equal values counts as blank."""


def content_hashes(tree: Tree) -> list[bytes]:
    """A hash of the content of each example (n,)."""
    leaves = [np.ascontiguousarray(leaf.cpu().numpy()).reshape(len(leaf), -1) for leaf in tree_leaves(tree)]
    return [
        hashlib.blake2b(b"".join(leaf[row].tobytes() for leaf in leaves), digest_size=16).digest()
        for row in range(len(leaves[0]))
    ]


def is_blank(inputs: Tree) -> list[bool]:
    """Whether each example (n,) holds one value throughout."""
    leaves = [leaf.flatten(1) for leaf in tree_leaves(inputs) if leaf.ndim > 1]
    if sum(leaf.shape[1] for leaf in leaves) < LEAST:
        return [False] * len(tree_leaves(inputs)[0])
    return torch.stack([(leaf == leaf[:, :1]).all(1) for leaf in leaves]).all(0).tolist()
