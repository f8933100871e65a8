"""Image files of every kind as arrays, and files that are none."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from kshot.data.images.decode import BadImage, colour_of, decode


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A colour picture without edges: (height, width, 3)."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack([x, y, 0.5 + 0.5 * np.sin(3 * x + 2 * y)], -1)).astype(np.uint8)


AVIF = [pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow lacks AVIF"))]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *AVIF])
def test_every_format_is_cut_to_its_middle_and_scaled(kind):
    picture = smooth(60, 100)
    found = decode(saved(picture, kind), "it", size=15, colour="rgb")
    middle = picture[:, 20:80].reshape(15, 4, 15, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    assert found.shape == (3, 15, 15)
    assert found.dtype == np.uint8
    assert np.abs(found - middle).mean() < {"GIF": 4, "AVIF": 2}.get(kind, 1.5)  # a GIF has 256 colours


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_looks_the_same():
    picture = smooth(640, 960)
    jpeg, png = (decode(saved(picture, kind), "it", size=20, colour="rgb").astype(int) for kind in ("JPEG", "PNG"))
    assert np.abs(jpeg - png).max() <= 3


def test_what_lies_beside_the_middle_has_no_say():
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 12:48] = 200  # the filter reaches 3 of the scaled pixels beyond the square
    for picture in (wide, wide.T.copy()):
        assert (decode(saved(picture), "it", size=8, colour="grey") == 200).all()


TURNED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.T,
          6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", *AVIF])
def test_an_image_is_turned_as_its_exif_says(orientation, kind):
    stored = np.kron(np.array([[0, 85], [170, 255]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(stored, kind, exif=exif), "it", size=32, colour="grey")[0]
    assert np.abs(found.astype(int) - TURNED[orientation](stored)).max() <= 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(kind):
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = decode(saved(deep, kind), "it", size=16, colour="grey")[0]
    assert np.array_equal(found, np.rint(deep / 257))


def test_transparency_lies_on_white():
    def first(image: Image.Image, colour="rgb") -> list[int]:
        return decode(saved(image), "it", size=2, colour=colour)[:, 0, 0].tolist()

    assert first(Image.new("RGBA", (4, 4), (255, 0, 0, 0))) == [255, 255, 255]
    assert first(Image.new("RGBA", (4, 4), (255, 0, 0, 128))) == [255, 127, 127]
    assert first(Image.new("LA", (4, 4), (0, 0)), "grey") == [255]
    palette = Image.new("P", (4, 4), 7)
    palette.putpalette(bytes(768))
    assert decode(saved(palette, transparency=7), "it", size=1, colour="rgb").tolist() == [[[255]]] * 3


def test_colours_turn_grey_and_grey_turns_to_three_equal_channels():
    picture = smooth(8, 8)
    grey = decode(saved(picture), "it", size=8, colour="grey")
    assert grey.shape == (1, 8, 8)
    assert np.abs(grey[0] - picture @ [0.299, 0.587, 0.114]).max() <= 1
    back = decode(saved(grey[0]), "it", size=8, colour="rgb")
    assert (back == grey).all()
    assert decode(saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), "it", size=1, colour="rgb")[0] > 200
    kinds = {mode: colour_of(saved(Image.new(mode, (2, 2))), "it") for mode in ("1", "L", "LA", "I;16", "RGB", "P")}
    assert kinds == {"1": "grey", "L": "grey", "LA": "grey", "I;16": "grey", "RGB": "rgb", "P": "rgb"}


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        content = saved(
            frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
        )
        assert decode(content, "it", size=2, colour="rgb")[:, 0, 0].tolist() == [255, 0, 0]


RED = Image.new("RGB", (8, 8), (200, 30, 40))


def series() -> dict:
    """Options of saving a second image behind the first."""
    return {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]}


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (RED, "MPO", series()),  # what phones write for photos with a depth or a second picture
        (RED, "PNG", series()),
        (RED, "TIFF", series()),
        (RED.convert("CMYK"), "JPEG", {}),
        (RED.convert("CMYK"), "TIFF", {}),
        (RED.convert("YCbCr"), "TIFF", {}),
        (RED.convert("P"), "PNG", {}),
        (RED.convert("P"), "GIF", {}),
        (RED.convert("RGBA"), "WEBP", {"lossless": True}),
    ],
)
def test_a_photo_keeps_its_colour_however_it_is_stored(image, kind, options):
    found = decode(saved(image.copy(), kind, **options), "it", size=1, colour="rgb")[:, 0, 0].astype(int)
    assert np.abs(found - [200, 30, 40]).max() <= 3


@pytest.mark.parametrize(
    ("colour", "samples"), [(2, (200, 30, 40)), (6, (200, 30, 40, 255)), (4, (200, 255)), (0, (200,))]
)
def test_sixteen_bits_of_every_kind_become_eight(colour, samples):
    row = struct.pack(f">{len(samples)}H", *(257 * sample for sample in samples)) * 2
    content = png_of(2, 2, depth=16, colour=colour, rows=(b"\0" + row) * 2)
    expected = [200, 30, 40] if len(samples) > 2 else [200] * 3
    assert decode(content, "it", size=2, colour="rgb")[:, 0, 0].tolist() == expected


def test_sixteen_bits_of_a_tiff_in_colour_become_eight():
    samples = struct.pack("<12H", *[257 * sample for sample in (200, 30, 40)] * 4)
    tags = {256: (3, 2), 257: (3, 2), 258: (3, 16), 259: (3, 1), 262: (3, 2), 273: (4, 8), 277: (3, 3), 278: (3, 2),
            279: (4, len(samples))}  # fmt: skip
    bits = 8 + len(samples) + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, (kind, value) in tags.items()]
    entries[2] = struct.pack("<HHII", 258, 3, 3, bits)
    table = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4) + struct.pack("<3H", 16, 16, 16)
    content = b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + table
    assert decode(content, "it", size=2, colour="rgb")[:, 0, 0].tolist() == [200, 30, 40]


def test_a_progressive_photo_is_read_and_one_that_was_cut_off_is_not():
    picture = smooth(64, 64)
    plain, progressive = (saved(picture, "JPEG", quality=95, progressive=each) for each in (False, True))
    first, second = (decode(content, "it", size=16, colour="rgb") for content in (plain, progressive))
    assert np.array_equal(first, second)
    with pytest.raises(BadImage, match=r"cat\.jpg is damaged \(.*truncated"):
        decode(progressive[: len(progressive) // 2], "cat.jpg", size=16, colour="rgb")


def test_one_bit_is_black_and_white_and_one_level_of_a_palette_may_be_transparent():
    one_bit = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode(saved(one_bit), "it", size=2, colour="rgb")[1].tolist() == [[0, 255], [255, 0]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 30, 40, 200, 30, 40])
    palette.putpixel((1, 0), 1)
    found = decode(saved(palette, transparency=bytes([255, 0])), "it", size=2, colour="rgb", crop=None)
    assert found[:, 0].T.tolist() == [[200, 30, 40], [255, 255, 255]]
    faint = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 51)])
    assert decode(saved(faint), "it", size=2, colour="rgb")[:, 0, 0].tolist() == [204, 204, 204]


def test_a_panorama_is_read_at_a_part_of_its_size():
    wide = Image.new("RGB", (16_000, 2_000), (200, 30, 40))
    found = decode(saved(wide, "JPEG"), "it", size=8, colour="rgb")
    assert np.abs(found[:, 0, 0].astype(int) - [200, 30, 40]).max() <= 3


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def display_p3() -> bytes:
    """The colour profile of photos of phones: its published primaries, adapted to D50, and the curve of sRGB."""
    primaries = {"r": (0.51512, 0.2412, -0.00105), "g": (0.29198, 0.69225, 0.04189), "b": (0.1571, 0.06657, 0.78407)}
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)}
    for name, place in primaries.items():
        tags |= {f"{name}XYZ".encode(): b"XYZ \0\0\0\0" + fixed(*place), f"{name}TRC".encode(): curve}
    first, entries, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        entries += name + struct.pack(">II", first + len(data), len(value))
        data += value
    length = struct.pack(">I", first + len(data))
    head = length + bytes(4) + b"\x04\0\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + data


def srgb_of_p3(colour: list[int]) -> np.ndarray:
    """By the matrix of CSS Color 4."""
    matrix = np.array([[1.2249401, -0.2249404, 0], [-0.0420569, 1.0420571, 0], [-0.0196376, -0.0786361, 1.0982735]])
    shares = np.array(colour) / 255
    linear = matrix @ np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", *AVIF])
@pytest.mark.parametrize("colour", [[180, 120, 90], [90, 160, 80], [255, 255, 255], [255, 0, 0]])
def test_colours_of_a_wide_gamut_become_those_of_srgb(kind, colour):
    options = {"lossless": True} if kind == "WEBP" else {} if kind in ("PNG", "TIFF") else {"quality": 100}
    content = saved(Image.new("RGB", (8, 8), tuple(colour)), kind, icc_profile=display_p3(), **options)
    found = decode(content, "it", size=4, colour="rgb")[:, 0, 0].astype(float)
    assert np.abs(found - srgb_of_p3(colour)).max() < (1.1 if kind in ("PNG", "TIFF", "WEBP") else 4)


def test_a_damaged_profile_and_one_of_other_channels_are_ignored():
    for profile in (b"no profile", display_p3()[:200]):
        for image, options in ((RED, {}), (RED.convert("L"), {}), (RED.convert("CMYK"), {"kind": "TIFF"})):
            plain, own = (saved(image, icc_profile=each, **options) for each in (b"", profile))
            assert np.array_equal(*(decode(each, "it", size=2, colour="rgb") for each in (plain, own)))
    grey = saved(RED.convert("L"), icc_profile=display_p3())
    assert decode(grey, "it", size=1, colour="rgb")[:, 0, 0].tolist() == [RED.convert("L").getpixel((0, 0))] * 3


def test_lab_colours_are_those_of_their_definition():
    red = Image.new("LAB", (4, 4), (round(54.29 * 2.55), 128 + 81 - 256 * (81 > 127), 128 + 70))  # of sRGB, by D50
    found = decode(saved(red, "TIFF"), "it", size=2, colour="rgb")[:, 0, 0].astype(int)
    assert np.abs(found - [255, 0, 0]).max() <= 6


def test_formats_that_are_not_read_are_named():
    for head, sentence in (
        (b"\xff\x0a\0\0", "is a JPEG XL image, which is not read: save it as JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000 image"),
    ):
        with pytest.raises(BadImage, match=sentence):
            decode(head, "cat.jpg", size=2, colour="rgb")


def test_a_photo_of_a_telephone_is_read_or_says_what_it_needs(monkeypatch):
    head = b"\0\0\0\x1cftypheic\0\0\0\0"
    with pytest.raises(BadImage, match=r"cat\.jpg is a HEIC photo under another name: rename it to \.heic, or save"):
        decode(head, "cat.jpg", size=2, colour="rgb")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(BadImage, match=r"cat\.HEIC is a HEIC photo, which needs .*pip install 'kshot\[files\]'"):
            decode(head, "cat.HEIC", size=2, colour="rgb")
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed; it is in the extra 'files'")
    heif.register_heif_opener()
    pixels, exif = np.zeros((16, 16, 3), np.uint8), Image.Exif()
    pixels[:8], exif[0x0112] = 255, 6
    found = decode(saved(pixels, "HEIF", quality=95, exif=exif.tobytes()), "cat.heic", size=2, colour="grey")[0]
    assert (found > 128).tolist() == [[False, True]] * 2, "turned clockwise"


def png_of(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG that claims a size, with no more than the given rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"cat\.png is empty \(0 bytes\)"),
        (b"no image at all", r"cat\.png is not an image that can be read; it begins with b'no image'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"cat\.png is not an image that can be read"),
        (saved(smooth(99, 99), "JPEG")[:900], r"cat\.png is damaged \(.*truncated"),
        (saved(smooth(99, 99))[:500], r"cat\.png is damaged"),
        (saved(smooth(9, 9))[:20], r"cat\.png is "),
        (png_of(10_000, 10_000), r"cat\.png is too large: .*; scale it down\. If you trust it, raise"),
        (png_of(60_000, 60_000), r"cat\.png is too large: .*; scale it down\. If"),
        (saved(np.zeros((4, 4), np.float32), "TIFF"), r"cat\.png holds 32-bit numbers"),
    ],
)
def test_a_file_that_is_no_usable_image_is_named(content, sentence):
    with pytest.raises(BadImage, match=sentence):
        decode(content, "cat.png", size=8, colour="rgb")


@pytest.mark.filterwarnings("ignore")
def test_many_pixels_are_refused_where_the_warning_is_ignored_too():
    with pytest.raises(BadImage, match=r"too large: 10000×10000 pixels, of at most 89,478,485"):
        decode(png_of(10_000, 10_000), "cat.png", size=8, colour="rgb")


FILES = [saved(smooth(12, 9), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]
FILES.append(saved(smooth(12, 9), "PNG", icc_profile=display_p3()))


@pytest.mark.filterwarnings("ignore")  # Pillow's own on odd files; the reader of many files silences them
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 10**6),
)
def test_any_damage_gives_an_image_or_a_sentence(content, changes, keep):
    spoilt = bytearray(content)
    for place, value in changes:
        spoilt[place % len(spoilt)] = value
    try:
        shape = decode(bytes(spoilt[: keep % (2 * len(spoilt))]), "it", size=4, colour="rgb").shape
    except BadImage:
        return
    assert shape == (3, 4, 4)


MEASURED = """
import os, re, sys
from pathlib import Path
from kshot.data.images.decode import BadImage, decode
decode(Path(sys.argv[2]).read_bytes(), "small.png", size=8, colour="rgb")
if os.fork():  # the same twice, each in a process of its own
    assert os.wait()[1] == 0
    os.environ["KSHOT_LIMITS"] = sys.argv[3]
def peak():  # of this program; that of getrusage is at least the size of the process that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
try:
    decode(Path(sys.argv[1]).read_bytes(), "cat.png", size=8, colour="rgb")
except BadImage as error:
    print(error)
print(peak() - before, flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures the memory of a process")
@pytest.mark.parametrize(
    ("kind", "mode", "width", "height", "copies"),
    [
        ("PNG", "RGB", 1000, 4000, 3), ("PNG", "L", 1, 4_000_000, 3), ("WEBP", "RGB", 1000, 4000, 5),
        pytest.param("PNG", "RGBA", 1000, 4000, 5, marks=pytest.mark.slow),
        pytest.param("PNG", "LA", 1000, 4000, 5, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_image_is_decoded_in_the_memory_that_is_counted_for_it(tmp_path, kind, mode, width, height, copies):
    Image.new(mode, (width, height)).save(tmp_path / "cat.png", kind)
    Image.new(mode, (9, 9)).save(tmp_path / "small.png", kind)
    paths, counted = (tmp_path / "cat.png", tmp_path / "small.png"), copies * height * (4 * width + 8)
    words = [sys.executable, "-c", MEASURED, *paths, f"{0.9 * counted / (1 << 30)}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    taken, sentence, found = done.stdout.splitlines()
    assert 0.15 * counted < int(taken) < 1.1 * counted
    assert sentence.startswith("cat.png is too large: ")
    assert "KSHOT_LIMITS" in sentence
    assert int(found) < 4 << 20


def test_a_png_one_pixel_wide_and_89_million_high_is_refused_by_its_memory():
    with pytest.raises(BadImage, match=r"1×89000000 pixels need 3 GiB of memory, of at most 1 GiB; scale it down\. If"):
        decode(png_of(1, 89_000_000), "cat.png", size=8, colour="rgb")
