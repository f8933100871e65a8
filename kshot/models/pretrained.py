"""Base class of modules with pretrained weights from a folder, some or all of them frozen."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Pretrained(nn.Module):
    """A module with weights from files: its frozen parameters are not part of `state_dict` or of checkpoints.

    `state_dict` contains the hash of the files instead, which is compared on loading.
    """

    name = sha256 = ""
    _frozen: frozenset[str] = frozenset()

    def set_origin(self, name: str, sha256: str) -> None:
        """Set the folder of the weights and the hash of its files; the parameters frozen now are those of the files."""
        self.name, self.sha256, self._frozen = name, sha256, self._without_grad()
        self.register_state_dict_post_hook(_remove_frozen)
        self.register_load_state_dict_post_hook(_allow_missing_frozen)

    def frozen(self) -> frozenset[str]:
        """Names of the parameters that are still frozen, so that they equal those of the files."""
        return self._frozen & self._without_grad()

    def _without_grad(self) -> frozenset[str]:
        return frozenset(name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(bytes.fromhex(self.sha256)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Check that the loaded state was trained on the same files."""
        expected = bytes(state.tolist()).hex()
        if expected != self.sha256:
            raise ValueError(
                f"the pretrained model {self.name} has changed since: its files hash to {self.sha256[:16]}…, not "
                f"{expected[:16]}…; restore the files that this was trained on, or train again"
            )


def _remove_frozen(module: Pretrained, state: dict[str, Tensor], prefix: str, _: object) -> None:
    for name in module.frozen():
        del state[prefix + name]


def _allow_missing_frozen(module: Pretrained, keys: Any) -> None:
    frozen = tuple(module.frozen())
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(frozen)]


def with_lora(model: nn.Module, rank: int, architecture: str | None = None, **options: Any) -> nn.Module:
    r"""A model of `transformers` with LoRA adapters: weights $W$ become $W + 2 B A$, and only A and B are trained.

    Args:
        model: the model, changed in place.
        rank: r, of A (r, inputs) and B (outputs, r), which is 0 at first.
        architecture: if given and unknown to peft, all linear layers get adapters.
        options: further arguments of `peft.LoraConfig`; peft must be installed.

    References:
        Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError:
        raise ValueError("LoRA adapters need peft, which is not installed: pip install 'kshot[text]'") from None
    if architecture is not None and architecture not in KNOWN:
        options["target_modules"] = "all-linear"
    with warnings.catch_warnings():  # of peft's use of transformers
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, **options))
