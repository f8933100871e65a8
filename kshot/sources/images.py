"""Few-shot tasks from a user's own images: a folder of folders, or a table of paths and labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kshot.annotations import FractionBelowOne, PathText, PositiveInt
from kshot.data.dataset import Dataset
from kshot.data.images.augment import Augment, AugmentOptions, Turned
from kshot.data.images.cache import DecodedImages
from kshot.data.images.decode import BadImage, Colour, colour_of
from kshot.data.images.index import Listing, list_folder, list_table, shown
from kshot.tasks.class_tasks import ClassTasks, Imbalance
from kshot.tasks.pool import OnTooFew
from kshot.tasks.sampling import Size
from kshot.tasks.splitting import cut
from kshot.types import Split

log = logging.getLogger(__name__)

RATIO = (0.7, 0.15, 0.15)
"""The shares of the classes in train, val and test where nothing else is said."""

_TOLD = 20  # bad images that the log names
_LOOKED_AT = 12  # images whose colour is compared with the one asked for


def images(
    path: Path | PathText,
    *,
    ways: Size = 5,
    shots: Size = 1,
    queries: Size = 15,
    train_ways: Size | None = None,
    train_queries: Size | None = None,
    size: PositiveInt = 84,
    colour: Colour = "rgb",
    split: Mapping[str, Any] | None = None,
    within: Literal["domain"] | None = None,
    augment: AugmentOptions | None = None,
    turned_classes: bool = False,
    imbalance: Imbalance | None = None,
    label_noise: FractionBelowOne = 0.0,
    on_too_few: OnTooFew = "error",
    bad_images: Literal["error", "drop"] = "error",
    follow_links: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> ClassTasks:
    """Tell the classes of your own images apart.

    The images lie in one folder a class, `flowers/rose/1.jpg`; in folders of such folders, `scripts/Greek/alpha/1.png`,
    where the folders above a class are its domain; below folders for the splits, `train/rose/1.jpg`; or they're listed
    in a CSV with the columns path and label, and perhaps domain and split. PNG, JPEG, WebP, BMP, GIF and TIFF are read.

    Each image is decoded when it's first drawn, and kept in the cache (see `DecodedImages` and `decode`), so that the
    first task comes at once however many images there are.

    Args:
        path: the folder, or the table, `.csv` or `.tsv`, whose paths start in its folder.
        ways: classes of a task; an int, or a range (low, high), drawn for each task.
        shots: support images of each class, an int or a range.
        queries: query images of each class, an int or a range.
        train_ways, train_queries: classes and query examples of training tasks, by default as many as of others.
        size: pixels of a side: the square in the middle of an image, scaled.
        colour: "rgb" or "grey"; images of the other kind are converted.
        split: how the classes are cut into train, val and test, see `kshot.tasks.splitting`. By default as the folders
            or the column split say, or else by ratio 0.7, 0.15, 0.15. Given beside split folders, it cuts all their
            classes anew.
        within: "domain" takes all classes of a task from one domain.
        augment: varies the images of training tasks: `{"flip": True, "shift": 8, "jitter": 0.4}`, see `Augment`.
        turned_classes: each training class stands in four quarter turns, which are four classes.
        imbalance: how shots differ between the classes of a task, see `ClassTasks`.
        label_noise: the share of wrong support labels, see `ClassTasks`.
        on_too_few: what becomes of a class with too few images, see `ClassTasks`.
        bad_images: "error" names an image that cannot be used when it is drawn; "drop" decodes all images at once, and
            leaves out the bad ones. `source.examples.bad` and the log say which.
        follow_links: whether links and paths that lead out of the folder are followed.
        seed: names the sequence of tasks.
        progress: is told how many of how many images "drop" has decoded.

    Raises:
        ValueError: what `list_folder`, `list_table`, `cut` and `ClassTasks` say, sizes out of bounds, or a class that
            stands in two split folders. From the tasks: an image that cannot be used.

    Example:
        >>> source = images("flowers", ways=5, shots=1, size=84)  # doctest: +SKIP
        >>> source.task("test", 0).support.inputs.shape  # doctest: +SKIP
        torch.Size([5, 3, 84, 84])
    """
    path = Path(path)
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    for option, given, known in (
        ("colour", colour, ("rgb", "grey")),
        ("bad_images", bad_images, ("error", "drop")),
        ("within", within or "domain", ("domain",)),
    ):
        if given not in known:
            raise ValueError(f"{option} must be {' or '.join(known)}, got {given!r}")
    varied = Augment(**augment) if augment else None
    listing = (list_table if path.is_file() else list_folder)(path, follow_links=follow_links)
    decoded = DecodedImages(listing.files, listing.root, size=size, colour=colour)
    _note_colour(listing, colour)
    rows = {name: np.array(own, np.int64) for name, own in listing.classes.items()}
    if bad_images == "drop":
        log.info("decoding the images of %s where that was not done yet, to find bad ones", path)
        decoded.decode(np.arange(len(decoded)), progress)
        rows = {name: own[~np.isin(own, [*decoded.bad])] for name, own in rows.items()}
        for bad in [*decoded.bad.values()][:_TOLD]:
            log.warning("left out: %s", bad)
        if len(decoded.bad) > _TOLD:
            log.warning("left out: %d more", len(decoded.bad) - _TOLD)
    classes = {part: {name: rows[name] for name in names} for part, names in _cut(listing, path, split).items()}
    domains = dict(listing.domains)
    examples: Dataset = decoded
    if turned_classes:
        examples = Turned(decoded)
        turns = {f"{name}/rot{90 * turn:03}": (name, turn) for name in classes["train"] for turn in range(4)}
        classes["train"] = {turned: rows[name] + turn * len(decoded) for turned, (name, turn) in turns.items()}
        domains |= {turned: domains[name] for turned, (name, _) in turns.items()}
    return ClassTasks(
        examples,
        classes,
        ways=ways,
        shots=shots,
        queries=queries,
        train_ways=train_ways,
        train_queries=train_queries,
        within=_within(listing, path, domains) if within else None,
        imbalance=imbalance,
        label_noise=label_noise,
        on_too_few=on_too_few,
        augment=varied,
        seed=seed,
        name=f"images of {shown(path.name)}",
        left_out={"images that cannot be used": len(decoded.bad)} if decoded.bad else {},
    )


def _cut(listing: Listing, path: Path, split: Mapping[str, Any] | None) -> dict[Split, list[str]]:
    parted = path.is_dir() and "split" in listing.values
    if parted and split is None:
        for name, parts in listing.values["split"].items():
            if len(parts) > 1:
                raise ValueError(
                    f"{path}: class {name!r} stands in the folders of {' and '.join(sorted(parts))}. Few-shot tasks "
                    "are tested on classes never seen in training: keep each class in one of them, or cut the classes "
                    "anew, with split: {ratio: [0.7, 0.15, 0.15]}"
                )
    if split is None:
        split = {"column": "split"} if "split" in listing.values else {"ratio": RATIO}
    values = listing.values.get(str(split.get("column")))
    domains = listing.domains if any(listing.domains.values()) else None
    return cut(listing.classes, split, values=values, domains=domains)


def _within(listing: Listing, path: Path, domains: dict[str, str]) -> dict[str, str]:
    without = [name for name, domain in listing.domains.items() if not domain]
    if without:
        raise ValueError(
            f"{path}: class {without[0]!r} has no domain ({len(without)} of {len(domains)} have none); put its folder "
            "into one, as in DOMAIN/CLASS/image.png, give the table a column domain, or leave out within"
        )
    return domains


def _note_colour(listing: Listing, colour: Colour) -> None:
    """Say so where images are converted, as far as a few of them tell."""
    found = []
    for file in listing.files[:: max(1, len(listing.files) // _LOOKED_AT)][:_LOOKED_AT]:
        try:
            found.append(colour_of((listing.root / file.name).read_bytes(), file.name))
        except (BadImage, OSError):
            continue  # told when it is drawn
    other: Colour = "grey" if colour == "rgb" else "rgb"
    if other in found:
        hint = "; colour: grey would make the work smaller" if set(found) == {"grey"} else ""
        log.info(
            "%s of %s images looked at in %s are %s, and converted to %s%s",
            found.count(other), len(found), listing.root, other, colour, hint,
        )  # fmt: skip
