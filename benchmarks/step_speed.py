"""Compare the time of kshot's meta-gradient with that of another revision, in turns on one machine.

    python benchmarks/step_speed.py REVISION [--only "sinusoid MLP, 1 step" …] [--rounds 5] [--threads 1]

The problems are those of `benchmarks/peers.py`. In each round both revisions run in processes of their own, the order
alternating, each for at least a second per problem and engine after six warm-up steps. The time of a round is its
fastest step. Printed are the fastest times in ms, and the ratio new / old, of the fastest and as the median over the
rounds; above 1 if this revision is slower.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ENGINES = ("loop", "vmap", "traced")
SECONDS = 1.2
ROOT = Path(__file__).parents[1]


def measure(only: list[str]) -> None:
    """Print the fastest step of each problem and engine, with the kshot that is on the path."""
    import torch
    from peers import kshot_step, works

    for work in works():
        for engine in ENGINES if work.title in only else ():
            torch.manual_seed(0)
            step = kshot_step(engine, work, work.model(), work.tasks())
            for _ in range(6):  # replays 1, 2 and 5 of a recording are compared with plain steps
                step()
            times: list[float] = []
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end or len(times) < 4:
                started = time.perf_counter()
                step()
                times.append(time.perf_counter() - started)
            print(f"{work.title}, {engine}\t{1e3 * min(times)}")


def run(tree: Path, only: list[str], threads: int) -> dict[str, float]:
    """Times by problem and engine, of the kshot in a folder."""
    paths = os.pathsep.join([str(tree), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--measure", *only]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in (line.split("\t") for line in output.splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--only", nargs="+", default=["sinusoid MLP, 1 step", "Conv4-64, 1 step"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(old), args.revision], cwd=ROOT, check=True)
        try:
            rounds = []
            for number in range(args.rounds):
                trees = (old, ROOT) if number % 2 else (ROOT, old)
                times = {tree: run(tree, args.only, args.threads) for tree in trees}
                rounds.append((times[old], times[ROOT]))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    print("| problem, engine | old ms | new ms | new / old | median over rounds |\n| --- | --- | --- | --- | --- |")
    for name in rounds[0][0]:
        before, after = [old[name] for old, _ in rounds], [new[name] for _, new in rounds]
        paired = statistics.median(b / a for a, b in zip(before, after))
        print(f"| {name} | {min(before):.2f} | {min(after):.2f} | {min(after) / min(before):.3f} | {paired:.3f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        warnings.simplefilter("ignore")
        measure(sys.argv[2:])
    else:
        main()
