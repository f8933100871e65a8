"""Make the experience that comes with kshot: try plans on many data sets, and export what was found.

    OMP_NUM_THREADS=1 python benchmarks/make_experience.py [--minutes 15] [--only exam glyphs_5w1s] [--out DIR]
    python benchmarks/make_experience.py --export kshot/deciding/experience.jsonl.xz [--out DIR]

Data sets are those of `experience_sets.py`, and the plans those of `kshot auto`, by `kshot.app.auto.collect`. The
trials of a data set are written to the database in --out when all its plans were tried. Call it again after an
interruption: data sets that are in the database are left out, and a data set that was begun is continued. Several
processes can share --out if each has other data sets by --only.

All figures are of validation tasks; test tasks are never read.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from pathlib import Path

import torch
from experience_sets import RunFile, data_sets

from kshot.app.auto.command import collect
from kshot.deciding.experience import Experience, Trial


def tried(run_file: RunFile, folder: Path, minutes: float) -> list[Trial]:
    """The trials of all plans on a data set."""
    return collect(run_file, folder, minutes=minutes, data_set=run_file["name"], say=lambda line: print(f"  {line}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of data sets; all by default")
    parser.add_argument("--minutes", type=float, default=15.0, help="time for all plans on a data set")
    parser.add_argument("--out", type=Path, default=Path("runs/experience"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the large data sets")
    parser.add_argument("--export", type=Path, help="write all trials in the database to this file, and try nothing")
    options = parser.parse_args()
    experience = Experience(str(options.out / "experience.sqlite"))
    if options.export:
        print(f"{options.export}: {experience.export(options.export)} trials")
        return
    torch.set_num_threads(1)
    logging.getLogger("kshot").setLevel(logging.ERROR)
    sets = data_sets(options.out / "data", options.shared)
    done = {trial.data_set for trial in experience.trials(shipped=False)}
    for name in options.only or sets:
        if name in done:
            continue
        started, folder = time.perf_counter(), options.out / "plans" / name
        try:
            trials = tried(sets[name], folder, options.minutes)
        except Exception as error:  # one data set must not cost the others
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        experience.merge(trials)
        if experience.problem is not None:
            raise SystemExit(experience.problem)
        shutil.rmtree(folder)
        print(f"{name}: {len(trials)} trials, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
