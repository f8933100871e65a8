"""Kill runs at random moments, resume them and compare: `python -m chaos.ranks 20 [SEED] [PROCESSES]`.

Killed is process 0, process 1, or the whole run, as if its machine had lost power; of a run of one process (PROCESSES
is 2 by default), it. A lost process is started again by the run itself, a lost run by `--resume`. The same is done to
that run again, at most three times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

import psutil
from chaos.runs import SINE, run_words

TEXT = SINE.replace("steps_per_round: 2, tasks_per_step: 2", "steps_per_round: 40, tasks_per_step: 4")
VICTIMS = ("0", "1", "all")
MOST_KILLS = 3
SECONDS = 300  # after which a run counts as stuck


def start(file: Path, out: Path, processes: int, *, resume: bool) -> subprocess.Popen[str]:
    """Start a run; its output goes to a file beside it."""
    options = ("--processes", str(processes)) if processes > 1 else ()
    words = map(str, run_words(file, out, resume=resume, options=options))
    with out.with_suffix(".txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "kshot.app", *words],
            env=os.environ | {"KSHOT_EXPERIENCE": "sqlite://", "OMP_NUM_THREADS": "1"},
            stdout=said, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def kill(run: subprocess.Popen[str], victim: str) -> bool:
    """Kill a process of a run, or all of them; whether there was one."""
    try:
        processes = psutil.Process(run.pid).children(recursive=True)
        if victim == "all":
            chosen = [psutil.Process(run.pid), *processes]
        else:
            chosen = [each for each in processes if each.environ().get("RANK") == victim]
        for each in chosen:
            each.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return False
    return bool(chosen)


def killed(file: Path, out: Path, processes: int, seconds: float, generator: random.Random) -> tuple[list[str], int]:
    """Who was killed in a run that took so many seconds from its first file, and the run's last exit code."""
    victims: list[str] = []
    run = start(file, out, processes, resume=False)
    for _ in range(MOST_KILLS):
        while run.poll() is None and not (out / "events.jsonl").exists():
            time.sleep(0.02)
        time.sleep(generator.uniform(0, seconds))
        victim = generator.choice(VICTIMS if processes > 1 else ("all",))
        if run.poll() is None and kill(run, victim):
            victims.append(victim)
            if victim == "all":
                run.wait()
                run = start(file, out, processes, resume=True)
    return victims, run.wait(SECONDS)


def outcome(out: Path) -> dict[str, bytes]:
    """What must be equal, byte by byte: the weights of each round that is kept, and the figures of the test tasks."""
    paths = [*sorted(out.glob("checkpoints/train/round-*/weights.safetensors")), out / "tasks.csv"]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths if path.exists()}


def check(runs: int, seed: int, processes: int, scratch: Path) -> list[str]:
    """Sentences on the runs that did not end as an undisturbed one does."""
    generator, faults = random.Random(seed), []
    (file := scratch / "sine.yaml").write_text(TEXT)
    whole = start(file, scratch / "whole", processes, resume=False)
    while whole.poll() is None and not (scratch / "whole" / "events.jsonl").exists():
        time.sleep(0.02)
    begun = time.monotonic()
    code, seconds = whole.wait(SECONDS), time.monotonic() - begun
    expected = outcome(scratch / "whole")
    if not any("weights" in name for name in expected) or "tasks.csv" not in expected:
        return [f"the undisturbed run ended with {code}: {(scratch / 'whole.txt').read_text()[-2000:]}"]
    number = 0
    while number < runs:
        out = scratch / f"run-{len(list(scratch.iterdir()))}"
        victims, found = killed(file, out, processes, seconds, generator)
        if not victims:  # it ended before
            continue
        number += 1
        same = outcome(out) == expected
        said = "equal" if same else "DIFFERENT"
        print(f"{number}: killed {', '.join(victims)}: {said}, exit code {found}", flush=True)
        if not same or found != code:
            said = out.with_suffix(".txt").read_text()[-2000:]
            faults.append(f"run {number}, killed {victims}: exit code {found}, equal {same}\n{said}")
    return faults


def main() -> None:
    runs, seed, processes = (int(given or default) for given, default in zip_longest(sys.argv[1:4], (20, 0, 2)))
    with tempfile.TemporaryDirectory() as scratch:
        faults = check(runs, seed, processes, Path(scratch))
    print("\n".join(faults) or f"{runs} runs were killed and ended as an undisturbed one")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
