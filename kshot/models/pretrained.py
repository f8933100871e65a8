"""Base class of modules with pretrained weights from a folder, some or all of them frozen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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


def with_lora(model: nn.Module, rank: int, targets: Sequence[str] | None = None, **options: Any) -> nn.Module:
    r"""A model with LoRA adapters: weights $W$ become $W + 2 B A$, and only A and B are trained.

    Args:
        model: the model, changed in place.
        rank: r, of A (r, inputs) and B (outputs, r), which is 0 at first.
        targets: names of the layers that get adapters; by default those that peft knows for a model of `transformers`.
        options: further arguments of `peft.LoraConfig`; peft must be installed.

    References:
        Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685.
    """
    peft = _peft()
    with warnings.catch_warnings():  # of peft's use of transformers
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
        chosen = None if targets is None else list(targets)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=chosen, **options)
        return peft.get_peft_model(model, config)


def lora_targets(architecture: str) -> Sequence[str] | None:
    """The last parts of the names of the layers that get adapters in an architecture of `transformers`, if known."""
    return _peft().utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(architecture)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA adapters need peft, which is not installed: pip install 'kshot[text]'") from None
    return peft


class FixedNorm(nn.Module):
    r"""A BatchNorm with the statistics of its training: $\gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$.

    Statistics of the few images of a task are too poor an estimate for a network that was trained on others.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("mean", norm.running_mean[:, None, None], persistent=False)
        self.register_buffer("scale", (norm.running_var + norm.eps).rsqrt()[:, None, None], persistent=False)
        # timm's norms have an activation of their own.
        self.after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))

    def forward(self, x_nCHW: Tensor) -> Tensor:
        x_nCHW = (x_nCHW - self.mean) * self.scale
        if self.weight is not None:
            x_nCHW = x_nCHW * self.weight[:, None, None] + self.bias[:, None, None]
        return self.after(x_nCHW)


def fix_norms(network: nn.Module) -> None:
    """Replace each BatchNorm of images in a network, in place, by a `FixedNorm`."""
    for module in [*network.modules()]:
        for name, part in module.named_children():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
                setattr(module, name, FixedNorm(part))
