"""Characters of many scripts, drawn at run time from the fonts that matplotlib ships: image tasks without a download.

Shape legend: c candidate characters, p pixels.
"""

from __future__ import annotations

import functools
import hashlib
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kshot.annotations import FractionBelowOne
from kshot.data.cache import cached
from kshot.tasks.class_tasks import ClassTasks, Imbalance
from kshot.tasks.sampling import Size
from kshot.types import Split

if TYPE_CHECKING:
    from PIL import Image

SCRIPTS: Mapping[Split, tuple[str, ...]] = {
    "train": ("LATIN", "DIGIT", "GREEK", "COPTIC", "CYRILLIC", "LISU", "OLD ITALIC", "CANADIAN SYLLABICS"),
    "val": ("HEBREW", "ARABIC", "ARABIC-INDIC", "EXTENDED ARABIC-INDIC", "LAO"),
    "test": ("GEORGIAN", "ARMENIAN"),
}
"""The first words of the Unicode names of each split's characters: whole scripts are held out."""

FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, italic in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{italic}", f"-Bold{italic}")
)
DRAWINGS = 20
"""Drawings of each character."""
SIZE = 28
"""Pixels of a drawing's side."""
FEWEST_FACES = 4
"""A character that stands in fewer faces is left out: its drawings would be too much alike."""
ALIKE = 0.88
"""Two characters whose canonical drawings have this cosine similarity or more look alike: one of them is left out."""
SOLID = 0.75
"""A character whose ink fills this share of its bounding box or more is a bar or a dot, no shape: it is left out."""

_VERSION = 2  # counts the changes to the drawings below: part of the cache's name
_FONT_SIZE = 64
_FINER = 3  # drawings are made this many times larger and averaged down


def glyphs(
    *,
    ways: Size = 5,
    shots: Size = 1,
    queries: Size = 15,
    train_ways: Size | None = None,
    train_queries: Size | None = None,
    imbalance: Imbalance | None = None,
    label_noise: FractionBelowOne = 0.0,
    seed: int = 0,
) -> ClassTasks:
    r"""Tell characters of unseen scripts apart: grey 28×28 drawings, strokes bright on dark, 20 of each character.

    A class is a letter or digit of the DejaVu fonts, its drawings are made from up to twelve faces (sans, mono and
    serif; regular, bold, slanted) under a random affine map and stroke:

    $$ x \mapsto s\,R(\theta) \begin{pmatrix} a & h \\ 0 & 1/a \end{pmatrix} x, \quad
       \theta \sim U[-20°, 20°], \; h \sim U[-0.25, 0.25], \; \ln a \sim U[-0.15, 0.15], $$

    with s such that the map takes the character's box to $U[19, 26]$ pixels, the middle of the ink in the middle of the
    drawing, and strokes of the regular faces widened by 0, 1 or 2 of the 64 pixels the font is drawn at.

    Train, val and test are different scripts (see `SCRIPTS`): train is Latin, European digits, Greek, Coptic,
    Cyrillic, Lisu, Old Italic and Canadian syllabics; val is Hebrew, Arabic with its digits, and Lao; test is Georgian
    and Armenian.
    Left out are characters that Unicode decomposes (accented letters), that fewer than 4 faces have, that are bars or
    dots (their ink fills 3/4 of their bounding box), and look-alikes: over the whole pool no two classes' canonical
    drawings (DejaVu Sans, scaled to their bounding box, blurred by one pixel) have a cosine similarity of 0.88 or
    more, so that one of c/C, A/Α/А, o/O/0 stays. Test characters are kept before val ones, and val before train.

    The drawings are made at the first use (seconds) and kept in the cache. The same fonts and the same versions of
    Pillow and FreeType give the same bytes.

    Args:
        ways, imbalance, label_noise: as in `ClassTasks`; ways, shots and queries may be ranges.
        shots: support drawings of each class.
        queries: query drawings of each class; shots + queries is at most 20.
        train_ways, train_queries: classes and query examples of training tasks, by default as many as of others.
        seed: names the sequence of tasks; the drawings are the same for all seeds.

    Raises:
        ValueError: `shots + queries` above 20, or more ways than a split has classes.

    Example:
        >>> task = glyphs(ways=5, shots=1).task("test", 0)
        >>> task.support.inputs.shape
        torch.Size([5, 1, 28, 28])

    References:
        The shape of the problem, held-out alphabets with 20 drawings a character, is Omniglot's: Lake, Salakhutdinov,
        Tenenbaum: Human-level concept learning through probabilistic program induction, Science 350, 2015.
    """
    made = cached(f"glyphs-{_key()}", _draw_all)
    names = [unicodedata.name(character) for character in made["characters"].tolist()]
    classes = {
        split: {
            name: range(DRAWINGS * number, DRAWINGS * (number + 1))
            for number, name in enumerate(names)
            if _split(name) == split
        }
        for split in SCRIPTS
    }
    return ClassTasks(
        made["images"],
        classes,
        ways=ways,
        shots=shots,
        queries=queries,
        train_ways=train_ways,
        train_queries=train_queries,
        imbalance=imbalance,
        label_noise=label_noise,
        seed=seed,
        name="glyphs",
    )


def _split(name: str) -> Split | None:
    """The split of a character by its Unicode name; None for a script in none."""
    of = {script: split for split, scripts in SCRIPTS.items() for script in scripts}
    return next((of[script] for script in of if name.startswith(f"{script} ")), None)


def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _key() -> str:
    """All that the drawings depend on: this code's version, the fonts, the libraries that draw."""
    from PIL import __version__, features

    fonts = hashlib.sha256()
    for face in FACES:
        fonts.update((_font_folder() / face).read_bytes())
    parts = _VERSION, __version__, features.version("freetype2"), unicodedata.unidata_version, fonts.hexdigest()
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _draw_all() -> dict[str, np.ndarray]:
    characters = _apart(_candidates())
    images = [_drawing(character, number) for character in characters for number in range(DRAWINGS)]
    return {"images": np.stack(images)[:, None], "characters": np.array(characters)}


def _candidates() -> list[str]:
    """Letters and digits of the scripts that have a shape in the first face and stand in enough others; test before
    val before train, each in the order of Unicode."""
    order = list(SCRIPTS)[::-1]
    found = []
    for code in sorted(_characters(0)):
        name = unicodedata.name(chr(code), "")
        split = _split(name)
        plain = unicodedata.category(chr(code))[0] in "LN" and not unicodedata.decomposition(chr(code))
        if split and plain and len(_faces_of(chr(code))) >= FEWEST_FACES and not _is_solid(chr(code)):
            found.append((order.index(split), chr(code)))
    return [character for _, character in sorted(found)]


def _apart(characters: list[str]) -> list[str]:
    """The characters without those that look like an earlier one."""
    canonical = np.stack([_canonical(character) for character in characters])  # (c, p)
    canonical /= np.linalg.norm(canonical, axis=1, keepdims=True)
    alike = canonical @ canonical.T >= ALIKE
    kept: list[int] = []
    for number in range(len(characters)):
        if not alike[number, kept].any():
            kept.append(number)
    return [characters[number] for number in kept]


def _is_solid(character: str) -> bool:
    ink = np.asarray(_ink(character, 0, 0))
    return not ink.size or ink.mean() >= SOLID * 255


def _canonical(character: str) -> np.ndarray:
    """The character in the first face, its longer side 24 pixels, in the middle of 32×32, blurred; (1024,) float32."""
    from PIL import Image, ImageFilter

    ink = _ink(character, 0, 0)
    scale = 24 / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX)
    field = Image.new("L", (32, 32))
    field.paste(ink, ((32 - ink.width) // 2, (32 - ink.height) // 2))
    return np.asarray(field.filter(ImageFilter.GaussianBlur(1)), np.float32).ravel()


def _drawing(character: str, number: int) -> np.ndarray:
    """Drawing `number` of a character, (28, 28) uint8: a function of the two and nothing else."""
    from PIL import Image, ImageChops

    random = np.random.default_rng([_VERSION, ord(character), number])
    faces = _faces_of(character)
    face = faces[number % len(faces)]
    turn, shear, stretch = random.uniform([-20, -0.25, -0.15], [20, 0.25, 0.15])
    ink = _ink(character, face, 0 if "Bold" in FACES[face] else int(random.integers(3)))
    cos, sin, a = math.cos(math.radians(turn)), math.sin(math.radians(turn)), math.exp(stretch)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[a, shear], [0, 1 / a]])
    extent = np.abs(forward) @ ink.size  # of the box around the turned box of ink
    forward *= random.uniform(19, 26) * _FINER / extent.max()
    side = SIZE * _FINER
    back = np.linalg.inv(forward)
    offset = np.array(ink.size) / 2 - back @ [side / 2, side / 2]
    matrix = (*back[0], offset[0], *back[1], offset[1])
    field = ink.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    box = field.getbbox()
    assert box is not None, character  # a candidate has ink
    centred = ImageChops.offset(field, (side - box[0] - box[2]) // 2, (side - box[1] - box[3]) // 2)
    return np.asarray(centred.reduce(_FINER))


def _ink(character: str, face: int, stroke: int) -> Image.Image:
    """The character at `_FONT_SIZE`, cut to its ink; of no size where it has none."""
    from PIL import Image, ImageDraw

    field = Image.new("L", (4 * _FONT_SIZE, 4 * _FONT_SIZE))
    place = 2 * _FONT_SIZE, 2 * _FONT_SIZE
    ImageDraw.Draw(field).text(place, character, 255, _font(face), anchor="mm", stroke_width=stroke)
    return field.crop(field.getbbox() or (0, 0, 0, 0))


@functools.cache
def _font(face: int):  # type: ignore[no-untyped-def]
    from PIL import ImageFont

    path = str(_font_folder() / FACES[face])
    return ImageFont.truetype(path, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _characters(face: int) -> frozenset[int]:
    """The codes that a face has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_folder() / FACES[face])).get_charmap())


@functools.cache
def _faces_of(character: str) -> list[int]:
    return [face for face in range(len(FACES)) if ord(character) in _characters(face)]
