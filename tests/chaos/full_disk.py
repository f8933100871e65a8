"""Fill the disk under a run, free it, and resume: `python -m chaos.full_disk 50` (with --mount: in a real tmpfs)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.kills import Reference, reference
from chaos.layer import Disk
from chaos.runs import (
    CASES,
    command,
    differences,
    ended,
    in_child,
    last_line,
    outcome,
    prepare,
    run_words,
    started,
)

FULL = 5
PAGE = 4096


def fill_and_free(folder: Path, whole: Reference, limits: dict[str, int]) -> str:
    """Run on a disk that gets full, then resume on a larger one; what is wrong, "" if nothing."""
    out, log = folder / "run", folder / "log"
    folder.mkdir()
    words = run_words(whole.file, out, resume=False)
    code = in_child(lambda: command(*words, disk=Disk(out, **limits)), log)
    return _judge_full(code, log, whole) or _judge_resumed(out, log, whole)


def _judge_full(code: int, log: Path, whole: Reference) -> str:
    said = log.read_text(errors="replace")
    if "Traceback" in said or code not in (FULL, whole.code) or (code == FULL and "is full" not in last_line(log)):
        return f"the full disk ends with {code}: {last_line(log)}"
    return ""


def _judge_resumed(out: Path, log: Path, whole: Reference) -> str:
    code = in_child(lambda: command(*run_words(whole.file, out, resume=out.exists())), log)
    if code != whole.code:
        return f"lost: --resume ends with {code}: {last_line(log)}"
    return ", ".join(differences(outcome(out), whole.outcome))


@contextmanager
def small_disk(folder: Path, **limits: int) -> Iterator[Callable[[], None]]:
    """Mount a tmpfs of some size or number of inodes; gives a function that makes it large."""
    folder.mkdir()
    options = ",".join(f"{name}={value}" for name, value in limits.items())
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10k", folder], check=True) and None
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_mounted(folder: Path, whole: Reference, **limits: int) -> str:
    """`fill_and_free` in a file system of its own."""
    log = folder.with_suffix(".log")
    with small_disk(folder, **limits) as enlarge:
        out = folder / "runs" / "run"
        code = ended(started(lambda: command(*run_words(whole.file, out, resume=False)), log))
        fault = _judge_full(code, log, whole)
        enlarge()
        return fault or _judge_resumed(out, log, whole)


def check(levels: int, whole: Reference, *, mounted: bool = False) -> list[str]:
    """Fill the disk at levels spread over all that a run writes, and over all files that it makes; the faults."""
    faults = []
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        for level in range(levels):
            num_bytes, num_files = whole.num_bytes * level // levels, whole.num_files * level // levels
            if mounted:
                size = (level + 1) * PAGE * 2
                faults.append(fill_mounted(scratch / f"size-{level}", whole, size=size))
                faults.append(fill_mounted(scratch / f"inodes-{level}", whole, size=2**26, nr_inodes=level + 3))
            else:
                faults.append(fill_and_free(scratch / f"bytes-{level}", whole, {"num_bytes": num_bytes}))
                faults.append(fill_and_free(scratch / f"files-{level}", whole, {"num_files": num_files}))
    finally:
        shutil.rmtree(scratch)
    return [
        f"level {number // 2}, {('bytes', 'files')[number % 2]}: {fault}"
        for number, fault in enumerate(faults)
        if fault
    ]


if __name__ == "__main__":
    words = sys.argv[1:]
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        found = check(int(words[0]), reference(Path(folder), CASES["one run"]), mounted="--mount" in words)
    print("\n".join(found))
    print(f"{words[0]} levels of bytes and {words[0]} of files: {len(found)} lost or untold")
    sys.exit(bool(found))
