"""The recipe `cifar-fs` on the training and validation classes of CIFAR-FS: accuracy, and the CPU time that it takes.

    OMP_NUM_THREADS=1 python benchmarks/cifar_fs.py CIFAR_FS [--fold 0] [--out DIR] [--resume] [--set KEY=VALUE ...]

CIFAR_FS is a folder with `train` and `val`, and a folder of photos for each class in them. Settings are chosen on
folds: with `--fold`, 16 of the 64 training classes are tested, and 8 others validate. Without it, the 16 validation
classes are tested, once; 8 training classes validate the rounds, so that it is trained on 56. The test classes are not
used.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import kshot

HELD_OUT, VALIDATION = 16, 8


def split(folder: Path, fold: int | None, lists: Path) -> dict[str, dict[str, str]]:
    """The classes of each split, as files of names in the folder `lists`."""
    train = sorted(path.name for path in (folder / "train").iterdir())
    if fold is None:
        tested = sorted(path.name for path in (folder / "val").iterdir())
    else:
        tested = train[fold :: len(train) // HELD_OUT]
    rest = [name for name in train if name not in tested]
    parts = {"train": rest[VALIDATION:], "val": rest[:VALIDATION], "test": tested}
    lists.mkdir(parents=True, exist_ok=True)
    for part, names in parts.items():
        (lists / f"{part}.txt").write_text("\n".join(names))
    return {"files": {part: str((lists / f"{part}.txt").resolve()) for part in parts}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar-fs"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--set", nargs="*", default=[])
    options = parser.parse_args()
    parts = split(options.folder, options.fold, options.out.parent / f"{options.out.name}-classes")
    started = time.process_time()
    report = kshot.run(
        "cifar-fs",
        options.out,
        overrides=[f"source.path={options.folder}", f"source.split={parts}", *options.set],
        resume=options.resume,
    )
    print(report)
    for each in report["shots"]:
        accuracy = each["metrics"]["accuracy"]
        print(f"{each['shots']} shots: {accuracy['mean']:.3f} ± {accuracy['ci95']:.3f}, {accuracy['num_tasks']} tasks")
    print(f"{(time.process_time() - started) / 60:.1f} CPU minutes in this process, tests and baselines included")


if __name__ == "__main__":
    main()
