"""A file system that ends: every change of a folder is an event, at which the process is killed or the disk is full.

The functions of `os` and `io` by which Python changes files are wrapped, and the one by which safetensors writes. Only
changes below one folder are events. The wrapping is never undone: it is for child processes.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

real_truncate = os.truncate
NEW_NAMES = ("rename", "replace", "link", "symlink")  # whose second argument is the path that matters


@dataclass
class Disk:
    """What happens to the changes below a folder.

    Attributes:
        root: the folder.
        kill_at: number of the event, from 0, at which the process is killed, or a pattern of its kind and path; None
            never.
        when: "before" or "after" the event, or "torn": in the middle, so that a write leaves half of its bytes.
        num_bytes, num_files: how much can be written, and how many files and folders made, before the disk is full.
        events: (kind, path below the folder) of all events so far.
        written, made: bytes written, and files and folders made, so far.
    """

    root: Path
    kill_at: int | str | None = None
    when: str = "before"
    num_bytes: int | None = None
    num_files: int | None = None
    events: list[tuple[str, str]] = field(default_factory=list)
    written: int = 0
    made: int = 0

    def change(self, kind: str, path: str, work: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Do an event, unless the process is killed at it; `half` does the half of it."""
        place = os.path.realpath(os.path.dirname(path)) + "/" + os.path.basename(path)
        if not place.startswith(f"{os.path.realpath(self.root)}/"):
            return work()
        below = os.path.relpath(place, os.path.realpath(self.root))
        if isinstance(self.kill_at, str):
            here = re.search(self.kill_at, f"{kind} {below}") is not None
        else:
            here = len(self.events) == self.kill_at
        self.events.append((kind, below))
        if here and self.when == "torn" and half is not None:
            half()
        if here and self.when != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = work()
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def take_bytes(self, path: str, wanted: int) -> int:
        """How many of some bytes can be written; an error if none."""
        if not self._is_below(path):
            return wanted
        taken = wanted if self.num_bytes is None else min(wanted, self.num_bytes - self.written)
        self.written += taken
        if wanted and not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return taken

    def take_file(self, path: str) -> None:
        """Count a new file; an error if there can be no more."""
        if self._is_below(path):
            if self.made == self.num_files:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            self.made += 1

    def _is_below(self, path: str) -> bool:
        return os.path.realpath(path).startswith(f"{os.path.realpath(self.root)}/")

    def install(self) -> None:
        """Wrap the functions of this process."""
        for name in ("unlink", "remove", "rmdir", "mkdir", "truncate", *NEW_NAMES):
            setattr(os, name, self._by_path(name, getattr(os, name)))
        for name in ("fsync", "ftruncate"):
            setattr(os, name, self._by_handle(name, getattr(os, name)))
        os.open = self._os_open(os.open)  # type: ignore[assignment]
        os.write = self._os_write(os.write)  # type: ignore[assignment]
        io.open = builtins.open = self._open(io.open)  # type: ignore[assignment]
        safetensors.torch.serialize_file = self._serialize(safetensors.torch.serialize_file)

    def _by_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = _path(args[name in NEW_NAMES], kwargs.get("dir_fd", kwargs.get("dst_dir_fd")))
            if name in ("mkdir", "symlink"):
                self.take_file(path)
            return self.change(name, path, lambda: function(*args, **kwargs))

        return wrapped

    def _by_handle(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda handle, *args: self.change(name, _path(handle), lambda: function(handle, *args))

    def _os_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
            work = lambda: function(path, flags, *args, **kwargs)  # noqa: E731
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return work()
            place = _path(path, kwargs.get("dir_fd"))
            if flags & os.O_CREAT and not os.path.lexists(place):
                self.take_file(place)
            return self.change("open", place, work)

        return wrapped

    def _os_write(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(handle: int, content: Any) -> Any:
            try:
                path = _path(handle)
            except OSError:
                return function(handle, content)
            content = memoryview(content)[: self.take_bytes(path, len(content))]
            half = lambda: function(handle, content[: len(content) // 2])  # noqa: E731
            return self.change("write", path, lambda: function(handle, content), half)

        return wrapped

    def _open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class Counted(io.FileIO):
            def write(self, content: Any) -> int:
                path, content = str(self.name), memoryview(content).cast("B")
                content = content[: disk.take_bytes(path, len(content))]
                write = super().write
                return disk.change("write", path, lambda: write(content), lambda: write(content[: len(content) // 2]))

            def truncate(self, size: int | None = None) -> int:
                truncate = super().truncate
                return disk.change("truncate", str(self.name), lambda: truncate(size))

        def wrapped(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or kwargs.get("opener") is not None:
                return function(file, mode, buffering, *args, **kwargs)
            path, kinds = os.fspath(file), "".join(sorted(set(mode) - set("bt")))
            if not os.path.lexists(path) and "r" not in mode:
                disk.take_file(path)
            raw = disk.change("open", os.fspath(path), lambda: Counted(path, kinds))
            if buffering == 0:
                return raw
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

        return wrapped

    def _serialize(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            place = os.fspath(path)

            def half() -> None:
                function(tensors, path, *args, **kwargs)
                real_truncate(place, os.path.getsize(place) // 2)

            def work() -> None:
                new = not os.path.lexists(place)
                try:
                    if new:
                        self.take_file(place)
                    function(tensors, path, *args, **kwargs)
                    size = os.path.getsize(place)
                    taken = self.take_bytes(place, size)
                    if taken < size:
                        real_truncate(place, taken)
                        self.take_bytes(place, size - taken)
                except OSError as error:  # as safetensors says it
                    raise SafetensorError(
                        f"Error while serializing: I/O error: {error.strerror} (os error 28)"
                    ) from None

            return self.change("write", place, work, half)

        return wrapped


def _path(path: Any, folder: int | None = None) -> str:
    """The path of a path or a handle, which may be relative to the handle of a folder."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text) if folder is not None else os.path.abspath(text)
