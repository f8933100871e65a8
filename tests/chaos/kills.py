"""Kill a run at every event of its file system, resume it and compare: `python -m chaos.kills 500`."""

from __future__ import annotations

import collections
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from chaos.layer import Disk
from chaos.runs import (
    POLICY,
    SINE,
    TABLE,
    command,
    differences,
    in_child,
    last_line,
    outcome,
    prepare,
    run_words,
    write_inputs,
)

KILLED = -9
WHEN = ("before", "after", "torn")


class Tally(NamedTuple):
    """Numbers of kills, of runs that were equal after them, and sentences on the others."""

    kills: int
    equal: int
    faults: list[str]
    kinds: collections.Counter[str]


class Reference(NamedTuple):
    """An undisturbed run: its file and folder, exit code, events and outcome, and what it wrote and made."""

    file: Path
    folder: Path
    code: int
    events: list[tuple[str, str]]
    outcome: dict[str, Any]
    num_bytes: int
    num_files: int


def reference(folder: Path, text: str) -> Reference:
    """Run a run file without kills, and count the events."""
    file, log = write_inputs(folder / "inputs", text), folder / "log"
    out, listing = folder / "whole" / "run", folder / "events"

    def work() -> None:
        disk = Disk(out)
        try:
            command(*run_words(file, out, resume=False), disk=disk)
        finally:
            listing.write_text(json.dumps([disk.written, disk.made, disk.events]))

    out.parent.mkdir(parents=True, exist_ok=True)
    code = in_child(work, log)
    assert code == 1, log.read_text()  # the target is out of reach
    num_bytes, num_files, events = json.loads(listing.read_text())
    return Reference(file, out, code, [(kind, path) for kind, path in events], outcome(out), num_bytes, num_files)


def kill_and_resume(folder: Path, whole: Reference, kills: list[tuple[int | str, str]]) -> tuple[int, str]:
    """Start a run, kill it and its resumed processes at (event, when), and resume it to its end.

    An event is given by its number, or by a pattern of its kind and path, of which the first is taken.

    Returns:
        How many kills took place, and what is wrong in the end, if anything.
    """
    out, log, taken = folder / "run", folder / "log", 0
    folder.mkdir()
    for number, (event, when) in enumerate(kills):
        words = run_words(whole.file, out, resume=number > 0)
        code = in_child(lambda: command(*words, disk=Disk(out, event, when)), log)  # noqa: B023
        taken += code == KILLED
        if code not in (KILLED, whole.code):
            return taken, f"resumed process {number} ends with {code}: {last_line(log)}"
    code = in_child(lambda: command(*run_words(whole.file, out, resume=True)), log)
    if code != whole.code:
        return taken, f"stuck: --resume ends with {code}: {last_line(log)}"
    differing = differences(outcome(out), whole.outcome)
    return taken, f"differs in {', '.join(differing)}" if differing else ""


def check(num_kills: int, seed: int, texts: tuple[str, ...] = (SINE, TABLE, POLICY)) -> Tally:
    """Kill runs of each run file at events spread over all, before, after and in the middle; some several times."""
    draw, tally = random.Random(seed), Tally(0, 0, [], collections.Counter())
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        for which, text in enumerate(texts):
            whole = reference(scratch / f"{which}", text)
            tally = check_one(scratch / f"{which}", whole, num_kills * (which + 1) // len(texts), draw, tally)
    finally:
        shutil.rmtree(scratch)
    return tally


def check_one(folder: Path, whole: Reference, until: int, draw: random.Random, tally: Tally | None = None) -> Tally:
    """Kill runs of one run file until a number of kills is reached."""
    kills, equal, faults, kinds = tally or Tally(0, 0, [], collections.Counter())
    places = [
        (event, when)
        for event, (kind, _) in enumerate(whole.events)
        for when in WHEN
        if when != "torn" or kind == "write"
    ]
    order: list[tuple[int, str]] = []
    number = 0
    while kills < until:
        order = order or draw.sample(places, len(places))
        planned = [order.pop()]
        while draw.random() < 0.25:  # the resumed process is killed too
            planned.append((draw.randrange(len(whole.events)), draw.choice(WHEN)))
        taken, fault = kill_and_resume(folder / f"kill-{number}", whole, planned)
        number, kills = number + 1, kills + taken
        kinds[whole.events[planned[0][0]][0]] += 1
        if fault:
            faults.append(f"{[(*place, *whole.events[place[0]]) for place in planned]}: {fault}")
            if __name__ == "__main__":
                print(faults[-1], flush=True)
        else:
            equal += taken
            shutil.rmtree(folder / f"kill-{number - 1}")
    return Tally(kills, equal, faults, kinds)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]  # kills, and optionally the seed
    prepare()
    found = check(numbers[0], *(numbers[1:] or [0]))
    print(
        f"{found.kills} kills: {found.equal} equal after the resume, {len(found.faults)} runs with faults; first kills "
        f"by event: {dict(found.kinds)}"
    )
    sys.exit(bool(found.faults))
