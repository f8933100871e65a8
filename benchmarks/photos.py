"""The recipes `photos` and `photos-tuned` on folders of images: beside the frozen class means of the same encoder.

    OMP_NUM_THREADS=1 python benchmarks/photos.py --shared ../shared/data [--only cifar_fs …] [--seeds 0 1]
        [--recipe photos-tuned] [--each 200] [--set KEY=VALUE ...]

Three sets of images are written as folders, at most `--each` images of a class:

cifar_fs: 52 of the 64 training classes to train on, the other 12 to validate; tested are the 16 validation classes.
omniglot: characters of 24 alphabets of the background set and of its other 6; tested are those of the evaluation set.
glyphs: letters of the scripts that kshot's own source splits.

Features are computed once and cached, so that an interrupted run goes on where it was. Differences are paired, with
95 % intervals over classes, as the report of the run has them.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

import kshot

Pictures = Iterator[tuple[str, str, bytes]]
"""Split, class and content of PNG files."""
VALIDATION_CLASSES, VALIDATION_ALPHABETS = 12, 6


def cifar_fs(shared: Path) -> Pictures:
    with zipfile.ZipFile(shared / "cifar_fs" / "train_val.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        classes = sorted({name.split("/")[1] for name in names if name.startswith("train/")})
        held_out = set(classes[:: len(classes) // VALIDATION_CLASSES][:VALIDATION_CLASSES])
        for name in names:
            part, label, _ = name.split("/")
            split = "test" if part == "val" else "val" if label in held_out else "train"
            yield split, label, archive.read(name)


def omniglot(shared: Path) -> Pictures:
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(shared / "omniglot" / f"images_{part}.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            alphabets = sorted({name.split("/")[1] for name in names})
            held_out = set(alphabets[:: len(alphabets) // VALIDATION_ALPHABETS][:VALIDATION_ALPHABETS])
            for name in names:
                _, alphabet, character, _ = name.split("/")
                split = "test" if part == "evaluation" else "val" if alphabet in held_out else "train"
                yield split, f"{alphabet} {character}", archive.read(name)


def glyphs(shared: Path) -> Pictures:
    source = kshot.sources.glyphs()
    for split in ("train", "val", "test"):
        for label, rows in source.classes(split).items():
            for row in rows:
                content = io.BytesIO()
                Image.fromarray(source.examples.images[row, 0]).save(content, "PNG")
                yield split, label.replace("/", " "), content.getvalue()


SETS = {"cifar_fs": cifar_fs, "omniglot": omniglot, "glyphs": glyphs}


def written(name: str, shared: Path, folder: Path, each: int) -> Path:
    """A folder with a folder for each split, and in it one for each class; what is there is taken as it is."""
    if not folder.exists():
        part, counts = folder.with_name(f".part-{folder.name}"), dict[tuple[str, str], int]()
        for split, label, content in SETS[name](shared):
            number = counts[split, label] = counts.get((split, label), 0) + 1
            if number <= each:
                path = part / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        part.replace(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the large data sets")
    parser.add_argument("--only", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--recipe", default="photos", choices=["photos", "photos-tuned"])
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    parser.add_argument("--set", nargs="*", default=[], help="PATH=VALUE, each sets a key of the recipe")
    options = parser.parse_args()
    for name in options.only:
        path = written(name, options.shared, options.out.absolute() / f"{name}-{options.each}", options.each)
        for seed in options.seeds:
            started = time.process_time()
            overrides = [f"source.path={path}", f"seed={seed}", f"task_seed={seed}", *options.set]
            report = kshot.run(options.recipe, overrides=overrides)
            print(f"{name}, seed {seed}, {(time.process_time() - started) / 60:.1f} CPU minutes\n{report}", flush=True)


if __name__ == "__main__":
    main()
