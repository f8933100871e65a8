"""Many calls with random inputs: what leaks is printed once for each place, and kept.

    PYTHONPATH=tests python -m inputs 100000 --keep tests/inputs/corpus

The inputs of a seed are the same each time, as hypothesis draws them; `--first` starts at another one, such as the next
one that an interrupted fuzz names.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from inputs.calls import Case, call_twice_if_late
from inputs.commands import kinds
from inputs.prepared import remade

CHUNK = 50
MEMORY = 6 << 30
"""Bytes of address space: a call that wants more gets MemoryError."""


def drawn(number: int, count: int, data: Path, judge: Callable[[str, Case], None], only: str | None = None) -> None:
    """Draw `count` cases of one kind, which the number of the chunk chooses, and judge each."""
    strategies = kinds(data)
    name = only or sorted(strategies)[number % len(strategies)]

    @seed(number)
    @settings(max_examples=count, phases=[Phase.generate], database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategies[name])
    def each(case: Case) -> None:
        judge(name, case)

    each()


def main() -> None:
    """Run the long fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "kshot-inputs")
    options = parser.parse_args()
    os.environ["KSHOT_CACHE"] = str(options.data / "cache")
    data = remade(options.data)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tally = _Tally(options.keep)
    number = options.first
    while tally.count < options.count:
        random.seed(number)
        tally.number = number
        drawn(number, min(CHUNK, options.count - tally.count), data, partial(tally.add, data), options.only)
        number += 1
        if number % 10 == 0:
            tally.print()
    tally.print()
    raise SystemExit(1 if tally.leaks else 0)


class _Tally:
    """What was found so far."""

    def __init__(self, keep: Path | None) -> None:
        self.number = 0
        self.keep, self.count, self.late, self.started, self.slowest = keep, 0, 0, time.monotonic(), 0.0
        self.codes: collections.Counter[int] = collections.Counter()
        self.leaks: dict[str, int] = {}

    def add(self, data: Path, name: str, case: Case) -> None:
        """Call a case and count how it ended."""
        outcome, late = call_twice_if_late(case, data)
        self.count += 1
        self.late += late
        self.codes[outcome.code] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        if outcome.leak:
            place = outcome.leak.rpartition(" at ")[2] if " at " in outcome.leak else f"input {self.count}"
            key = f"{name.split(',')[0]}: {place}"
            if key not in self.leaks:
                print(f"LEAK in chunk {self.number}, {name}: {outcome.leak[:700]}\n     {case.words}", flush=True)
                self._write(case, "")
            self.leaks[key] = self.leaks.get(key, 0) + 1
        elif late:
            self._write(case, "late-")

    def _write(self, case: Case, prefix: str) -> None:
        if self.keep:
            self.keep.mkdir(parents=True, exist_ok=True)
            text = case.to_json()
            (self.keep / f"{prefix}{hashlib.sha256(text.encode()).hexdigest()[:12]}.json").write_text(text)

    def print(self) -> None:
        """Print the figures."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = time.monotonic() - self.started
        leaks = f"{sum(self.leaks.values())} leaks at {len(self.leaks)} places"
        rate = f"{self.count / seconds:.1f} a second, slowest {self.slowest:.1f} s, peak {peak:.2f} GiB"
        again = f"{self.late} repeated since they were slow"
        print(
            f"{self.count} inputs, next --first {self.number + 1}, {leaks}, {again}, {rate}, codes {dict(self.codes)}",
            flush=True,
        )
