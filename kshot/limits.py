"""The budget of what is read: bytes, pixels, rows, depth and seconds, stated once for all of kshot.

A small file can cost gigabytes: a compressed one, an image of a few large numbers, YAML whose aliases double. What
would cost more than the budget is refused before it costs it, by a sentence that says how to raise the budget: the
environment variable `KSHOT_LIMITS` multiplies all limits, and `KSHOT_LIMITS=none` lifts them.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, fields

VARIABLE = "KSHOT_LIMITS"
"""The environment variable: a factor of all limits, or "none"."""
DEEPEST = 400
"""Largest depth at any factor, as Python's own stack ends soon after."""


class OverLimit(ValueError):
    """What is to be read costs more than the budget; the message says what and how to raise it."""


@dataclass(frozen=True)
class Limits:
    """The largest cost of one file, image or download.

    Attributes:
        file_bytes: content of a file in memory, after unpacking.
        disk_bytes: files that an archive unpacks to.
        download_bytes: a file that is downloaded.
        ratio: unpacked to packed size; text compresses to a tenth, a bomb to a thousandth.
        small_bytes: unpacked size that is allowed at any ratio.
        members: files and folders of an archive.
        json_bytes: a JSON file, whose values take up to 25 times as much memory.
        yaml_bytes, yaml_values: a YAML file; its values, those of aliases counted each time.
        depth: lists and objects within one another, in JSON and YAML.
        cells: rows times columns of a Parquet or Excel file.
        pixels: width times height of an image, by its header.
        image_bytes: memory in which an image is decoded.
        seconds: duration of a download.
    """

    file_bytes: int = 8 << 30
    disk_bytes: int = 8 << 30
    download_bytes: int = 4 << 30
    ratio: int = 200
    small_bytes: int = 16 << 20
    members: int = 500_000
    json_bytes: int = 512 << 20
    yaml_bytes: int = 1 << 20
    yaml_values: int = 50_000
    depth: int = 100
    cells: int = 1 << 29
    pixels: int = 89_478_485  # Pillow's own
    image_bytes: int = 1 << 30
    seconds: int = 6 * 3600

    def unpacked(self, packed: int, most: int | None = None) -> int:
        """The largest size that `packed` bytes may unpack to: by ratio, and `most`, by default `file_bytes`."""
        return min(self.file_bytes if most is None else most, max(self.small_bytes, self.ratio * packed))


def limits() -> Limits:
    """The limits in force: the defaults times `KSHOT_LIMITS`.

    Raises:
        ValueError: `KSHOT_LIMITS` is neither a positive number nor "none".

    Example:
        >>> import os
        >>> os.environ["KSHOT_LIMITS"] = "2"
        >>> limits().depth
        200
        >>> del os.environ["KSHOT_LIMITS"]
    """
    factor = _factor()
    if factor == 1:
        return Limits()
    scaled = {each.name: _times(getattr(Limits, each.name), factor) for each in fields(Limits)}
    return Limits(**scaled | {"depth": min(scaled["depth"], DEEPEST)})


def over(said: str) -> OverLimit:
    """The error of something that costs more than the budget: the sentence, and how to raise the limits."""
    factor = _factor()
    if math.isinf(factor):
        return OverLimit(f"{said}; {VARIABLE}=none raises this no further")
    return OverLimit(
        f"{said}. If you trust it, raise all limits tenfold by the environment variable {VARIABLE}={10 * factor:g}"
    )


def shown_bytes(count: float) -> str:
    """A size for messages, such as "1.5 GiB".

    Example:
        >>> shown_bytes(3 << 29), shown_bytes(2048), shown_bytes(7)
        ('1.5 GiB', '2 KiB', '7 bytes')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1 << 10 * power:
            return f"{count / (1 << 10 * power):.1f}".removesuffix(".0") + f" {unit}"
    return f"{count:,.0f} bytes"


def _factor() -> float:
    said = os.environ.get(VARIABLE, "").strip().lower()
    if said == "none":
        return math.inf
    try:
        factor = float(said or 1)
    except ValueError:
        factor = math.nan
    if not factor > 0:
        raise ValueError(
            f"{VARIABLE} is the factor of all limits, such as 10, or none for no limits; got {os.environ[VARIABLE]!r}"
        )
    return factor


def _times(value: int, factor: float) -> int:
    return max(1, int(min(value * factor, sys.maxsize // 2)))
