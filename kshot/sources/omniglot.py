"""Omniglot: handwritten characters of 50 alphabets, the first benchmark of few-shot learning, and its official runs.

Shape legend: n drawings.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.bounded import read_bytes
from kshot.data import library
from kshot.data.cache import cached
from kshot.data.dataset import Dataset, ImageDataset
from kshot.data.images.augment import Augment, AugmentOptions, Mirrored
from kshot.data.library.archives import opened_zip
from kshot.data.text_files import read_text
from kshot.tasks.class_tasks import ClassOptions, ClassTasks
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Batch, Split, Task, one_hot

PARTS = "images_background", "images_evaluation"
SIDE = 105
"""Width and height of an original drawing in pixels."""
TURNS = {"rot000": 0, "rot090": 1, "rot180": 2, "rot270": 3}
"""Counter-clockwise quarter turns of a line in the split lists."""

RUNS, WAYS = 20, 20
"""Number of official runs, and of characters of each."""

_VERSION = 1  # of the decoding, part of the cache key


@check_arguments
def omniglot(
    *,
    within: Literal["alphabet"] | None = None,
    augment: AugmentOptions | None = None,
    mirrored_classes: bool = False,
    background_only: bool = False,
    size: PositiveInt = 28,
    path: Path | str | None = None,
    **options: ClassOptions,
) -> ClassTasks:
    """Classify handwritten characters: grey drawings, bright strokes on dark, 20 of each character.

    The classes are those of the lists of Vinyals et al., each character in four rotations: 4,112 for training, 688 for
    validation and 1,692 for test. The four rotations are classes of the same split; alphabets are not held out. The
    105×105 drawings are inverted, resized with antialiasing, and cached as one array.

    Args:
        within: "alphabet" draws all characters of a task from one alphabet.
        augment: augmentation of training tasks such as `{"shift": 2, "rotate": 10}`, see `Augment`.
        mirrored_classes: use the mirror image of each training class as a further class: 8,224 in all.
        background_only: remove the characters of the evaluation alphabets, those of `omniglot_runs`, from train and
            val, which the lists of Vinyals et al. mix with the others; test is unchanged.
        size: width and height of a drawing in pixels; the drawings need 130 kB × size² of memory, 102 MB at 28.
        path: the folder with `images_background` and `images_evaluation`, as zips or as folders
            `Alphabet/characterNN/*.png`, and `splits_vinyals/{train,val,test}.txt` with lines
            `Alphabet/characterNN/rotRRR`; by default that of the library.
        options: arguments of `ClassTasks`; shots + queries is at most 20.

    Raises:
        ValueError: a missing or damaged part of the data set, an image that is not grey 105×105, an invalid split list,
            or more than 20 shots + queries.

    Example:
        >>> omniglot(ways=20, shots=5).describe()["classes"]  # doctest: +SKIP
        {'train': 4112, 'val': 688, 'test': 1692}

    References:
        Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction, Science
        350, 2015. Splits: Vinyals et al.: Matching Networks for One Shot Learning, NeurIPS 2016, arXiv:1606.04080, as
        published with Snell, Swersky, Zemel: Prototypical Networks, NeurIPS 2017, arXiv:1703.05175.
    """
    folder = library.find("omniglot") if path is None else Path(path)
    lists = {split: _split_list(folder, split) for split in SPLITS}
    parts = [_part(folder, part) for part in PARTS]
    arrays = cached(f"omniglot-{size}-{_key(parts)}", lambda: _decode(parts, size))
    drawings = arrays["images"][:, None]  # (n, 1, size, size)
    images = np.concatenate([np.rot90(drawings, turns, axes=(2, 3)) for turns in TURNS.values()])
    names, starts = np.unique(arrays["characters"], return_index=True)  # sorted: each character is one run
    rows = dict(zip(names.tolist(), np.split(np.arange(len(drawings)), starts[1:])))
    hidden = _alphabets(parts[1]) if background_only else set()
    classes: dict[Split, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    split_of: dict[str, Split] = {}
    for split, lines in lists.items():
        for line in lines:
            character, rotation = line.rsplit("/", 1)
            if (first := split_of.setdefault(character, split)) != split:
                raise ValueError(f"{line} is in {split}.txt, but the same character is in {first}.txt; keep it in one")
            if split != "test" and character.split("/")[0] in hidden:
                continue
            if character not in rows:
                raise ValueError(
                    f"{folder / 'splits_vinyals' / split}.txt lists {line}, but {folder} holds no drawings of "
                    f"{character}; complete the images or remove the line"
                )
            classes[split][line] = rows[character] + TURNS[rotation] * len(drawings)
    examples: Dataset = ImageDataset(images)
    if mirrored_classes:
        classes["train"] |= {f"{line}/mirrored": rows + len(images) for line, rows in classes["train"].items()}
        examples = Mirrored(examples)
    alphabets = {name: name.split("/")[0] for members in classes.values() for name in members} if within else None
    augmentation = Augment(**augment) if augment else None
    return ClassTasks(examples, classes, **options, within=alphabets, augment=augmentation, name="omniglot")


def _split_list(folder: Path, split: Split) -> list[str]:
    """The lines `Alphabet/characterNN/rotRRR` of a split."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the folder of Omniglot, or add it to the library")
    path = folder / "splits_vinyals" / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; put the lists train.txt, val.txt and test.txt of Vinyals et al. there, with lines "
            "Alphabet/characterNN/rotRRR (github.com/jakesnell/prototypical-networks has them in "
            "data/omniglot/splits/vinyals)"
        )
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        if line.count("/") != 2 or line.rsplit("/", 1)[1] not in TURNS:
            expected = "Alphabet/characterNN/rot000 (090, 180, 270)"
            raise ValueError(f"{path}, line {number}: expected {expected}, got {line!r}")
    repeated = [line for line, count in Counter(lines).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} lists {repeated[0]} more than once; keep one line of it")
    return lines


def _part(folder: Path, name: str) -> Path:
    """The zip or folder of a half of the data set."""
    for path in (folder / f"{name}.zip", folder / name):
        if path.exists():
            return path
    hint = "`kshot data add omniglot` fetches both, with the lists"
    raise ValueError(f"{folder} holds neither {name}.zip nor {name}/; {hint}")


def _key(parts: list[Path]) -> str:
    """A hash of the content of zips, and of the names, sizes and times of files in folders."""
    key = hashlib.sha256(f"{_VERSION}".encode())
    for part in parts:
        if part.is_file():
            key.update(read_bytes(part))
        for path in _pngs(part):
            facts = path.stat()
            key.update(f"{path.relative_to(part.parent)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return key.hexdigest()[:16]


def _decode(parts: list[Path], size: int) -> dict[str, np.ndarray]:
    """Images uint8 (n, size, size) and their characters `Alphabet/characterNN` (n,), sorted."""
    drawings = sorted((drawing for part in parts for drawing in _drawings(part, size)), key=lambda drawing: drawing[0])
    return {
        "images": np.array([image for _, image in drawings], np.uint8).reshape(-1, size, size),
        "characters": np.array([name.rsplit("/", 1)[0] for name, _ in drawings], np.str_),
    }


def _drawings(part: Path, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name `Alphabet/characterNN/file.png` and image (size, size) of each drawing of a half."""
    if part.is_dir():
        for path in _pngs(part):
            yield "/".join(path.parts[-3:]), read_drawing(read_bytes(path), str(path), size)
        return
    with opened_zip(part) as archive:
        for member in archive.namelist():
            inner = PurePosixPath(member).parts
            if member.endswith(".png") and len(inner) >= 3 and "__MACOSX" not in inner:
                yield "/".join(inner[-3:]), read_drawing(archive.read(member), f"{part}: {member}", size)


def _alphabets(part: Path) -> set[str]:
    """The names of the alphabets of a half."""
    if part.is_dir():
        return {path.parts[-3] for path in _pngs(part)}
    with opened_zip(part) as archive:
        return {PurePosixPath(name).parts[-3] for name in archive.namelist() if name.endswith(".png")}


def _pngs(part: Path) -> list[Path]:
    return sorted(part.glob("*/*/*.png"))


def read_drawing(content: bytes, place: str, size: int) -> np.ndarray:
    """Decode a PNG as uint8 (size, size) with bright strokes; `place` is its name in messages."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:  # others may start other programs
            if image.size != (SIDE, SIDE) or image.mode not in ("1", "L"):
                raise ValueError(
                    f"{place} is {image.width}×{image.height} of mode {image.mode!r}, expected {SIDE}×{SIDE}, black on "
                    "white ('1' or 'L'); put the original drawing back"
                )
            ink = ImageOps.invert(image.convert("L"))
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
    ) as error:  # what Pillow raises for damaged files
        raise ValueError(f"{place} cannot be read as an image ({error}); put the original drawing back") from error
    return np.asarray(ink.resize((size, size), Image.Resampling.LANCZOS))


@check_arguments
def omniglot_runs(path: Path | str | None = None, *, size: PositiveInt = 28) -> OmniglotRuns:
    """The 20 official one-shot runs, on which people and programs have been compared: tasks of one alphabet each.

    A task is 20 new characters from one drawing each, and a drawing by another person of each. All are of the split
    "test". The alphabets are those of `images_evaluation`, so a model must not be trained on them, as ensured by
    `omniglot(background_only=True)`. Labels are the numbers of the training drawings, `class01` … `class20`.

    Args:
        path: the zip, `all_runs.zip`; by default `official/all_runs.zip` in the library's Omniglot.
        size: width and height of a drawing in pixels, resized as by `omniglot`.

    Raises:
        ValueError: the zip is missing or damaged, or a run in it does not consist of 20 drawings for 20 others.

    Example:
        >>> omniglot_runs().task("test", 19).support.inputs.shape  # doctest: +SKIP
        torch.Size([20, 1, 28, 28])

    References:
        Lake, Salakhutdinov, Tenenbaum: Science 350, 2015 (see `omniglot`); The Omniglot challenge: a 3-year progress
        report, arXiv:1902.03477, section 3: people err in 4.5 % of the trials, Bayesian Program Learning in 3.3 %.
    """
    path = library.find("omniglot") / "official" / "all_runs.zip" if path is None else Path(path)
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; get all_runs.zip from github.com/brendenlake/omniglot, folder "
            "python/one-shot-classification, and put it there, or fetch it by `kshot data add omniglot`"
        )
    with opened_zip(path) as archive:
        runs = [_run(archive, path, f"run{number:02}", size) for number in range(1, RUNS + 1)]
    return OmniglotRuns(*map(np.stack, zip(*runs)))


class OmniglotRuns(TaskSource):
    """Tasks of `omniglot_runs`: uint8 images (runs, 40, size, size), support first, and query labels (runs, 20)."""

    objective = objectives.classification
    seed = 0

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._examples, self._labels = ImageDataset(images.reshape(-1, 1, *images.shape[2:])), labels

    def task(self, split: Split, index: int) -> Task:
        if split != "test":
            raise ValueError(f"the official runs are test tasks: there are no {split} tasks; train on omniglot()")
        if not 0 <= index < RUNS:
            raise ValueError(f"there are {RUNS} official runs, 0 … {RUNS - 1}; task {index} was asked for")
        inputs = self._examples.take(2 * WAYS * index + np.arange(2 * WAYS).reshape(2, WAYS))
        labels = torch.arange(WAYS), torch.from_numpy(self._labels[index])
        return Task(*(Batch(part, one_hot(of_part, WAYS), torch.ones(WAYS)) for part, of_part in zip(inputs, labels)))

    def describe(self) -> dict[str, Any]:
        about = {"source": "the official one-shot runs of omniglot", "ways": WAYS, "shots": 1, "queries": 1}
        return about | {"seed": self.seed, "image_size": list(self._examples.images.shape[1:])}

    def num_tasks(self, split: Split) -> int | None:
        return RUNS if split == "test" else None


def _run(archive: zipfile.ZipFile, path: Path, run: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The images (40, size, size) of a run, training images first, and the class (20,) of each test image."""
    try:
        lines = archive.read(f"{run}/class_labels.txt").decode().splitlines()
        pairs = [tuple(line.split()) for line in lines if line.strip()]
        training = [f"{run}/training/class{number:02}.png" for number in range(1, WAYS + 1)]
        labels = np.array([training.index(answer) for _, answer in pairs])
        if sorted(labels) != list(range(WAYS)):
            raise ValueError(f"its answers are not the {WAYS} training drawings, each once")
        members = [*training, *(test for test, _ in pairs)]
        return np.stack([read_drawing(archive.read(name), f"{path}: {name}", size) for name in members]), labels
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {run} cannot be read ({error}); get all_runs.zip again") from error
