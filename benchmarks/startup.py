"""Startup time of `import kshot` with its names used, compared with `import torch`, and of `kshot --help`.

    python benchmarks/startup.py [--runs 9]

Medians over whole processes, interleaved; the first round warms the file cache and is discarded.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import kshot": [sys.executable, "-c", "import kshot; kshot.maml, kshot.run_until, kshot.sources.glyphs"],
    "kshot --help": [sys.executable, "-m", "kshot.app", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(runs + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        print(f"{name:<14} {statistics.median(values):6.2f} s  ({min(values):.2f} … {max(values):.2f})")
    ratios = [ours / torch for ours, torch in zip(seconds["import kshot"], seconds["import torch"])]
    print(f"import kshot / import torch: {statistics.median(ratios):.2f}  (bound 1.5)")


if __name__ == "__main__":
    main()
