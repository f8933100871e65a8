"""Near copies of photos: which are found by the distance of two sketches, and which pairs of photos are near.

    OMP_NUM_THREADS=1 python benchmarks/near_copies.py DIR [--radii 0.1 0.13 0.16 0.2] [--changed 1500]

DIR is a folder of photos with a folder for each class, such as `cifar_fs/val`, where kshot is developed. Some photos
are halved in size, encoded as JPEG, mirrored and cropped by a share of their side, and compared with their original:
the share within each radius. Pairs are photos of the folder that are within the radius of another, as they are or
mirrored: copies in the data or false alarms, of which `--pictures FILE` shows all, mirrored ones last.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree

from kshot.bounded import read_bytes
from kshot.checking.near_copies import mirrored, picture_sketches
from kshot.data.images.decode import decode
from kshot.data.images.index import list_folder

SIDE = 32


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        edge = share * image.width / 2
        return image.resize(image.size, Image.Resampling.BICUBIC, (edge, edge, image.width - edge, image.height - edge))

    return change


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "JPEG 75": jpeg(75),
    "JPEG 50": jpeg(50),
    "mirrored, JPEG 75": lambda image: jpeg(75)(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "cropped by 3 %": cropped(0.03),
    "cropped by 6 %": cropped(0.06),
    "cropped by 10 %": cropped(0.1),
}


def sketches(images: list[Image.Image]) -> np.ndarray:
    resized = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    pixels = np.stack([np.asarray(image) for image in resized]).transpose(0, 3, 1, 2)
    return picture_sketches(torch.from_numpy(pixels.astype(np.float32) / 255))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.1, 0.13, 0.16, 0.2])
    parser.add_argument("--changed", type=int, default=1500)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    files = [options.folder / file.name for file in list_folder(options.folder).files]
    pixels = [decode(read_bytes(path), path.name, size=SIDE, colour="rgb").transpose(1, 2, 0) for path in files]
    images = [Image.fromarray(each) for each in pixels]
    known = sketches(images)
    some = np.random.default_rng(0).permutation(len(images))[: options.changed]
    print(f"{len(images):,} photos, {len(some):,} of them changed\n\n| radius | " + " | ".join(CHANGES), end="")
    print(" | pairs | mirrored pairs |\n|" + " --- |" * (len(CHANGES) + 3))
    distances = {name: to_original([images[row] for row in some], known[some], name) for name in CHANGES}
    for radius in options.radii:
        shares = [f"{(distance <= radius).mean():.3f}" for distance in distances.values()]
        counts = [len(pairs(known, other, radius)) for other in (known, mirrored(known))]
        print(f"| {radius} | {' | '.join(shares)} | {counts[0]} | {counts[1]} |", flush=True)
    if options.pictures:
        found = [pair for other in (known, mirrored(known)) for pair in pairs(known, other, max(options.radii))]
        shown = [np.concatenate([pixels[one], pixels[other]], 1) for one, other in found]
        shown += [np.zeros_like(shown[0])] * (-len(shown) % 8)
        rows = [np.concatenate(shown[start : start + 8], 1) for start in range(0, len(shown), 8)]
        Image.fromarray(np.concatenate(rows).repeat(3, 0).repeat(3, 1)).save(options.pictures)


def to_original(images: list[Image.Image], known: np.ndarray, name: str) -> np.ndarray:
    """The distance of each changed image to its original."""
    changed = sketches([CHANGES[name](image) for image in images])
    plain = np.linalg.norm(changed - known, axis=1)
    return np.minimum(plain, np.linalg.norm(mirrored(changed) - known, axis=1))


def pairs(known: np.ndarray, other: np.ndarray, radius: float) -> list[tuple[int, int]]:
    """The pairs of photos of which one is within the radius of the other."""
    seen = np.flatnonzero(np.isfinite(known).all(1))
    first = np.argsort(-known[seen].var(0))[:16]
    near = cKDTree(known[seen][:, first]).query_ball_point(other[seen][:, first], radius)
    candidates = [(seen[one], seen[two]) for one, own in enumerate(near) for two in own if two > one]
    return [(one, two) for one, two in candidates if np.linalg.norm(other[one] - known[two]) <= radius]


if __name__ == "__main__":
    main()
