"""A copy of a run folder in an object store, for machines whose disks do not outlive them.

URL/snapshots/NUMBER.json   the files of the run folder, by name, each with the SHA-256 of its content
URL/objects/SHA256          contents

A snapshot is written after all that it names, so that the latest one is whole, whenever a process is killed. The two
latest are kept.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from kshot.data.cache import scratch_folder
from kshot.deciding.decisions import EventLog
from kshot.files import digest, is_empty, sha256_of

log = logging.getLogger(__name__)

SECONDS = 30.0
"""Between two snapshots, at least."""
STAGED = ".mirror"
"""Folder in the run folder with what is being sent."""
CHECKPOINTS = "checkpoints"
"""Folder of files that are never changed, and need no copy before they are sent."""
KEPT = 2
Files = dict[str, str]
"""Name of a file of the run folder, with forward slashes, to the SHA-256 of its content."""


class Mirror:
    """A copy of a run folder at a URL of `fsspec`, such as `s3://bucket/run`, `gs://…` or `file:///shared/run`.

    Raises:
        ValueError: a URL of an unknown kind, or of one whose package is not installed.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        try:
            self.store, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"mirror {url}: {error}") from error
        self.snapshots, self.objects = f"{root}/snapshots", f"{root}/objects"

    def latest(self) -> tuple[int, Files]:
        """The number of the latest whole snapshot and its files; 0 and none if there is no snapshot."""
        for number in sorted(self.numbers(), reverse=True):
            if files := self._files_of(number):
                return number, files
        return 0, {}

    def restore(self, folder: Path) -> bool:
        """Fetch the run into an empty folder, whole or not at all; returns whether there was one.

        Raises:
            ValueError: a content is missing or damaged.
        """
        number, files = self.latest()
        if not files:
            return False
        with scratch_folder(folder) as scratch:
            run = scratch / "run"  # with the permissions of any new folder, which a scratch folder has not
            for name, sha256 in files.items():
                path = run / _safe(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.store.get_file(f"{self.objects}/{sha256}", str(path))
                except FileNotFoundError:
                    raise ValueError(f"{self.url} lacks the content of {name} in snapshot {number}") from None
                if sha256_of(path) != sha256:
                    raise ValueError(f"{self.url}: the content of {name} is damaged in snapshot {number}")
            shutil.rmtree(folder, ignore_errors=True)
            run.rename(folder)
        return True

    def send(self, number: int, files: Mapping[str, Path], known: set[str]) -> set[str]:
        """Write a snapshot, and delete old ones; returns the SHA-256 of the contents that are there now.

        Args:
            files: by name.
            known: SHA-256 of the contents that are there.

        Raises:
            RuntimeError: there is such a snapshot already, of another process.
        """
        if self.store.exists(self._path(number)):
            raise RuntimeError("another process writes to it")
        hashes = {name: sha256_of(path) for name, path in files.items()}
        self.store.makedirs(self.objects, exist_ok=True)
        self.store.makedirs(self.snapshots, exist_ok=True)
        for name, path in files.items():
            if hashes[name] not in known:
                self.store.put_file(str(path), f"{self.objects}/{hashes[name]}")
        content = {"files": hashes, "sha256": digest({"files": hashes})}
        self.store.pipe_file(self._path(number), json.dumps(content).encode())
        needed = set(hashes.values())
        for other in self.numbers():
            if other <= number - KEPT:
                self.store.rm_file(self._path(other))
            else:
                needed |= set(self._files_of(other).values())
        for left in self._names(self.objects) - needed:
            self.store.rm_file(f"{self.objects}/{left}")
        return needed

    def numbers(self) -> list[int]:
        """The numbers of all snapshots, also of one that is torn."""
        names = (PurePosixPath(name) for name in self._names(self.snapshots))
        return [int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdecimal()]

    def _files_of(self, number: int) -> Files:
        """The files of a snapshot; none of one that is torn."""
        with suppress(ValueError, KeyError, TypeError):
            content = json.loads(self.store.cat_file(self._path(number)))
            if digest({"files": content["files"]}) == content["sha256"]:
                return content["files"]
        return {}

    def _path(self, number: int) -> str:
        return f"{self.snapshots}/{number:08}.json"

    def _names(self, folder: str) -> set[str]:
        self.store.invalidate_cache()
        try:
            return {PurePosixPath(path).name for path in self.store.ls(folder, detail=False)}
        except FileNotFoundError:
            return set()


def take_from_mirror(url: str, folder: Path, *, resume: bool) -> None:
    """Prepare the folder of a run that is mirrored: with `resume`, an empty one is filled from the mirror.

    Raises:
        ValueError: the mirror holds a run, and a new one is to be started; or it cannot be read.
    """
    mirror = Mirror(url)
    if not is_empty(folder):
        return
    try:
        found = mirror.restore(folder) if resume else mirror.latest()[0] > 0
    except ValueError:
        raise
    except Exception as error:  # of any store, or of the network
        raise ValueError(f"the mirror {url} cannot be read: {error}") from error
    if found and not resume:
        raise ValueError(f"{url} already holds a run: choose another --mirror, or continue it by --resume")
    folder.mkdir(parents=True, exist_ok=True)


class Mirroring:
    """Sends a run folder to a mirror while the run goes on; where that fails, the run goes on without it.

    What is sent is the folder as a process that is killed would leave it: it is taken between two writes.
    """

    def __init__(self, mirror: Mirror, folder: Path) -> None:
        self.mirror, self.folder = mirror, folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kshot-mirror")
        self._sending: Future[None] | None = None
        self._number, self._known = 0, set[str]()
        self._last = time.monotonic()
        self._failed = ""

    def follow(self, event_log: EventLog) -> None:
        """Send the folder from time to time, when the log has another event."""
        event_log.listeners.append(self._event)

    def close(self) -> None:
        """Send the folder as it is at last, and wait until it is there."""
        if not is_empty(self.folder):
            self._wait()
            self._stage()
        self._wait()
        self._thread.shutdown()

    def _event(self, event: Mapping[str, Any]) -> None:
        idle = self._sending is None or self._sending.done()
        if idle and time.monotonic() - self._last >= SECONDS:
            self._stage()

    def _stage(self) -> None:
        """Keep the files as they are now, and send them in the background."""
        self._last = time.monotonic()
        with self._going_on():
            files = _staged(self.folder)
            self._sending = self._thread.submit(self._send, files)

    def _send(self, files: Mapping[str, Path]) -> None:
        with self._going_on():
            if not self._number:
                self._number = max(self.mirror.numbers(), default=0)  # the last one may be torn
                self._known = set(self.mirror.latest()[1].values())
            self._known = self.mirror.send(self._number + 1, files, self._known)
            self._number += 1
            self._failed = ""
            shutil.rmtree(self.folder / STAGED, ignore_errors=True)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A context that warns of each of its errors once and goes on: they come from a full disk, a store or a net."""
        try:
            yield
        except Exception as error:
            if str(error) != self._failed:
                log.warning("the mirror %s is not up to date: %s", self.mirror.url, error)
            self._failed = str(error)
            shutil.rmtree(self.folder / STAGED, ignore_errors=True)

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.result()


@contextmanager
def mirrored(url: str | None, folder: Path) -> Iterator[Callable[[EventLog], None]]:
    """A context in which a run folder is sent to a mirror; yields what is to be called with the log of the run."""
    if url is None:
        yield lambda event_log: None
        return
    mirroring = Mirroring(Mirror(url), folder)
    try:
        yield mirroring.follow
    finally:
        mirroring.close()


def _staged(folder: Path) -> dict[str, Path]:
    """Copies of the files of a run folder, by name, without hidden ones; links to those that are never changed."""
    stage, files = folder / STAGED, dict[str, Path]()
    shutil.rmtree(stage, ignore_errors=True)
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        files[place.as_posix()] = kept = stage / place
        kept.parent.mkdir(parents=True, exist_ok=True)
        if place.parts[0] == CHECKPOINTS:
            with suppress(OSError):  # a disk without links
                os.link(path, kept)
                continue
        shutil.copyfile(path, kept)
    return files


def _safe(name: str) -> Path:
    """The place of a file in its folder; ValueError if it is not in it."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"a file of the mirror has the name {name}, which leads out of the folder")
    return Path(*place.parts)
