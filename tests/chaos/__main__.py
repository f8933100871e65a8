"""All harnesses for some seconds, `python -m chaos short`, or with planted faults, `python -m chaos faults`."""

from __future__ import annotations

import pickle
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos import corruptions, faults, full_disk, kills, races
from chaos.runs import SINE, in_child, prepare

KILLS, LEVELS, CORRUPTIONS, STARTS = 10, 3, 60, 12


def short(seed: int) -> dict[str, list[str]]:
    """The faults that each harness finds in a few seconds."""
    found: dict[str, list[str]] = {}
    wrong = races.check_caches(STARTS)
    found["caches"] = [f"{wrong} wrong readers"] * bool(wrong)
    prepare()
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        found["kills"] = kills.check(KILLS, seed, (SINE,)).faults
        found["full disks"] = full_disk.check(LEVELS)
        runs = corruptions.subjects(scratch, (SINE,), ("whole",))
        found["corruptions"] = corruptions.damage_all(runs, CORRUPTIONS, random.Random(seed), scratch).faults
        found["starts"] = races.check_starts(1)
        found["clocks"] = races.check_clocks(1)
    finally:
        shutil.rmtree(scratch)
    return found


def planted() -> dict[str, list[str]]:
    """The planted faults that are not found."""
    prepare()
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        whole = kills.reference(scratch / "kills", SINE)
        runs = _subjects(scratch / "runs")
        made = faults.Made(scratch, whole, runs, full_disk.whole_run(scratch / "disk"))
        return {"not found": faults.unfound(made)}
    finally:
        shutil.rmtree(scratch)


def _subjects(folder: Path) -> list[corruptions.Subject]:
    """Runs to damage, made by a child: a process that read a table has threads of polars, and can have no children."""
    folder.mkdir()
    file = folder / "subjects"
    code = in_child(
        lambda: file.write_bytes(pickle.dumps(corruptions.subjects(folder, (SINE,), ("whole",)))), folder / "log"
    )
    assert code == 0, (folder / "log").read_text()
    made: list[corruptions.Subject] = pickle.loads(file.read_bytes())
    return made


if __name__ == "__main__":
    words, started = sys.argv[1:], time.monotonic()
    results = planted() if words[0] == "faults" else short(int(words[1]) if words[1:] else 0)
    for name, found in results.items():
        print(f"{name}: {len(found)} faults", *found, sep="\n  ")
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(any(results.values()))
