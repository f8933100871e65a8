"""The files of onnxruntime-web that become part of a page, in the one version whose hashes are known.

They are not part of kshot, and nothing is downloaded here: a user fetches the package by npm, and it is verified.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from pathlib import Path

from kshot.bounded import read_bytes
from kshot.data.cache import cache_folder

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package, as npm's own lock files state it."""

SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
FILES = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The files of a page, which compute on the processor alone: SHA-256 of each."""


def package() -> Path:
    """Where the package is looked for: a file of the cache folder, as `npm pack` names it."""
    return cache_folder() / f"onnxruntime-web-{VERSION}.tgz"


def runtime_files(path: Path | None = None) -> dict[str, bytes]:
    """The content of each of `FILES`.

    Args:
        path: the package as `npm pack` writes it, or the folder of an installed one, `node_modules/onnxruntime-web`; by
            default `package()`.

    Raises:
        ValueError: it is missing, or is not this version with these hashes.
    """
    where = package() if path is None else path
    if not where.exists():
        raise ValueError(f"there is no {where}: a page needs onnxruntime-web, which is fetched by `{fetch()}`")
    try:
        found = _of_folder(where) if where.is_dir() else _of_package(where)
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}") from error
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise _other(where, f"its {name} has another SHA-256")
    return found


def fetch() -> str:
    """The command that fetches the package."""
    return f"npm pack onnxruntime-web@{VERSION} --pack-destination {cache_folder()}"


def _of_folder(folder: Path) -> dict[str, bytes]:
    parent = folder / "dist" if (folder / "dist").is_dir() else folder
    missing = [name for name in FILES if not (parent / name).exists()]
    if missing:
        raise _other(folder, f"it has no {missing[0]}")
    return {name: read_bytes(parent / name) for name in FILES}


def _of_package(file: Path) -> dict[str, bytes]:
    """The files of a package, which is verified before it is unpacked."""
    content = read_bytes(file)
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != INTEGRITY:
        raise _other(file, f"its integrity is {found[:20]}…, and not {INTEGRITY[:20]}…")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: member.read() for name, member in members.items() if member is not None}


def _other(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not onnxruntime-web {VERSION}: {why}; fetch that version by `{fetch()}`")
