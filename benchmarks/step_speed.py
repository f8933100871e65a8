"""Compare the time of kshot's meta-gradient with that of another revision, in turns on one machine.

    python benchmarks/step_speed.py REVISION [--only Conv4] [--engines loop traced] [--rounds 15] [--threads 1]

The problems are those of `benchmarks/peers.py`. Two processes live at the same time, one for each revision, and
run alternately for a quarter of a second, so that the machine's other load affects both equally.

Columns:
    ms, before    time of a step, median over the rounds
    × before      median over the rounds of (time before / time), with the quartiles; above 1 if this revision is faster
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("loop", "vmap", "traced")

WORKER = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, peers
torch.set_num_threads(int(sys.argv[1]))
works = {work.title: work for work in peers.works()}
for line in sys.stdin:
    command, *rest = line.rstrip("\\n").split("\\t")
    try:
        if command == "prepare":
            step = peers.prepare(works[rest[0]], rest[1])[1]
            for _ in range(6):  # replays 1, 2 and 5 of a recording are compared with plain steps
                step()
        print(1e3 * peers.seconds_per_step(step), flush=True)
    except Exception as error:
        print("failed", type(error).__name__, str(error).splitlines()[0], flush=True)
"""


class Revision:
    """A process that runs the steps of the kshot in a folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        path = os.pathsep.join([str(folder), str(folder / "benchmarks")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(threads)],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ms(self, *command: str) -> float:
        """Milliseconds of a step. Raises RuntimeError with the reason if it fails."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\t".join(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer or answer.startswith("failed"):
            raise RuntimeError(answer.removeprefix("failed").strip() or "the process ended")
        return float(answer)


def compare(title: str, engine: str, now: Revision, before: Revision, rounds: int) -> str:
    """A row of the table."""
    times: list[tuple[float, float]] = []
    try:
        now.ms("prepare", title, engine)
        before.ms("prepare", title, engine)
        for number in range(rounds):
            first, second = (now, before) if number % 2 else (before, now)
            one, two = first.ms("time"), second.ms("time")
            times.append((one, two) if number % 2 else (two, one))
    except RuntimeError as error:
        return f"| {title} | {engine} | fails: {error} | | | |"
    low, middle, high = statistics.quantiles([earlier / ms for ms, earlier in times], n=4)
    ms, earlier = (statistics.median(column) for column in zip(*times))
    return f"| {title} | {engine} | {ms:.2f} | {earlier:.2f} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def main() -> None:
    from peers import works

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--only", default="", help="only problems whose title contains this")
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    titles = [work.title for work in works() if args.only.lower() in work.title.lower() and not work.long]
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(old), args.revision], cwd=ROOT, check=True)
        try:
            now, before = Revision(ROOT, args.threads), Revision(old, args.threads)
            print("| problem | engine | ms | before | × before | quartiles |\n|" + " --- |" * 6, flush=True)
            for title in titles:
                for engine in args.engines:
                    print(compare(title, engine, now, before, args.rounds), flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
