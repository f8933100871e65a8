"""The state of torch's random generators, so that a computation can be repeated with the same random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.types import tree_leaves

State = tuple[Tensor, dict[torch.device, Tensor]]


def random_state(tree: Any) -> State:
    """The state of the generators of the CPU and of the CUDA devices of a tree's tensors."""
    devices = {leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_cuda}
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}


def set_random_state(state: State) -> None:
    """Restore a state of `random_state`."""
    torch.set_rng_state(state[0])
    for device, cuda_state in state[1].items():
        torch.cuda.set_rng_state(cuda_state, device)
