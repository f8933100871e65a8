"""A small Omniglot made for tests: one character a split, in four rotations."""

from pathlib import Path

import numpy as np
from PIL import Image

CHARACTERS = {"train": "Runes/character01", "val": "Runes/character02", "test": "Elvish/character01"}
DRAWINGS = 4
SMALL = {"ways": 4, "shots": 1, "queries": 3}


def draw(path: Path, seed: int, side: int = 105, mode: str = "1") -> None:
    """A scrawl of three black bars on white."""
    random = np.random.default_rng(seed)
    ink = np.full((side, side), 255, np.uint8)
    for x, y in random.integers(5, side - 40, (3, 2)):
        ink[y : y + 4, x : x + 35] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ink).convert(mode).save(path)


def make_tree(folder: Path) -> Path:
    """One character a split, in four rotations, as folders of PNGs."""
    (folder / "splits_vinyals").mkdir(parents=True)
    for c, (split, character) in enumerate(CHARACTERS.items()):
        part = "images_evaluation" if split == "test" else "images_background"
        for k in range(DRAWINGS):
            draw(folder / part / character / f"000{c}_0{k}.png", 10 * c + k)
        lines = [f"{character}/rot{turn}\n" for turn in ("000", "090", "180", "270")]
        (folder / "splits_vinyals" / f"{split}.txt").write_text("".join(lines))
    return folder
