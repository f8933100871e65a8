"""Dataset by their content: which are copies of which, and which hold nothing.

Shape legend: n examples.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from kshot.types import Tree, tree_leaves

_BLANK = 16  # numbers that an example needs, for all being equal to mean anything


def content_hashes(tree: Tree) -> list[bytes]:
    """A hash of the content of each example (n,)."""
    leaves = [np.ascontiguousarray(leaf.cpu().numpy()).reshape(len(leaf), -1) for leaf in tree_leaves(tree)]
    return [
        hashlib.blake2b(b"".join(leaf[place].tobytes() for leaf in leaves), digest_size=16).digest()
        for place in range(len(leaves[0]))
    ]


def is_blank(inputs: Tree) -> list[bool]:
    """Whether each example (n,) is one value throughout."""
    leaves = [leaf.flatten(1) for leaf in tree_leaves(inputs) if leaf.ndim > 1]
    if sum(leaf.shape[1] for leaf in leaves) < _BLANK:
        return [False] * len(tree_leaves(inputs)[0])
    same = torch.stack([(leaf == leaf[:, :1]).all(1) for leaf in leaves]).all(0)
    return [bool(own) for own in same]
