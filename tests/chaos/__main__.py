"""The harnesses: `python -m chaos brief` takes seconds, `short` a minute, and `faults` plants all faults."""

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


def brief(scratch: Path, seed: int = 0) -> dict[str, list[str]]:
    """The faults of one kill, one full disk, two starts at once and a few readers, and a planted one not found."""
    wrong = races.check_caches(1, readers=3)
    prepare()
    made = faults.Made(scratch, kills.reference(scratch / "kills", CASES["one run"]), [])
    half = {"num_bytes": made.whole.num_bytes // 2}
    return {
        "caches": [f"{wrong} wrong readers"] * bool(wrong),
        "kills": kills.check_one(scratch / "kills", made.whole, 1, random.Random(seed)).faults,
        "full disks": list(filter(None, [full_disk.fill_and_free(scratch / "full", made.whole, half)])),
        "starts": races.check_start(made.whole, scratch / "starts", 2, one_folder=True),
        "planted and not found": faults.unfound(made, ["half files that make a folder full"]),
    }


def short(scratch: Path, seed: int = 0) -> dict[str, list[str]]:
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
    (word, *seed), started = sys.argv[1:], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        results = {"brief": brief, "short": short, "faults": planted}[word](Path(folder), *map(int, seed))
    for name, found in results.items():
        print(f"{name}: {len(found)} faults", *found, sep="\n  ")
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(any(results.values()))
