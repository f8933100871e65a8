"""The main memory that this process can still allocate: of the machine, of its container, and by its own limits.

A container's limit is that of a control group (cgroup) of Linux, version 1 or 2. Groups are nested, and each on the
path from the process's own up to the root may have a limit; the smallest remainder counts. `ulimit -v` and `ulimit -d`
limit the process itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""Bytes from which on a limit is none: version 1 writes about 2⁶³ for it."""


def free_memory() -> int:
    """Bytes of main memory that this process can allocate; at least 0.

    Example:
        >>> free_memory() > 0
        True
    """
    import psutil

    return max(0, min([psutil.virtual_memory().available, *_of_cgroups(), *_of_process()]))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on the CPU or on a device.

    Example:
        >>> out_of_memory(RuntimeError("CUDA out of memory.")), out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    said = str(error)  # PyTorch has an error of its own for devices alone
    torch_ran_out = isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)
    return torch_ran_out or isinstance(error, MemoryError)


def _of_cgroups(proc: Path = PROC, mounted: Path = CGROUPS) -> Iterator[int]:
    """What each control group of the process leaves."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            yield from _on_path(mounted, path, "memory.max", "memory.current")
            yield from _on_path(mounted / "unified", path, "memory.max", "memory.current")  # version 2 beside 1
        elif "memory" in controllers.split(","):
            yield from _on_path(mounted / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _on_path(root: Path, path: str, limit_file: str, used_file: str) -> Iterator[int]:
    """What is left by each group from the root to a path; inside a container the path may not exist below the root."""
    group = root
    for name in ("", *(part for part in path.split("/") if part not in ("", "..", "."))):
        group = group / name if name else group
        limit, used = _number(group / limit_file), _number(group / used_file)
        if limit is not None and used is not None and limit < NO_LIMIT:
            yield limit - used + _reclaimable(group)


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no such file, or a word, as "max"."""
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _reclaimable(group: Path) -> int:
    """Bytes of files that the group has read lately, which count as used and are given up when memory is needed."""
    with suppress(OSError, ValueError):
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(entries.get("total_inactive_file", entries.get("inactive_file", 0)))
    return 0


def _of_process() -> Iterator[int]:
    """What the limits of the process leave of address space and of data (`ulimit -v`, `ulimit -d`)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    used = psutil.Process().memory_info()
    for name, size in (("RLIMIT_AS", used.vms), ("RLIMIT_DATA", getattr(used, "data", used.rss))):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY and limit < NO_LIMIT:
            yield limit - size
