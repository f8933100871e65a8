"""What modules have in common that are made of a folder's weights, of which some, or all, never learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Pretrained(nn.Module):
    """A module of weights from files: those that do not learn are no part of `state_dict`, nor of checkpoints.

    The hash of the files stands for them, and loading compares it.
    """

    name = sha256 = ""
    _given: frozenset[str] = frozenset()

    def came_from(self, name: str, sha256: str) -> None:
        """Say where the weights come from: the folder, and the hash of its files. What is frozen now is as they are."""
        self.name, self.sha256 = name, sha256
        own = self.named_parameters(remove_duplicate=False)
        self._given = frozenset(name for name, parameter in own if not parameter.requires_grad)
        self.register_state_dict_post_hook(_leave_out_given)
        self.register_load_state_dict_post_hook(_miss_no_given)

    def given(self) -> set[str]:
        """The names of the parameters that are as the files have them."""
        now = self.named_parameters(remove_duplicate=False)
        return {name for name, parameter in now if name in self._given and not parameter.requires_grad}

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(bytes.fromhex(self.sha256)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the hash of the files that what is loaded was trained on."""
        before = bytes(state.tolist()).hex()
        if before != self.sha256:
            raise ValueError(
                f"the pretrained model {self.name} has changed since: its files hash to {self.sha256[:16]}…, not "
                f"{before[:16]}…; put back those that this was trained on, or train again"
            )


def _leave_out_given(module: Pretrained, state: dict[str, Tensor], prefix: str, _: object) -> None:
    for name in module.given():
        del state[prefix + name]


def _miss_no_given(module: Pretrained, keys: Any) -> None:
    given = tuple(module.given())
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(given)]
