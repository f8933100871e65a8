"""Tasks frozen to a file, so that others can evaluate on exactly the same tasks, and the source that reads them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kshot import objectives
from kshot.bounded import parse_json
from kshot.tasks.source import StackedSource, TaskSource, hash_into
from kshot.types import SPLITS, Batch, Split, Task, Tree, tree_leaves, tree_map, unstack

FORMAT = "kshot episodes 1"
CHUNK = 16
"""Number of tasks drawn, hashed or checked at once."""


def freeze(source: TaskSource, path: Path | str, *, split: Split = "test", num_tasks: int = 600) -> str:
    """Write tasks 0 … `num_tasks` - 1 of a split to one safetensors file with a descriptive header.

    Needs as much memory as the file: 150 MB for 600 tasks of Omniglot, 5-way 1-shot with 15 queries.

    Returns:
        The content hash of the tasks, equal to that of `kshot.evaluate` on the same tasks.

    Raises:
        ValueError: fewer than one task, an unknown split, a file that exists or cannot be written, an objective that is
            none of `kshot.objectives`.

    Example:
        >>> import tempfile
        >>> from kshot.sources.functions import sinusoids
        >>> path = Path(tempfile.mkdtemp()) / "episodes.safetensors"
        >>> hash = freeze(sinusoids(), path, num_tasks=5)
        >>> torch.equal(episodes(path).task("test", 3).query.inputs, sinusoids().task("test", 3).query.inputs)
        True
    """
    path = Path(path)
    if num_tasks < 1:
        raise ValueError(f"at least one task must be frozen, got {num_tasks}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if path.exists():
        raise ValueError(f"{path} exists and is never written over; choose another file")
    objective = objectives.name_of(source.objective)
    objectives.from_name(objective)  # refuses what `episodes` cannot find again
    digest = hashlib.sha256()
    frozen: Task | None = None
    for start in range(0, num_tasks, CHUNK):
        stack = source.stack(split, range(start, min(start + CHUNK, num_tasks)))
        if frozen is None:
            frozen = tree_map(lambda leaf: leaf.new_empty((num_tasks, *leaf.shape[1:])), stack)
        for whole, part in zip(tree_leaves(frozen), tree_leaves(stack)):
            whole[start : start + CHUNK] = part
        for task in unstack(stack):
            hash_into(digest, task)
    about = {"format": FORMAT, "split": split, "tasks": num_tasks, "sha256": digest.hexdigest(), "objective": objective}
    about |= {"seed": source.seed, "source": source.describe(), "kshot": version("kshot")}
    leaves: dict[str, Tensor] = {}
    units = source.units(split, range(num_tasks))
    if units is not None:
        about |= {"unit": source.unit or source.member, "unit_names": list(source.unit_names(split))}
        about["units"] = units.tolist()
    names = source.classes_of(split, [0])
    if names is not None and not source.objective.task_specific_classes:
        about["classes"] = names[0]
    about["layout"] = {
        part: {field: _named(tree, f"{part}.{field}", leaves) for field, tree in batch._asdict().items()}
        for part, batch in zip(Task._fields, frozen or ())
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(leaves, beside, {"kshot": json.dumps(about)})
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written: {error}") from None
    return digest.hexdigest()


def episodes(path: Path | str | Sequence[Path | str]) -> Episodes:
    """Read tasks that `freeze` wrote to a file, or to several of different splits, and check them against their hash.

    Training tasks repeat after the last one; reading beyond the last val or test task is an error.

    Raises:
        ValueError: a file is missing, truncated, damaged or not a file of episodes, its tasks are not those that were
            frozen, or two files hold the same split or different objectives.
    """
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    if not paths:
        raise ValueError("give at least one file of episodes, which `kshot data freeze` writes")
    files: dict[Split, Path] = {}
    headers: dict[Split, dict[str, Any]] = {}
    for file in map(Path, paths):
        header = _header(file)
        split = header["split"]
        if split in files:
            raise ValueError(f"{file} holds {split} tasks, and so does {files[split]}; give one of them")
        files[split], headers[split] = file, header
    names = {header["objective"] for header in headers.values()}
    if len(names) > 1:
        raise ValueError(f"the files' objectives differ: {', '.join(sorted(names))}; all tasks must share one")
    source = Episodes(files, headers)
    for split in files:
        source.verify(split)
    return source


class Episodes(StackedSource):
    """Tasks of `episodes`, from the path of each split and the header of its file: `tasks`, `sha256`, `source`, …"""

    def __init__(self, paths: Mapping[Split, Path], files: Mapping[Split, dict[str, Any]]) -> None:
        self.paths, self.files = paths, files
        first = next(iter(files.values()))
        self.objective, self.seed = objectives.from_name(first["objective"]), first["seed"]
        self.unit = first.get("unit")

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        if split not in self.files:
            raise ValueError(f"there are no frozen {split} tasks, only {', '.join(self.files)}; give a file of them")
        header, path = self.files[split], self.paths[split]
        count = header["tasks"]
        if split != "train" and max(indices, default=0) >= count:
            raise ValueError(
                f"{path} holds {count} {split} tasks, 0 … {count - 1}; task {max(indices)} was asked for: ask for fewer"
            )
        with safe_open(path, framework="pt") as file:

            def rows(name: str) -> Tensor:
                piece = file.get_slice(name)
                return torch.cat([piece[index % count : index % count + 1] for index in indices])

            return _built_task(header["layout"], rows)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        units = self.files[split].get("units")
        return None if units is None else np.array(units)[np.array(indices) % len(units)]

    def unit_names(self, split: Split) -> Sequence[str]:
        return self.files[split].get("unit_names", [])

    def classes_of(self, split: Split, indices: Sequence[int]) -> list[list[str]] | None:
        shared = self.files[split].get("classes")
        return super().classes_of(split, indices) if shared is None else [shared for _ in indices]

    def with_shots(self, shots: int) -> Episodes:
        """Itself if the frozen tasks have at least `shots` support examples: frozen tasks do not change."""
        frozen = self.describe().get("shots", 0)
        most = frozen[-1] if isinstance(frozen, list) else frozen
        if most < shots:
            raise ValueError(f"the frozen tasks have {most} shots, fewer than {shots}; freeze tasks with more")
        return self

    def num_tasks(self, split: Split) -> int | None:
        return self.files[split]["tasks"] if split in self.files else None

    def verify(self, split: Split) -> None:
        """Raise ValueError if the tasks of a split do not have the hash of the file's header."""
        digest, header = hashlib.sha256(), self.files[split]
        for start in range(0, header["tasks"], CHUNK):
            for task in unstack(self.stack(split, range(start, min(start + CHUNK, header["tasks"])))):
                hash_into(digest, task)
        if digest.hexdigest() != header["sha256"]:
            raise ValueError(
                f"{self.paths[split]} is damaged: its tasks hash to {digest.hexdigest()[:16]}…, and its header says "
                f"{header['sha256'][:16]}…; get it again"
            )

    def describe(self) -> dict[str, Any]:
        first = next(iter(self.files.values()))["source"]
        frozen = {
            split: {"file": self.paths[split].name, "tasks": header["tasks"], "sha256": header["sha256"]}
            for split, header in self.files.items()
        }
        return first | {"source": f"episodes of {first.get('source', 'a source')}", "seed": self.seed, "frozen": frozen}


def _named(tree: Tree, name: str, leaves: dict[str, Tensor]) -> Any:
    """The layout of a tree as JSON, with names for tensors, which are added to `leaves`."""
    if isinstance(tree, Tensor):
        leaves[name] = tree.contiguous()
        return name
    if isinstance(tree, dict):
        return {"dict": {key: _named(value, f"{name}.{key}", leaves) for key, value in tree.items()}}
    kind = "tuple" if isinstance(tree, tuple) else "list"
    return {kind: [_named(value, f"{name}.{number}", leaves) for number, value in enumerate(tree)]}


def _built(layout: Any, tensor: Callable[[str], Tensor]) -> Tree:
    """The tree of a layout that `_named` made."""
    if isinstance(layout, str):
        return tensor(layout)
    ((kind, inner),) = layout.items()
    if kind == "dict":
        return {key: _built(value, tensor) for key, value in inner.items()}
    return {"list": list, "tuple": tuple}[kind](_built(value, tensor) for value in inner)


def _built_task(layout: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> Task:
    return Task(*(Batch(*(_built(layout[p][field], tensor) for field in Batch._fields)) for p in Task._fields))


def _header(path: Path) -> dict[str, Any]:
    """The header of a file of episodes, checked."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is cut short, damaged or no safetensors file ({error}); get it again") from None
    if "kshot" not in meta:
        raise ValueError(f"{path} holds no episodes: expected a file that `kshot data freeze` wrote")
    try:
        about = parse_json(meta["kshot"])
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, expected {FORMAT!r}")
        kinds = {"tasks": int, "sha256": str, "objective": str, "seed": int, "source": dict}
        wrong = [key for key, kind in kinds.items() if not isinstance(about[key], kind)]
        if wrong or about["split"] not in SPLITS:
            raise ValueError(f"its {(wrong or ['split'])[0]} is missing or invalid")
        objectives.from_name(about["objective"])
        names: list[str] = []

        def listed(name: str) -> Tensor:
            names.append(name)
            return torch.empty(0)

        _built_task(about["layout"], listed)
        if sorted(names) != sorted(shapes) or {shape[0] for shape in shapes.values()} != {about["tasks"]}:
            raise ValueError("its tensors are not those that it lists")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} holds no episodes that this kshot reads: its header is wrong ({error})") from None
    return about
