"""Omniglot: handwritten characters of 50 alphabets, the few-shot field's first yardstick.

Shape legend: n drawings.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from kshot.annotations import FractionBelowOne, PositiveInt
from kshot.data import library
from kshot.data.cache import cached
from kshot.data.dataset import Dataset, ImageDataset
from kshot.data.images.augment import Augment, AugmentOptions, Mirrored
from kshot.data.library.archives import opened_zip
from kshot.tasks.class_tasks import ClassTasks, Imbalance
from kshot.tasks.sampling import Size
from kshot.types import SPLITS, Split

PARTS = "images_background", "images_evaluation"
SIDE = 105
"""Pixels of an original drawing's side."""
TURNS = {"rot000": 0, "rot090": 1, "rot180": 2, "rot270": 3}
"""Counter-clockwise quarter turns of a line in the split lists."""

_VERSION = 1  # counts the changes to the decoding below: part of the cache's name


def omniglot(
    *,
    ways: Size = 5,
    shots: Size = 1,
    queries: Size = 15,
    train_ways: Size | None = None,
    train_queries: Size | None = None,
    within: Literal["alphabet"] | None = None,
    imbalance: Imbalance | None = None,
    label_noise: FractionBelowOne = 0.0,
    augment: AugmentOptions | None = None,
    mirrored_classes: bool = False,
    background_only: bool = False,
    seed: int = 0,
    size: PositiveInt = 28,
    path: Path | str | None = None,
) -> ClassTasks:
    """Tell handwritten characters apart: grey drawings, strokes bright on dark, 20 of each character.

    The classes are those of the lists of Vinyals et al., each character in four rotations: 4,112 to train, 688 to
    validate and 1,692 to test. A character's rotations are four classes of the same split; alphabets are not held out.

    The 105×105 drawings are inverted, scaled down with antialiasing, and kept in the cache as one array.

    Args:
        ways, imbalance, label_noise: as in `ClassTasks`; ways, shots and queries may be ranges.
        shots: support drawings of each class.
        queries: query drawings of each class; shots + queries is at most 20.
        train_ways, train_queries: classes and query examples of training tasks, by default as many as of others.
        within: "alphabet" takes all characters of a task from one alphabet.
        augment: varies the drawings of training tasks: `{"shift": 2, "rotate": 10}`, see `Augment`.
        mirrored_classes: the mirror image of each training class is a training class too: 8,224 of them.
        background_only: takes the characters of the evaluation alphabets out of train and val, which the lists of
            Vinyals et al. mix with the others. The official runs (see `omniglot_runs`) are then of alphabets never
            seen; test stays as it is.
        seed: names the sequence of tasks.
        size: pixels of a drawing's side; the drawings take 130 kB × size² of memory, 102 MB at 28.
        path: the folder that holds `images_background` and `images_evaluation`, as zips or as folders
            `Alphabet/characterNN/*.png`, and `splits_vinyals/{train,val,test}.txt` with lines
            `Alphabet/characterNN/rotRRR`; by default the one in the library.

    Raises:
        ValueError: the data set, one of its parts or a listed class is missing, a zip or an image is damaged, an image
            is not grey 105×105, a split list can't be read, or a class has fewer than `shots + queries` drawings.

    Example:
        >>> omniglot(ways=20, shots=5).describe()["classes"]  # doctest: +SKIP
        {'train': 4112, 'val': 688, 'test': 1692}

    References:
        Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction, Science
        350, 2015. Splits: Vinyals et al.: Matching Networks for One Shot Learning, NeurIPS 2016, arXiv:1606.04080, as
        published with Snell, Swersky, Zemel: Prototypical Networks, NeurIPS 2017, arXiv:1703.05175.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if within not in (None, "alphabet"):
        raise ValueError(f"within must be 'alphabet' or None, got {within!r}")
    folder = library.find("omniglot") if path is None else Path(path)
    lists = {split: _split_list(folder, split) for split in SPLITS}
    _check_rotations(lists)
    parts = [_part(folder, part) for part in PARTS]
    made = cached(f"omniglot-{size}-{_key(parts)}", lambda: _decode(parts, size))
    drawings = made["images"][:, None]  # (n, 1, size, size)
    images = np.concatenate([np.rot90(drawings, turns, axes=(2, 3)) for turns in TURNS.values()])
    rows = _rows(made["characters"])
    hidden = _alphabets(parts[1]) if background_only else set()
    classes: dict[Split, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for split, listed in lists.items():
        for line in listed:
            character, rotation = line.rsplit("/", 1)
            if split != "test" and line.split("/")[0] in hidden:
                continue
            if character not in rows:
                raise ValueError(
                    f"{folder / 'splits_vinyals' / split}.txt lists {line}, but {folder} holds no drawings of "
                    f"{character}; complete the images or take the line out"
                )
            classes[split][line] = rows[character] + TURNS[rotation] * len(drawings)
    examples: Dataset = ImageDataset(images)
    if mirrored_classes:
        classes["train"] |= {f"{line}/mirrored": own + len(images) for line, own in classes["train"].items()}
        examples = Mirrored(examples)
    return ClassTasks(
        examples,
        classes,
        ways=ways,
        shots=shots,
        queries=queries,
        train_ways=train_ways,
        train_queries=train_queries,
        within={name: name.split("/")[0] for own in classes.values() for name in own} if within else None,
        imbalance=imbalance,
        label_noise=label_noise,
        augment=Augment(**augment) if augment else None,
        seed=seed,
        name="omniglot",
    )


def _split_list(folder: Path, split: Split) -> list[str]:
    """The lines `Alphabet/characterNN/rotRRR` of a split."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds Omniglot, or add it to the library")
    path = folder / "splits_vinyals" / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; put the lists train.txt, val.txt and test.txt of Vinyals et al. there, with lines "
            "Alphabet/characterNN/rotRRR (github.com/jakesnell/prototypical-networks has them in "
            "data/omniglot/splits/vinyals)"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if line.count("/") != 2 or line.rsplit("/", 1)[1] not in TURNS:
            raise ValueError(
                f"{path}, line {number}: expected Alphabet/characterNN/rot000 (090, 180, 270), got {line!r}"
            )
    twice = [line for line, count in Counter(lines).items() if count > 1]
    if twice:
        raise ValueError(f"{path} lists {twice[0]} more than once; keep one line of it")
    return lines


def _check_rotations(lists: dict[Split, list[str]]) -> None:
    """A rotated character is the same character: refuse it in a second split."""
    home: dict[str, Split] = {}
    for split, listed in lists.items():
        for line in listed:
            first = home.setdefault(line.rsplit("/", 1)[0], split)
            if first != split:
                raise ValueError(f"{line} is in {split}.txt, but the same character is in {first}.txt; keep it in one")


def _part(folder: Path, name: str) -> Path:
    """The zip or the folder of a half of the data set."""
    for path in (folder / f"{name}.zip", folder / name):
        if path.exists():
            return path
    raise ValueError(
        f"{folder} holds neither {name}.zip nor {name}/; `kshot data add omniglot` fetches both, with the lists"
    )


def _key(parts: list[Path]) -> str:
    """The content of the zips; of a folder the names, sizes and times of its files."""
    key = hashlib.sha256(f"{_VERSION}".encode())
    for part in parts:
        if part.is_file():
            key.update(part.read_bytes())
        else:
            for path in _pngs(part):
                facts = path.stat()
                key.update(f"{path.relative_to(part.parent)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return key.hexdigest()[:16]


def _decode(parts: list[Path], size: int) -> dict[str, np.ndarray]:
    """Images (n, size, size) uint8 and the character (n,) `Alphabet/characterNN` of each, by name."""
    drawings = sorted((drawing for part in parts for drawing in _drawings(part, size)), key=lambda drawing: drawing[0])
    return {
        "images": np.array([image for _, image in drawings], np.uint8).reshape(-1, size, size),
        "characters": np.array([name.rsplit("/", 1)[0] for name, _ in drawings], np.str_),
    }


def _drawings(part: Path, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every drawing of a half: its name `Alphabet/characterNN/file.png`, and its image (size, size)."""
    if part.is_dir():
        for path in _pngs(part):
            yield "/".join(path.parts[-3:]), read_drawing(path.read_bytes(), str(path), size)
        return
    with opened_zip(part) as archive:
        for member in archive.namelist():
            inner = PurePosixPath(member).parts
            if member.endswith(".png") and len(inner) >= 3 and "__MACOSX" not in inner:
                yield "/".join(inner[-3:]), read_drawing(archive.read(member), f"{part}: {member}", size)


def _alphabets(part: Path) -> set[str]:
    """The names of a half's alphabets."""
    if part.is_dir():
        return {path.parts[-3] for path in _pngs(part)}
    with opened_zip(part) as archive:
        return {PurePosixPath(name).parts[-3] for name in archive.namelist() if name.endswith(".png")}


def _pngs(part: Path) -> list[Path]:
    return sorted(part.glob("*/*/*.png"))


def read_drawing(content: bytes, place: str, size: int) -> np.ndarray:
    """One PNG as (size, size) uint8, strokes bright; `place` names it in errors."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (SIDE, SIDE) or image.mode not in ("1", "L"):
                raise ValueError(
                    f"{place} is {image.width}×{image.height} of mode {image.mode!r}, expected {SIDE}×{SIDE}, black on "
                    "white ('1' or 'L'); put the original drawing back"
                )
            ink = ImageOps.invert(image.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow's words for a damaged file
        raise ValueError(f"{place} cannot be read as an image ({error}); put the original drawing back") from error
    return np.asarray(ink.resize((size, size), Image.Resampling.LANCZOS))


def _rows(characters: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each character."""
    names, starts = np.unique(characters, return_index=True)  # they come sorted: each character is one run
    return dict(zip(names.tolist(), np.split(np.arange(len(characters)), starts[1:])))
