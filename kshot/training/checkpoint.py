"""Saving and loading: checkpoints of a training, and the states of adapted tasks. Safetensors and JSON, never pickle.

Everything is written beside its place and then renamed into it, so that a reader finds a whole thing or nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kshot.types import Tree

WEIGHTS, OPTIMIZER, META = "weights.safetensors", "optimizer.safetensors", "meta.json"


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None, meta: dict[str, Any]) -> None:
    """Write a checkpoint as the new folder `folder`: weights, optimiser state, and `meta` as JSON."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(_own_memory(module.state_dict()), beside / WEIGHTS)
    if optimizer is not None:
        save_file(_own_memory(_optimizer_tensors(optimizer)), beside / OPTIMIZER)
    (beside / META).write_text(json.dumps(meta, indent=1))
    for file in beside.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():  # the same step written again after a resume
        shutil.rmtree(folder)
    beside.rename(folder)


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Load a checkpoint into `module` (and `optimizer`), and return its meta data.

    Raises:
        ValueError: a checkpoint that is cut short, missing, or of another model; nothing is changed then.
    """
    tensors = _read(folder / WEIGHTS)
    _check_same_model(folder, tensors, module)
    try:
        meta = json.loads((folder / META).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise _cut_short(folder / META, error) from error
    if optimizer is not None:
        moments = _read(folder / OPTIMIZER)
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in moments.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    module.load_state_dict(tensors)
    return meta


class Checkpoints:
    """The checkpoints of one run, subfolders of a folder: when one is due, which is the latest, which may go.

    Args:
        folder: where they lie; made if need be.
        seconds: the interval at which `due` turns true; a kill loses at most this much.
    """

    def __init__(self, folder: Path, seconds: float = 30.0) -> None:
        self.folder, self.seconds = folder, seconds
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*"):
            shutil.rmtree(unfinished)
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed since the last `wrote`."""
        return time.monotonic() - self._last >= self.seconds

    def wrote(self) -> None:
        """Start a new interval."""
        self._last = time.monotonic()

    def latest(self) -> Path | None:
        """The checkpoint written last, or None."""
        return max(self._all(), key=lambda path: path.stat().st_mtime_ns, default=None)

    def prune(self, *keep: str) -> None:
        """Delete all but those named and the latest."""
        latest = self.latest()
        for path in self._all():
            if path.name not in keep and path != latest:
                shutil.rmtree(path)

    def _all(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def save_state(path: Path, state: Tree, meta: dict[str, str]) -> None:
    """Write a task's state, nested dicts of tensors, to one safetensors file with `meta` in its header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_state(path, {"head": {"w": torch.ones(2)}}, {"classes": "a,b"})
        >>> load_state(path)
        ({'head': {'w': tensor([1., 1.])}}, {'classes': 'a,b'})
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(_own_memory(flatten(state)), beside, meta)
    beside.replace(path)


def load_state(path: Path) -> tuple[Tree, dict[str, str]]:
    """Read what `save_state` wrote: the state and its meta data.

    Raises:
        ValueError: a file that is missing, cut short, or no safetensors file.
    """
    tensors = _read(path)
    with safe_open(path, framework="pt") as file:
        meta = file.metadata() or {}
    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *outer, last = name.split("/")
        node = state
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = tensor
    return state, meta


def flatten(state: Tree, prefix: str = "") -> dict[str, Tensor]:
    """Nested dicts of tensors as one dict with keys joined by "/"."""
    if isinstance(state, Tensor):
        return {prefix: state}
    if not isinstance(state, dict):
        raise TypeError(
            f"a state is nested dicts with tensors for leaves; found a {type(state).__name__} at '{prefix}'"
        )
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or "/" in key:
            raise TypeError(f"a state's keys are strings without '/'; found {key!r} at '{prefix}'")
        flat.update(flatten(value, f"{prefix}/{key}" if prefix else key))
    return flat


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share nothing, as safetensors asks; tied weights are written under each of their names."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _cut_short(path, error) from error


def _cut_short(path: Path, error: Exception) -> ValueError:
    if not path.exists():
        return ValueError(f"{path} is missing")
    return ValueError(f"{path} is damaged or cut short ({error}); use an older checkpoint, or train again")


def _check_same_model(folder: Path, found: dict[str, Tensor], module: nn.Module) -> None:
    wanted = module.state_dict()
    lines = [f"it lacks {name}" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"it has an unknown {name}" for name in sorted(found.keys() - wanted.keys())]
    lines += [
        f"{name} is {tuple(found[name].shape)} there and {tuple(wanted[name].shape)} here"
        for name in sorted(found.keys() & wanted.keys())
        if found[name].shape != wanted[name].shape
    ]
    if lines:
        more = f", and {len(lines) - 3} differences more" if len(lines) > 3 else ""
        raise ValueError(f"checkpoint {folder} is of another model: {'; '.join(lines[:3])}{more}")
    for name, part in module.named_modules():  # what a pretrained part says of the files that it came from
        extra = found.get(f"{name}._extra_state".lstrip("."))
        if extra is not None:
            part.set_extra_state(extra)
