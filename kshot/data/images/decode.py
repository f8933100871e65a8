"""Decoding of one image file: any common format, orientation, depth and transparency, to one size and colour."""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from kshot.limits import Limits, limits, over, shown_bytes

if TYPE_CHECKING:
    from PIL import Image

Colour = Literal["grey", "rgb"]
CHANNELS: dict[Colour, int] = {"grey": 1, "rgb": 3}

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Filters of scaling, in the order of Pillow's numbers for them; all but "nearest" with antialiasing."""

HEIC = (".heic", ".heif")
"""File name suffixes of photos of telephones, which need the package pillow-heif."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", *(HEIC * bool(find_spec("pillow_heif"))))
"""File name suffixes of images, in lower case."""

VERSION = 1
"""Of the decoding below; part of the key of cached images."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # others may make Pillow start other programs
_HEIC_HEADS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"))
_LARGE = 1 << 27  # bytes; images that need more are decoded one at a time, whatever the number of threads
_one_at_a_time = threading.Lock()
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class BadImage(ValueError):
    """A file that is not a usable image; the message names it."""


def decode(
    content: bytes,
    name: str,
    *,
    size: int,
    colour: Colour,
    crop: float | None = 1.0,
    resample: Resample = "lanczos",
) -> np.ndarray:
    """Decode an image file to uint8 (C, size, size), C channels.

    The first frame is rotated by its EXIF orientation, composed on white where it is transparent, reduced from 16 to 8
    bits, converted to grey or RGB, cropped to the central square and scaled with antialiasing. A JPEG much larger than
    `size` is decoded at a half, a quarter or an eighth of its size, at least twice what is needed, before scaling.

    Args:
        content, name: of the file; the name is for errors.
        size: side in pixels.
        colour: "grey" for one channel, "rgb" for three.
        crop: side of the central square, as a part of the shorter side; None to squeeze the whole image into a square.
        resample: filter of scaling.

    Raises:
        BadImage: an empty or damaged file, something other than an image, 32-bit numbers, or more pixels, or more
            memory for them, than the limits of `kshot.limits`.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (40, 30), "red").save(file, "PNG")
        >>> decode(file.getvalue(), "red.png", size=2, colour="rgb")[:, 0, 0].tolist()
        [255, 0, 0]
    """
    from PIL import ImageOps

    with open_image(content, name) as image:
        try:
            least = round(2 * size / (crop or 1.0))
            image.draft("L" if colour == "grey" else None, (least, least))
            with _one_at_a_time if _memory(image, name) > _LARGE else nullcontext():
                upright = ImageOps.exif_transpose(image)
                fitted = _fitted(_converted(upright, colour), size, crop, get_args(Resample).index(resample))
        except (BadImage, MemoryError):
            raise
        except Exception as error:  # Pillow raises many types of error on damaged files
            raise _damaged(name, error) from error
    return np.asarray(fitted).reshape(size, size, CHANNELS[colour]).transpose(2, 0, 1)


def _fitted(image: Image.Image, size: int, crop: float | None, resample: int) -> Image.Image:
    """The central square of an image, or all of it, scaled to a square."""
    from PIL import ImageOps

    if crop is None:
        return image.resize((size, size), resample)
    if crop == 1:
        return ImageOps.fit(image, (size, size), resample)
    scale = int(size / crop + 1e-6) / min(image.size)  # scaled first: pixels beyond the square have a say at its edges
    width, height = (max(size, round(scale * side)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))


def fitted_nearest(image: Image.Image, size: int, crop: float | None) -> Image.Image:
    """An image of numbers that are no colours, such as a mask, cropped and scaled to its nearest pixels."""
    return _fitted(image, size, crop, get_args(Resample).index("nearest"))


def colour_of(content: bytes, name: str) -> Colour:
    """The colour of an image file, from its header; raises `BadImage` as `decode` does."""
    with open_image(content, name) as image:
        return "grey" if image.mode in _GREY_MODES or image.mode.startswith("I;16") else "rgb"


def upright_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of an image file when it is turned as its EXIF says; raises `BadImage` as `decode` does."""
    with open_image(content, name) as image:
        try:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations on the side
        except Exception as error:  # Pillow raises many types of error on damaged files
            raise _damaged(name, error) from error
        return (image.height, image.width) if turned else image.size


def open_image(content: bytes, name: str) -> Image.Image:
    """Read the header of an image, and check its size and depth."""
    from PIL import Image

    if not content:
        raise BadImage(f"{name} is empty (0 bytes)")
    limit = limits().pixels
    if limit > Limits.pixels and Image.MAX_IMAGE_PIXELS is not None:  # raised by KSHOT_LIMITS: Pillow's own follows
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    formats = _formats(name)
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except Image.UnidentifiedImageError as error:
        if content[4:12] in _HEIC_HEADS and not name.lower().endswith(HEIC):
            raise BadImage(
                f"{name} is a HEIC photo under another name: rename it to .heic, or save it as JPEG"
            ) from error
        raise BadImage(f"{name} is not an image that can be read; it begins with {content[:8]!r}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(f"{name} is too large: {str(error).rstrip('.')}; scale it down") from error
    except Exception as error:
        raise _damaged(name, error) from error
    if image.width * image.height > limit:
        raise _too_large(
            f"{name} is too large: {image.width}×{image.height} pixels, of at most {limit:,}; scale it down"
        )
    if image.mode in ("I", "F"):
        raise BadImage(f"{name} holds 32-bit numbers, whose black and white are unknown; save it with 8 or 16 bits")
    return image


def _formats(name: str) -> tuple[str, ...]:
    """The formats that a file may have; that of HEIC only for such a name, as its decoder is another package's."""
    if not name.lower().endswith(HEIC):
        return _FORMATS
    try:
        import pillow_heif
    except ImportError:
        needed = "needs the package pillow-heif: pip install 'kshot[files]', or save it as JPEG"
        raise BadImage(f"{name} is a HEIC photo, which {needed}") from None
    pillow_heif.register_heif_opener()
    return (*_FORMATS, "HEIF")


def _memory(image: Image.Image, name: str) -> int:
    """Bytes in which an image is decoded; raises `BadImage` if they are too many.

    Pillow holds four bytes a pixel and eight a row, in three copies, or five where something is transparent.
    """
    copies = 5 if image.has_transparency_data else 3
    needed, most = copies * image.height * (4 * image.width + 8), limits().image_bytes
    if needed > most:
        size = f"{image.width}×{image.height} pixels need {shown_bytes(needed)}"
        raise _too_large(f"{name} is too large: {size} of memory, of at most {shown_bytes(most)}; scale it down")
    return needed


def _too_large(said: str) -> BadImage:
    return BadImage(str(over(said)))


def _damaged(name: str, error: Exception) -> BadImage:
    return BadImage(f"{name} is damaged ({str(error) or type(error).__name__})")


def _converted(image: Image.Image, colour: Colour) -> Image.Image:
    """The image in 8 bits, opaque, grey or RGB."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))  # 65535 / 255 = 257
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", transparent.size, "white"), transparent)
    return image.convert("L" if colour == "grey" else "RGB")
