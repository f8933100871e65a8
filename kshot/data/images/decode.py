"""Decoding of one image file: any common format, orientation, depth and transparency, to one size and colour."""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext, suppress
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

HEIC = (".heic", ".heif", ".hif")
"""File name suffixes of photos of phones and cameras, which need the package pillow-heif."""

AVIF = (".avif",)
"""File name suffixes of AVIF, which Pillow reads from 11.3 on."""

_HAS_AVIF = find_spec("PIL._avif") is not None
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")  # the last two: of Windows, and of photos with a second picture
_OPTIONAL = (*(AVIF * _HAS_AVIF), *(HEIC * bool(find_spec("pillow_heif"))))
SUFFIXES = (".png", *_JPEG, ".webp", ".bmp", ".gif", ".tif", ".tiff", *_OPTIONAL)
"""File name suffixes of images, in lower case."""

VERSION = 2
"""Of the decoding below; part of the key of cached images."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *(("AVIF",) * _HAS_AVIF))  # others may start other programs
_HEIC_HEADS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"))
_UNREAD = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
"""Formats that are not read, by how their files begin."""
_COPIES = {"WEBP": 5, "AVIF": 4, "HEIF": 5}  # in which an image is held while it is decoded; 3 in other formats
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
    bits, cropped to the central square, scaled with antialiasing, and converted to grey or to sRGB, from the colour
    profile that the file contains, if any: photos of phones are in Display P3. A damaged profile is ignored. A JPEG
    much larger than `size` is decoded at a half, a quarter or an eighth of its size, at least twice what is needed,
    before scaling.

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
                profile = image.info.get("icc_profile")
                opaque = _opaque(ImageOps.exif_transpose(image), colour, bool(profile))
                fitted = _coloured(_fitted(opaque, size, crop, get_args(Resample).index(resample)), colour, profile)
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
        if content[4:12] in (b"ftypavif", b"ftypavis") and not _HAS_AVIF:
            raise BadImage(f"{name} is an AVIF image, which needs Pillow 11.3: pip install 'pillow>=11.3'") from error
        for head, kind in _UNREAD.items():
            if content.startswith(head):
                raise BadImage(f"{name} is a {kind} image, which is not read: save it as JPEG or PNG") from error
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

    Pillow holds four bytes a pixel and eight a row, in three copies or more, and two more where something is
    transparent.
    """
    copies = _COPIES.get(image.format or "", 3) + 2 * image.has_transparency_data
    needed, most = copies * image.height * (4 * image.width + 8), limits().image_bytes
    if needed > most:
        size = f"{image.width}×{image.height} pixels need {shown_bytes(needed)}"
        raise _too_large(f"{name} is too large: {size} of memory, of at most {shown_bytes(most)}; scale it down")
    return needed


def _too_large(said: str) -> BadImage:
    return BadImage(str(over(said)))


def _damaged(name: str, error: Exception) -> BadImage:
    return BadImage(f"{name} is damaged ({str(error) or type(error).__name__})")


def _opaque(image: Image.Image, colour: Colour, has_profile: bool) -> Image.Image:
    """The image in 8 bits, opaque, grey or RGB, or as it is stored where its colours need more than that."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))  # 65535 / 255 = 257
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", transparent.size, "white"), transparent)
    if image.mode in ("CMYK", "LAB") or (image.mode == "L" and has_profile):
        return image
    return image.convert("L" if colour == "grey" else "RGB")


def _coloured(image: Image.Image, colour: Colour, profile: bytes | None) -> Image.Image:
    """An opaque image as grey or sRGB, from its colour profile if it has a valid one of its kind."""
    from PIL import ImageCms

    if profile or image.mode == "LAB":
        with suppress(ImageCms.PyCMSError, OSError):
            srgb = ImageCms.createProfile("sRGB")
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
            image = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB") or image
    return image.convert("L" if colour == "grey" else "RGB")
