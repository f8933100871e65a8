"""Characters of many scripts, drawn from the fonts of matplotlib: image tasks without a download.

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

from kshot.data.cache import cached
from kshot.tasks.class_tasks import ClassOptions, ClassTasks
from kshot.types import Split

if TYPE_CHECKING:
    from PIL import Image

SCRIPTS: Mapping[Split, tuple[str, ...]] = {
    "train": ("LATIN", "DIGIT", "GREEK", "COPTIC", "CYRILLIC", "LISU", "OLD ITALIC", "CANADIAN SYLLABICS"),
    "val": ("HEBREW", "ARABIC", "ARABIC-INDIC", "EXTENDED ARABIC-INDIC", "LAO"),
    "test": ("GEORGIAN", "ARMENIAN"),
}
"""The scripts of each split, as first words of the Unicode names of their characters."""

FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, italic in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{italic}", f"-Bold{italic}")
)
DRAWINGS = 20  # of each character
SIZE = 28  # width and height of a drawing in pixels
FEWEST_FACES = 4  # characters in fewer faces are left out: their drawings would be too similar
ALIKE = 0.88  # cosine similarity of canonical drawings from which on two characters are look-alikes
SOLID = 0.75  # share of its bounding box that the ink of a bar or dot fills at least

_VERSION = 2  # of the drawings, part of the cache key
_FONT_SIZE = 64
_FINER = 3  # supersampling factor


def glyphs(**options: ClassOptions) -> ClassTasks:
    r"""Classify characters of unseen scripts: grey 28×28 drawings, bright strokes on dark, 20 of each character.

    A class is a letter or digit of the DejaVu fonts. It is drawn in up to twelve faces (sans, mono and serif; regular,
    bold, slanted) under a random affine map and stroke width:

    $$ x \mapsto s\,R(\theta) \begin{pmatrix} a & h \\ 0 & 1/a \end{pmatrix} x, \quad
       \theta \sim U[-20°, 20°], \; h \sim U[-0.25, 0.25], \; \ln a \sim U[-0.15, 0.15], $$

    with s such that the character's box becomes $U[19, 26]$ pixels. Drawings are centred on the middle of the ink, and
    strokes of regular faces are widened by 0, 1 or 2 of the 64 pixels of the font size.

    Train, val and test are different scripts, see `SCRIPTS`. Left out are characters that Unicode decomposes (accented
    letters), that fewer than 4 faces contain, that are bars or dots (their ink fills 3/4 of their bounding box), and
    look-alikes: no two classes have canonical drawings (DejaVu Sans, scaled to the bounding box, blurred by one pixel)
    of cosine similarity 0.88 or more, so that one of c/C, A/Α/А, o/O/0 remains, of test before val before train.

    Drawings are made at the first use (seconds) and cached. Equal fonts and versions of Pillow and FreeType give
    identical bytes.

    Args:
        options: arguments of `ClassTasks`; shots + queries is at most 20.

    Raises:
        ValueError: `shots + queries` above 20, or more ways than a split has classes.

    Example:
        >>> task = glyphs(ways=5, shots=1).task("test", 0)
        >>> task.support.inputs.shape
        torch.Size([5, 1, 28, 28])

    References:
        The problem, held-out alphabets with 20 drawings per character, is that of Omniglot: Lake, Salakhutdinov,
        Tenenbaum: Human-level concept learning through probabilistic program induction, Science 350, 2015.
    """
    drawn = cached(f"glyphs-{_key()}", _draw_all)
    names = [unicodedata.name(character) for character in drawn["characters"].tolist()]
    classes: dict[Split, dict[str, range]] = {split: {} for split in SCRIPTS}
    for number, name in enumerate(names):
        if split := _split(name):
            classes[split][name] = range(DRAWINGS * number, DRAWINGS * (number + 1))
    return ClassTasks(drawn["images"], classes, **options, name="glyphs")


def _split(name: str) -> Split | None:
    """The split of a character by its Unicode name; None for other scripts."""
    of = {script: split for split, scripts in SCRIPTS.items() for script in scripts}
    return next((of[script] for script in of if name.startswith(f"{script} ")), None)


def _font_file(face: int) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FACES[face]


def _key() -> str:
    """A hash of what the drawings depend on: code version, fonts, drawing libraries."""
    from PIL import __version__, features

    fonts = hashlib.sha256()
    for face in range(len(FACES)):
        fonts.update(_font_file(face).read_bytes())
    parts = _VERSION, __version__, features.version("freetype2"), unicodedata.unidata_version, fonts.hexdigest()
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _draw_all() -> dict[str, np.ndarray]:
    characters = _distinguishable(_candidates())
    images = [_drawing(character, number) for character in characters for number in range(DRAWINGS)]
    return {"images": np.stack(images)[:, None], "characters": np.array(characters)}


def _candidates() -> list[str]:
    """Letters and digits of the scripts with a shape in the first face and in enough others; test before val before
    train, each in the order of Unicode."""
    order = list(SCRIPTS)[::-1]
    candidates = []
    for code in sorted(_characters(0)):
        name = unicodedata.name(chr(code), "")
        split = _split(name)
        plain = unicodedata.category(chr(code))[0] in "LN" and not unicodedata.decomposition(chr(code))
        if split and plain and len(_faces_of(chr(code))) >= FEWEST_FACES and not _is_solid(chr(code)):
            candidates.append((order.index(split), chr(code)))
    return [character for _, character in sorted(candidates)]


def _distinguishable(characters: list[str]) -> list[str]:
    """The characters without look-alikes of earlier ones."""
    canonical = np.stack([_canonical(character) for character in characters])  # (c, p)
    canonical /= np.linalg.norm(canonical, axis=1, keepdims=True)
    chosen: list[int] = []
    for number, alike in enumerate(canonical @ canonical.T >= ALIKE):
        if not alike[chosen].any():
            chosen.append(number)
    return [characters[number] for number in chosen]


def _is_solid(character: str) -> bool:
    ink = np.asarray(_ink(character, 0, 0))
    return not ink.size or ink.mean() >= SOLID * 255


def _canonical(character: str) -> np.ndarray:
    """The character in the first face, 24 pixels on its longer side, centred in 32×32, blurred; float32 (1024,)."""
    from PIL import Image, ImageFilter

    ink = _ink(character, 0, 0)
    scale = 24 / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX)
    field = Image.new("L", (32, 32))
    field.paste(ink, ((32 - ink.width) // 2, (32 - ink.height) // 2))
    return np.asarray(field.filter(ImageFilter.GaussianBlur(1)), np.float32).ravel()


def _drawing(character: str, number: int) -> np.ndarray:
    """Drawing `number` of a character, uint8 (28, 28); deterministic."""
    from PIL import Image, ImageChops

    random = np.random.default_rng([_VERSION, ord(character), number])
    faces = _faces_of(character)
    face = faces[number % len(faces)]
    turn, shear, stretch = random.uniform([-20, -0.25, -0.15], [20, 0.25, 0.15])
    ink = _ink(character, face, 0 if "Bold" in FACES[face] else int(random.integers(3)))
    cos, sin, a = math.cos(math.radians(turn)), math.sin(math.radians(turn)), math.exp(stretch)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[a, shear], [0, 1 / a]])
    extent = np.abs(forward) @ ink.size  # of the bounding box of the transformed ink
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
    """The character at `_FONT_SIZE`, cropped to its ink."""
    from PIL import Image, ImageDraw

    field = Image.new("L", (4 * _FONT_SIZE, 4 * _FONT_SIZE))
    centre = 2 * _FONT_SIZE, 2 * _FONT_SIZE
    ImageDraw.Draw(field).text(centre, character, 255, _font(face), anchor="mm", stroke_width=stroke)
    return field.crop(field.getbbox() or (0, 0, 0, 0))


@functools.cache
def _font(face: int):  # type: ignore[no-untyped-def]
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_file(face)), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _characters(face: int) -> frozenset[int]:
    """The code points of a face."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_file(face))).get_charmap())


@functools.cache
def _faces_of(character: str) -> list[int]:
    return [face for face in range(len(FACES)) if ord(character) in _characters(face)]
