"""Checkpoints of a training, and states of adapted tasks, as safetensors and JSON; never pickle.

A checkpoint is a folder with a manifest, `meta.json`, that holds its number, the name of the folder, the SHA-256 of
each file and of itself. It is written under another name, flushed to the disk, and renamed, so that what has a valid
manifest is complete. Of a folder that is deleted, the manifest goes first.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kshot.bounded import open_file
from kshot.files import CHECKSUM, PART, DamagedFile, read_json, sha256_of, sync, whole_file, write_json
from kshot.types import Tree

WEIGHTS, OPTIMIZER, META = "weights.safetensors", "optimizer.safetensors", "meta.json"
RARER, LONGEST = 40, 10
"""Large checkpoints are rarer: they are written for a fortieth of the time, unless tenfold intervals are too short."""
KEPT = 2
"""Checkpoints, the latest, that are never deleted: if the last is damaged, a run resumes from the one before it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, copied from a module and an optimiser, which may change while it is written.

    Attributes:
        tensors: by name, for each file.
        meta: to be written as JSON.
    """

    tensors: Mapping[str, dict[str, Tensor]]
    meta: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer | None, meta: dict[str, Any]) -> Snapshot:
        """Copy weights, the state of the optimiser, and `meta`."""
        tensors = {WEIGHTS: _copies(module.state_dict())}
        if optimizer is not None:
            tensors[OPTIMIZER] = _copies(_optimizer_tensors(optimizer))
        return cls(tensors, copy.deepcopy(meta))

    def write(self, folder: Path) -> None:
        """Write it as the new folder `folder`, see `save_checkpoint`."""
        number = 1 + max((number for number, _ in _numbered(folder.parent)), default=0)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}{PART}")
        try:
            temporary.mkdir(parents=True)
            for name, of_file in self.tensors.items():
                _save(of_file, temporary / name)
                sync(temporary / name)
            files = {name: sha256_of(temporary / name) for name in self.tensors}
            about = {"number": number, "name": folder.name, "files": files}
            write_json(temporary / META, self.meta | {"checkpoint": about})
            temporary.rename(folder)  # fails if it is there, as it is not empty
        except BaseException:
            _delete(temporary, [*self.tensors, META])
            raise
        sync(folder.parent)


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None, meta: dict[str, Any]) -> None:
    """Write a checkpoint as the new folder `folder`: weights, optimiser state, and `meta` as JSON.

    Its number is the next of the checkpoints beside it.

    Raises:
        OSError: the folder exists, or cannot be written, as where the disk is full; nothing of it is left then.
    """
    Snapshot.of(module, optimizer, meta).write(folder)


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Load a checkpoint into `module` and `optimizer`, and return its metadata.

    Raises:
        ValueError: the checkpoint is missing, damaged or of another model; nothing is changed then.
    """
    meta = read_manifest(folder)
    tensors = _read(folder / WEIGHTS)
    _check_same_model(folder, tensors, module)
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _read(folder / OPTIMIZER).items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    module.load_state_dict(tensors)
    del meta["checkpoint"]
    return meta


def read_manifest(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, after comparing all its files with their SHA-256.

    Raises:
        DamagedFile: a file is missing, or is not what was written.
    """
    meta = read_json(folder / META)
    for name, expected in meta["checkpoint"]["files"].items():
        if sha256_of(folder / name) != expected:
            raise DamagedFile(
                f"{folder / name} is damaged: its bytes are not those that {folder / META} says were written"
            )
    return meta


class Checkpoints:
    """The checkpoints of one run, as subfolders of a folder; one is due every so many seconds, or more
    rarely where writing takes long.

    Folders and files that are no checkpoints are left alone. Nothing is written or deleted but by `save`, `delete` and
    `prune`.
    """

    def __init__(self, folder: Path, seconds: float = 30.0) -> None:
        self.folder, self.seconds = folder, seconds
        self._last, self._interval = time.monotonic(), seconds
        self._writing: Future[None] | None = None

    def due(self) -> bool:
        """Whether the interval has passed since the last checkpoint; raises OSError if that could not be written."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is None and time.monotonic() - self._last >= self._interval

    def save(self, name: str, snapshot: Snapshot) -> None:
        """Write a checkpoint, after which the interval begins anew.

        It is `RARER` times the time of writing if that is longer, and at most `LONGEST` times as long as was asked for.

        Raises:
            OSError: this checkpoint, or the one that is being written, cannot be written.
        """
        self.wait()
        self._write(name, snapshot)

    def save_in_background(self, name: str, snapshot: Snapshot, *keep: str) -> None:
        """As `save`, by a thread, and `prune` after it; what fails is raised by the next call of `due` or `wait`."""

        def write() -> None:
            self._write(name, snapshot)
            self.prune(*keep)

        self.wait()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing = thread.submit(write)
        thread.shutdown(wait=False)  # it ends after this

    def wait(self) -> None:
        """Wait until nothing is being written; raises OSError if it could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, name: str, snapshot: Snapshot) -> None:
        started = time.monotonic()
        snapshot.write(self.folder / name)
        self._last = time.monotonic()
        self._interval = min(max(self.seconds, RARER * (self._last - started)), LONGEST * self.seconds)

    def free(self, name: str) -> str:
        """The name, or one with a number if there is such a folder, as where a step is trained again."""
        names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        return next(name for name in names if not (self.folder / name).exists())

    def examine(self) -> Iterator[tuple[Path, dict[str, Any] | DamagedFile]]:
        """Each checkpoint's folder, and its metadata or what is wrong with it; the latest ones first."""
        for _, folder in sorted(_numbered(self.folder, damaged=True), reverse=True):
            try:
                yield folder, read_manifest(folder)
            except DamagedFile as error:
                yield folder, error

    def latest(self, *, may_go_back: bool = True) -> Path | None:
        """The checkpoint of the highest number, or None if there is none at all.

        Args:
            may_go_back: whether the one before it is taken if it is damaged, as where training goes on from there;
                this is logged.

        Raises:
            DamagedFile: all checkpoints are damaged, or the latest is and `may_go_back` is False.
        """
        error: DamagedFile | None = None
        for folder, found in self.examine():
            if not isinstance(found, DamagedFile):
                return folder
            if not may_go_back:
                raise DamagedFile(
                    f"{found}; `kshot run` with --resume goes back to the checkpoint before it and trains on"
                ) from found
            error = found
            logger.warning("%s; going back to the checkpoint before it", found)
        if error is not None:
            raise DamagedFile(f"no checkpoint in {self.folder} is undamaged; the oldest one: {error}") from error
        return None

    def latest_for_training(self) -> Path | None:
        """`latest`, after renaming the damaged ones after it, which are kept under hidden names."""
        latest = self.latest()
        for _, folder in sorted(_numbered(self.folder, damaged=True), reverse=True):
            if folder == latest:
                break
            aside = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.damaged")
            logger.warning("the damaged checkpoint %s is kept as %s", folder, aside.name)
            folder.rename(aside)
        return latest

    def manifests(self) -> list[Path]:
        """The manifests of all checkpoints but those whose manifest is damaged."""
        return [folder / META for _, folder in _numbered(self.folder)]

    def delete(self, folder: Path) -> None:
        """Delete a checkpoint; where this is interrupted, `prune` deletes the rest."""
        doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}{PART}")
        folder.rename(doomed)
        _delete(doomed, [META, WEIGHTS, OPTIMIZER])

    def prune(self, *keep: str) -> None:
        """Delete all checkpoints but those named and the latest `KEPT`, and what killed processes left of others."""
        for _, folder in sorted(_numbered(self.folder))[:-KEPT]:
            if folder.name not in keep:
                self.delete(folder)
        for left in self.folder.glob(f".*{PART}"):
            _delete(left, [META, WEIGHTS, OPTIMIZER])


def _delete(folder: Path, names: list[str]) -> None:
    """Delete the named files of a folder, and it, if nothing else is in it."""
    with suppress(OSError):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for part in folder.glob(f".{META}.*{PART}"):
            part.unlink()
        folder.rmdir()


def _numbered(parent: Path, damaged: bool = False) -> Iterator[tuple[int, Path]]:
    """The number and folder of each checkpoint in a folder; with `damaged`, those without a manifest as the last."""
    if not parent.is_dir():
        return
    for folder in parent.iterdir():
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        try:
            own = read_json(folder / META)["checkpoint"]
            number, name = int(own["number"]), own["name"]
        except (DamagedFile, KeyError, TypeError):
            lost = damaged and ((folder / META).exists() or (folder / WEIGHTS).exists())
            number, name = sys.maxsize, folder.name if lost else ""
        if name == folder.name:  # else a copy of another folder
            yield number, folder


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def save_state(path: Path, state: Tree, meta: dict[str, str]) -> None:
    """Write a task's state, nested dicts of tensors, to a safetensors file with `meta` in its header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_state(path, {"head": {"w": torch.ones(2)}}, {"classes": "a,b"})
        >>> load_state(path)
        ({'head': {'w': tensor([1., 1.])}}, {'classes': 'a,b'})
    """
    tensors = _copies(flatten(state))
    if CHECKSUM in meta:
        raise ValueError(f"the metadata of a state cannot have the key {CHECKSUM!r}, which is that of its checksum")
    with whole_file(path) as temporary:
        _save(tensors, temporary, meta | {CHECKSUM: _digest(tensors, meta)})


def load_state(path: Path) -> tuple[Tree, dict[str, str]]:
    """Read the state and the metadata of a file of `save_state`; raises `DamagedFile` if it is missing or damaged."""
    tensors = _read(path)
    with safe_open(path, framework="pt") as file:
        meta = file.metadata() or {}
    if meta.pop(CHECKSUM, None) != _digest(tensors, meta):
        raise DamagedFile(f"{path} is damaged, or no state of kshot: its values do not match its checksum")
    return unflatten(tensors), meta


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


def unflatten(flat: Mapping[str, Tensor]) -> Tree:
    """The nested dicts of tensors that `flatten` has flattened."""
    state: dict[str, Any] = {}
    for name, tensor in flat.items():
        *outer, last = name.split("/")
        node = state
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = tensor
    return state


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the memory of the CPU, each its own, as safetensors requires; tied weights have one for each name."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _save(tensors: dict[str, Tensor], path: Path, meta: dict[str, str] | None = None) -> None:
    """Write a safetensors file; raises OSError if it cannot be written."""
    try:
        save_file(tensors, path, meta)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        open_file(path).close()  # anything but a file, as a FIFO, is refused
        # Copies have no part in the file, which may change, and begin where those of new tensors do, by which sums of
        # some processors round.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DamagedFile(f"{path} is damaged or cut short: {error}") from error


def _digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors, and of metadata."""
    key = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        key.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        key.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return key.hexdigest()


def _check_same_model(folder: Path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    expected = module.state_dict()
    differences = [f"it lacks {name}" for name in sorted(expected.keys() - tensors.keys())]
    differences += [f"it has an unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    differences += [
        f"{name} is {tuple(tensors[name].shape)} there and {tuple(expected[name].shape)} here"
        for name in sorted(tensors.keys() & expected.keys())
        if tensors[name].shape != expected[name].shape
    ]
    differences += [
        f"{name} is {tensors[name].dtype} there and {expected[name].dtype} here"
        for name in sorted(tensors.keys() & expected.keys())
        if isinstance(expected[name], Tensor) and tensors[name].dtype != expected[name].dtype
    ]
    if differences:
        more = f", and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise ValueError(f"checkpoint {folder} is of another model: {'; '.join(differences[:3])}{more}")
    for name, part in module.named_modules():  # pretrained parts compare the hash of their files
        extra = tensors.get(f"{name}._extra_state".lstrip("."))
        if extra is not None:
            part.set_extra_state(extra)
