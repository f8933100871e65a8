"""One image file as an array: any common format, orientation, depth and transparency, at one size and colour.

Shape legend: C channels.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Colour = Literal["grey", "rgb"]
CHANNELS: dict[Colour, int] = {"grey": 1, "rgb": 3}

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""How the names of image files end, in small letters."""

VERSION = 1
"""Counts the changes to the decoding below: part of the key of what is kept of it."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no others: some of Pillow's start other programs
_TOO_LARGE = "Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class BadImage(ValueError):
    """A file that is no image that can be used; the sentence names it."""


def decode(content: bytes, place: str, *, size: int, colour: Colour) -> np.ndarray:
    """An image file as uint8 (C, size, size).

    The first frame is turned as its EXIF orientation says, laid on white where it is transparent, brought from 16 to 8
    bits, turned grey or RGB, scaled with antialiasing (Lanczos) and cut to the square in its middle. A JPEG much larger
    than `size` is decoded at a half, a quarter or an eighth of its size, at least twice `size`, before it's scaled.

    Args:
        content: the bytes of the file.
        place: names the file in errors.
        size: pixels of a side.
        colour: "grey" for one channel, "rgb" for three.

    Raises:
        BadImage: an empty or damaged file, something other than an image, 32-bit numbers, or more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (40, 30), "red").save(file, "PNG")
        >>> decode(file.getvalue(), "red.png", size=2, colour="rgb")[:, 0, 0].tolist()
        [255, 0, 0]
    """
    from PIL import Image, ImageOps

    with _opened(content, place) as image:
        try:
            image.draft("L" if colour == "grey" else None, (2 * size, 2 * size))
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(_plain(upright, colour), (size, size), Image.Resampling.LANCZOS)
        except Exception as error:  # Pillow raises nearly every kind of error on damaged files
            raise _damaged(place, error) from error
    return np.asarray(fitted).reshape(size, size, CHANNELS[colour]).transpose(2, 0, 1)


def colour_of(content: bytes, place: str) -> Colour:
    """What an image file holds by itself, from its head.

    Raises:
        BadImage: as `decode`.
    """
    with _opened(content, place) as image:
        return "grey" if image.mode in _GREY_MODES or image.mode.startswith("I;16") else "rgb"


def _opened(content: bytes, place: str) -> Image.Image:
    """The image, its head read and found bearable."""
    from PIL import Image

    if not content:
        raise BadImage(f"{place} is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        start = content[:8]
        raise BadImage(f"{place} is no image that can be read; it begins with {start!r}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"{place} is too large: {error} {_TOO_LARGE}") from error
    except Exception as error:
        raise _damaged(place, error) from error
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise BadImage(f"{place} is too large: {image.width}×{image.height} pixels, of at most {most:,}. {_TOO_LARGE}")
    if image.mode in ("I", "F"):
        raise BadImage(f"{place} holds 32-bit numbers, whose black and white are unknown; save it with 8 or 16 bits")
    return image


def _damaged(place: str, error: Exception) -> BadImage:
    return BadImage(f"{place} is damaged ({str(error) or type(error).__name__})")


def _plain(image: Image.Image, colour: Colour) -> Image.Image:
    """The image in 8 bits, without transparency, of one colour."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))  # 65535 / 255 = 257
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("L" if colour == "grey" else "RGB")
