"""Checkpoints of a training, and states of adapted tasks, as safetensors and JSON; never pickle.

Files are written under a temporary name and then renamed, so that a reader sees a complete file or none.
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
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_copies(module.state_dict()), temporary / WEIGHTS)
    if optimizer is not None:
        tensors = {
            f"{number}.{name}": torch.as_tensor(value)
            for number, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        save_file(_copies(tensors), temporary / OPTIMIZER)
    (temporary / META).write_text(json.dumps(meta, indent=1))
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():  # a resumed training writes the same step again
        shutil.rmtree(folder)
    temporary.rename(folder)


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Load a checkpoint into `module` and `optimizer`, and return its metadata.

    Raises:
        ValueError: the checkpoint is missing, truncated or of another model; nothing is changed then.
    """
    tensors = _read(folder / WEIGHTS)
    _check_same_model(folder, tensors, module)
    try:
        meta = json.loads((folder / META).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise _unreadable(folder / META, error) from error
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _read(folder / OPTIMIZER).items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    module.load_state_dict(tensors)
    return meta


class Checkpoints:
    """The checkpoints of one run, as subfolders of a folder; one is due every so many seconds."""

    def __init__(self, folder: Path, seconds: float = 30.0) -> None:
        self.folder, self.seconds = folder, seconds
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*"):
            shutil.rmtree(unfinished)
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed since `restart_interval`."""
        return time.monotonic() - self._last >= self.seconds

    def restart_interval(self) -> None:
        self._last = time.monotonic()

    def latest(self) -> Path | None:
        """The most recent checkpoint, or None."""
        return max(self._all(), key=lambda path: path.stat().st_mtime_ns, default=None)

    def prune(self, *keep: str) -> None:
        """Delete all checkpoints but those named and the latest."""
        latest = self.latest()
        for path in self._all():
            if path.name not in keep and path != latest:
                shutil.rmtree(path)

    def _all(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def save_state(path: Path, state: Tree, meta: dict[str, str]) -> None:
    """Write a task's state, nested dicts of tensors, to a safetensors file with `meta` in its header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_state(path, {"head": {"w": torch.ones(2)}}, {"classes": "a,b"})
        >>> load_state(path)
        ({'head': {'w': tensor([1., 1.])}}, {'classes': 'a,b'})
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(_copies(flatten(state)), temporary, meta)
    temporary.replace(path)


def load_state(path: Path) -> tuple[Tree, dict[str, str]]:
    """Read the state and the metadata of a file of `save_state`; raises ValueError if it is missing or damaged."""
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
    """Flatten nested dicts of tensors to one dict with keys joined by "/"."""
    if isinstance(state, Tensor):
        return {prefix: state}
    if not isinstance(state, dict):
        raise TypeError(f"a state must be nested dicts of tensors, got {type(state).__name__} at '{prefix}'")
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or "/" in key:
            raise TypeError(f"a state's keys must be strings without '/', got {key!r} at '{prefix}'")
        flat.update(flatten(value, f"{prefix}/{key}" if prefix else key))
    return flat


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies without shared memory, as safetensors requires; tied weights are written under each of their names."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    if not path.exists():
        return ValueError(f"{path} is missing")
    return ValueError(f"{path} is damaged or cut short ({error}); use an older checkpoint, or train again")


def _check_same_model(folder: Path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    expected = module.state_dict()
    differences = [f"it lacks {name}" for name in sorted(expected.keys() - tensors.keys())]
    differences += [f"it has an unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    differences += [
        f"{name} is {tuple(tensors[name].shape)} there and {tuple(expected[name].shape)} here"
        for name in sorted(tensors.keys() & expected.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise ValueError(f"checkpoint {folder} is of another model: {'; '.join(differences[:3])}{more}")
    for name, part in module.named_modules():  # pretrained parts compare the hash of their files
        extra = tensors.get(f"{name}._extra_state".lstrip("."))
        if extra is not None:
            part.set_extra_state(extra)
