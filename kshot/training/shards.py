"""Frozen weights that several processes share: each keeps a part of those of a block, and all gather it to use it.

As FSDP2 does, but for models that run with the weights of a task. `fully_shard` sets the gathered weights on the module
itself, of which a replica runs here, and frees them after a forward pass and its backward pass, where an inner step
that is differentiated needs them a third time. Here a block sets them on the replica for the time of its forward, and
what autograd saves of them is a note by which a backward pass of any order gathers them again.

Processes need not take the same passes: each says which block it wants, all give their parts of each wanted one, and
who has nothing to do gives (`serve`) until all have. What is trained is not shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from kshot.data.images.feature_maps import blocks_of
from kshot.inner.kernels import in_transform
from kshot.models.pretrained import Pretrained

NOTHING = -1
"""The number of no block."""
ALIGNMENT = 16
"""Bytes of which the address of each weight is a multiple."""


class _Place(NamedTuple):
    """Where a weight belongs in a block, and where it lies in the block's bytes."""

    path: str
    key: str
    dtype: torch.dtype
    shape: torch.Size
    start: int


class _Saved(NamedTuple):
    """What autograd saves of a gathered weight, or of a view of it."""

    block: _Block
    device: torch.device
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Block:
    """The frozen weights of a block, of which this process keeps a part; copies of a model have the same."""

    def __init__(self, number: int, places: list[_Place], whole: Tensor) -> None:
        self.number, self.places = number, places
        self.part = whole.chunk(dist.get_world_size())[dist.get_rank()].clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Block:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("weights that processes share are not sent to others")

    @contextmanager
    def placed(self, module: nn.Module, device: torch.device) -> Iterator[None]:
        """A context in which a module has the weights of the block."""
        if in_transform():
            raise ValueError(
                "weights that processes share (shard_frozen) do not go through torch.func, as by mode vmap or an "
                "implicit gradient: set mode to loop, or take another solver"
            )
        whole = _gathered(self, device)
        tables: list[tuple[dict[str, Any], _Place]] = [
            (module.get_submodule(place.path)._parameters, place) for place in self.places
        ]
        for table, place in tables:
            table[place.key] = _as_weight(whole, place)
        try:
            with packed_weights():
                yield
        finally:
            for table, place in tables:
                table[place.key] = None


_blocks: dict[tuple[Any, ...], _Block] = {}
"""Those of this process, by what they hold; all processes number them alike."""
_last: tuple[_Block, Tensor] | None = None
"""The block that was gathered last, and its bytes."""
calling: ContextVar[Callable[[], None] | None] = ContextVar("calling", default=None)
"""In process 0 while it runs the program alone: what makes the others `give`."""


class _Shared(nn.Module):
    """A module whose frozen weights are those of a `_Block` while it runs."""

    _shared_weights: _Block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        device = next(leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        with self._shared_weights.placed(self, device):
            return super().forward(*args, **kwargs)


def shard_frozen(module: nn.Module) -> nn.Module:
    r"""Share the frozen weights of pretrained models among the processes of a process group, in place.

    Of the frozen weights of each block of an `encoder` or a `causal_lm` with LoRA adapters or a new head, each of $n$
    processes keeps $1/n$, and gathers those of one block to run it, or to differentiate it. What is trained, and what
    is outside of the blocks, such as embeddings, stays whole in all processes, and so does what checkpoints hold.
    Meta-training is then by mode "loop". All processes call this function, before any of them trains or evaluates.

    Args:
        module: a model, or a learner around it.

    Returns:
        The module.

    Raises:
        ValueError: there is one process, or no block of a pretrained model has frozen weights.

    References:
        Rajbhandari et al.: ZeRO, arXiv:1910.02054 (stage 3); Zhao et al.: PyTorch FSDP, arXiv:2304.11277.
    """
    require_others()
    before = sum(isinstance(part, _Shared) for part in module.modules())
    for model in [part for part in module.modules() if isinstance(part, Pretrained)]:
        frozen = model.frozen()
        uses = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
        for path in blocks_of(model):
            block = model.get_submodule(path)
            own = {
                (name, key): parameter
                for name, part in block.named_modules()
                for key, parameter in part.named_parameters(recurse=False)
                if ".".join(filter(None, (path, name, key))) in frozen and uses.count(id(parameter)) == 1
            }
            if own:
                _share(block, own, (model.sha256, path))
    if before == sum(isinstance(part, _Shared) for part in module.modules()):
        raise ValueError(
            "shard_frozen finds no frozen weights in the layers of a pretrained model: take model causal_lm with a "
            "rank, or encoder with tune: lora, or leave it out"
        )
    return module


def has_others() -> bool:
    """Whether there are several processes, also while one runs alone."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def require_others() -> None:
    """Raise ValueError unless there are several processes."""
    if not has_others():
        raise ValueError(
            "shard_frozen shares weights among several processes, and there is one: start several, as by kshot run "
            "--processes, or leave it out"
        )


def _share(block: nn.Module, own: dict[tuple[str, str], nn.Parameter], origin: tuple[str, str]) -> None:
    """Keep a part of the weights of a block, by path and key, in place of them all."""
    places, start = [], 0
    for (path, key), parameter in own.items():
        places.append(_Place(path, key, parameter.dtype, parameter.shape, start))
        start += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
    name = (*origin, *places)
    if name not in _blocks:
        if calling.get() is not None:
            raise ValueError("shard_frozen is for the model of the run, whose weights all processes have read")
        size = dist.get_world_size()
        whole = torch.zeros(-(-start // (ALIGNMENT * size)) * ALIGNMENT * size, dtype=torch.uint8)
        for place, parameter in zip(places, own.values()):
            _as_weight(whole, place).copy_(parameter.detach())
        _blocks[name] = _Block(len(_blocks), places, whole)
    for path, key in own:
        block.get_submodule(path)._parameters[key] = None
    kind = type(block)
    block.__class__ = type(f"Shared{kind.__name__}", (_Shared, kind), {})
    block.__dict__["_shared_weights"] = _blocks[name]


def is_sharded(module: nn.Module) -> bool:
    """Whether processes share weights of a module."""
    return any(isinstance(part, _Shared) for part in module.modules())


def num_parameters(module: nn.Module) -> int:
    """The number of parameters of a module, with those that other processes keep."""
    shared = [part._shared_weights for part in module.modules() if isinstance(part, _Shared)]
    own = sum(parameter.numel() for parameter in module.parameters())
    return own + sum(prod(place.shape) for block in shared for place in block.places)


def packed_weights() -> saved_tensors_hooks:
    """A context in which autograd saves a note in place of each gathered weight."""
    return saved_tensors_hooks(_pack, _unpack)


def _pack(tensor: Tensor) -> Tensor | _Saved:
    if _last is None or tensor.untyped_storage().data_ptr() != _last[1].untyped_storage().data_ptr():
        return tensor
    return _Saved(
        _last[0], tensor.device, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())
    )  # fmt: skip


def _unpack(saved: Tensor | _Saved) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    storage = _gathered(saved.block, saved.device).untyped_storage()
    with torch.no_grad():
        empty = torch.empty(0, dtype=saved.dtype, device=saved.device)
        return empty.set_(storage, saved.offset, saved.size, saved.stride)


def _as_weight(whole: Tensor, place: _Place) -> Tensor:
    count = prod(place.shape) * place.dtype.itemsize
    return whole[place.start : place.start + count].view(place.dtype).view(place.shape)


@torch.no_grad()
def _gathered(block: _Block, device: torch.device) -> Tensor:
    """The bytes of a block; those of one block are kept."""
    global _last
    if _last is None or _last[0] is not block or _last[1].device != device:
        _last = None
        if (call := calling.get()) is not None:
            call()
        with torch.inference_mode(False):
            whole = _exchange(block.number, device.type)
        assert whole is not None
        _last = block, whole
    return _last[1]


def give() -> None:
    """Give the others the parts of what they want, once."""
    _exchange(NOTHING, "cpu")


def serve() -> None:
    """Give the others the parts of what they want, until none wants anything."""
    if _blocks:
        while _exchange(NOTHING, "cpu") is not None:
            pass


def _exchange(wanted: int, device: str) -> Tensor | None:
    """The bytes of the block with a number, or of any that another process wants; None if none wants anything."""
    wants = [torch.empty(2, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(wants, torch.tensor([wanted, device != "cpu"]))
    blocks, found = list(_blocks.values()), None
    for number, on_accelerator in sorted({(int(number), bool(on)) for number, on in wants if number != NOTHING}):
        block = blocks[number]
        block.part = block.part.to(torch.accelerator.current_accelerator() if on_accelerator else "cpu")
        whole = block.part.new_empty(len(block.part) * len(wants))
        dist.all_gather(list(whole.chunk(len(wants))), block.part)
        if found is None or number == wanted:
            found = whole
    return found
