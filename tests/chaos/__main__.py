"""All harnesses for some seconds, `python -m chaos short`, or all planted faults, `python -m chaos faults`."""

from __future__ import annotations

import pickle
import random
import sys
import tempfile
import time
from pathlib import Path

from chaos import corruptions, faults, full_disk, kills, races
from chaos.runs import CASES, SINE, in_child, prepare

KILLS, LEVELS, CORRUPTIONS, STARTS = 3, 2, 20, 8
PLACES: list[tuple[int | str, str]] = [
    ("replace seed-0/report.json", "after"),
    ("replace seed-1/spec.yaml", "before"),
    ("^replace report.json", "before"),
]
"""Where a run of two seeds is killed: before the first is logged as finished, as the second starts, and at the end."""


def short(scratch: Path, seed: int) -> dict[str, list[str]]:
    """The faults that each harness finds in a few seconds, and some planted ones that are not found."""
    wrong = races.check_caches(STARTS)
    prepare()
    made = _made(scratch)
    return {
        "caches": [f"{wrong} wrong readers"] * bool(wrong),
        "kills": kills.check_one(scratch / "kills", made.whole, KILLS, random.Random(seed)).faults,
        "kills of parts": kills.check_places(scratch / "parts", CASES["seeds"], PLACES),
        "full disks": full_disk.check(LEVELS, made.whole),
        "starts": races.check_starts(1, made.whole),
        "clocks": races.check_clocks(1, made.whole),
        "planted and not found": faults.unfound(made, faults.QUICK),
        "corruptions": corruptions.damage_all(made.runs, CORRUPTIONS, random.Random(seed), scratch).faults,
    }


def planted(scratch: Path) -> dict[str, list[str]]:
    """The planted faults that are not found."""
    prepare()
    return {"planted and not found": faults.unfound(_made(scratch), list(faults.FAULTS))}


def _made(scratch: Path) -> faults.Made:
    """What the harnesses share."""
    return faults.Made(scratch, kills.reference(scratch / "kills", CASES["one run"]), _subjects(scratch / "runs"))


def _subjects(folder: Path) -> list[corruptions.Subject]:
    """Runs to damage, made by a child: a process that read a table has threads of polars, and can have no children."""
    folder.mkdir()
    file, log = folder / "subjects", folder / "log"
    code = in_child(lambda: file.write_bytes(pickle.dumps(corruptions.subjects(folder, (SINE,), ("whole",)))), log)
    assert code == 0, log.read_text()
    made: list[corruptions.Subject] = pickle.loads(file.read_bytes())
    return made


if __name__ == "__main__":
    words, started = sys.argv[1:], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        results = planted(Path(folder)) if words[0] == "faults" else short(Path(folder), int([*words, 0][1]))
    for name, found in results.items():
        print(f"{name}: {len(found)} faults", *found, sep="\n  ")
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(any(results.values()))
