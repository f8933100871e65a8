"""Make the experience that comes with kshot: try plans on many data sets, and export what was found.

    python benchmarks/make_experience.py [--only exam glyphs_5w1s] [--minutes 4] [--part 1 2]
    python benchmarks/make_experience.py --export kshot/deciding/experience.jsonl.xz
    python benchmarks/make_experience.py --known kshot/deciding/experience.jsonl.xz  # on another machine: the rest

Data sets are those of `experience_sets.py`. On each, `kshot auto` tries the simple baselines and all plans for the kind
of its tasks: each for a while, the better third for three times as long, and so on. All figures are of validation
tasks; test tasks are never read. The trials of a data set are written to the database in --out at once, and data sets
that are there are left out: call it again after an interruption, which also resumes the data set that it was at.
Minutes are of CPU time of one thread (`cpu_clock.py`), so that other jobs on the machine do not count.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from cpu_clock import use_cpu_clock
from experience_sets import data_sets

from kshot.app.auto.command import collect
from kshot.deciding.experience import Experience


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of data sets; all by default, in random order")
    parser.add_argument("--part", type=int, nargs=2, default=(1, 1), help="1 2: the first half of the data sets")
    parser.add_argument("--known", type=Path, help="a file of an earlier export, whose data sets are left out")
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU time for each data set")
    parser.add_argument("--out", type=Path, default=Path("runs/experience"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the large data sets")
    parser.add_argument("--export", type=Path, help="write all trials in the database to this file, and try nothing")
    options = parser.parse_args()
    experience = Experience(str(options.out / "experience.sqlite"))
    if options.known:
        experience.import_(options.known)
    if options.export:
        print(f"{options.export}: {experience.export(options.export)} trials")
        return
    use_cpu_clock()
    sets = data_sets(options.out / "data", options.shared)
    done = {trial.data_set for trial in experience.trials(shipped=False)}
    names = options.only or random.Random(0).sample(list(sets), len(sets))[options.part[0] - 1 :: options.part[1]]
    for name in names:
        if name in done:
            continue
        started = time.monotonic()
        try:
            trials = collect(sets[name], options.out / "runs" / name, minutes=options.minutes, data_set=name)
        except Exception as error:  # one data set must not cost the others
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        experience.merge(trials)
        print(f"{name}: {len(trials)} trials in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
