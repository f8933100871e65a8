"""Few-shot tasks from your own images: a folder of folders, or a table of paths and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from kshot.annotations import PathText, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.images.augment import AugmentOptions
from kshot.data.images.decode import Colour
from kshot.data.images.encoder import ImageEncoder, NumViews
from kshot.data.images.in_memory import ImageData, kept_images
from kshot.data.images.index import list_folder, list_table
from kshot.sources.image_files import BadImages, Features
from kshot.sources.image_names import check_reads_names, named_images
from kshot.sources.image_tasks import image_tasks
from kshot.tasks.class_tasks import ClassOptions, ClassTasks
from kshot.tasks.names import NamedTasks


@check_arguments
def images(
    path: Path | PathText | ImageData,
    *,
    size: PositiveInt | None = None,
    colour: Colour | None = None,
    features: Features | ImageEncoder = "pixels",
    encoder: str | None = None,
    views: NumViews = 1,
    split: Mapping[str, Any] | None = None,
    within: Literal["domain"] | None = None,
    augment: AugmentOptions | None = None,
    turned_classes: bool = False,
    names: Literal["labels"] | PathText | None = None,
    bad_images: BadImages = "error",
    follow_links: bool = False,
    progress: Callable[[int, int], object] | None = None,
    **options: ClassOptions,
) -> ClassTasks | NamedTasks:
    """Classify your own images.

    Images lie in one folder per class, `flowers/rose/1.jpg`; in folders of such folders, `scripts/Greek/alpha/1.png`,
    where the folders above a class form its domain; below folders of the splits, `train/rose/1.jpg`; or they are listed
    in a CSV with the columns path and label, and optionally domain and split. Formats are PNG, JPEG, WebP, BMP, GIF,
    TIFF, AVIF (with Pillow 11.3), and HEIC with the package pillow-heif. Each is decoded at its first use and cached
    (see `DecodedImages`), so the first task is available at once.

    Args:
        path: the folder, or the table, `.csv` or `.tsv`, whose paths are relative to its folder; or a Dataset of
            PyTorch or of Hugging Face in memory, see `ImageData`, whose images are written into the cache.
        size: width and height in pixels: the central square of an image, resized; by default 84, or that of the
            encoder.
        colour: "rgb", the default, or "grey"; other images are converted.
        features: inputs of the model: "pixels", or "encoder", the features of a pretrained frozen encoder, computed
            once and cached by the content of each file; or an `ImageEncoder`, such as one of a module of your own.
        encoder: a pretrained encoder, see `ImageEncoder`. With "pixels" images are cropped and scaled as it needs them,
            for the encoder as the model.
        views: with features: "encoder", the features of an image are the mean over so many crops and mirror images of
            it, of support and query images alike, see `ImageEncoder`. It costs as many times the encoding.
        split: see `kshot.tasks.splitting`. By default as the folders or the column split say, or else by ratio 0.7,
            0.15, 0.15. With split folders, it splits all their classes anew.
        within: "domain" draws all classes of a task from one domain.
        augment: augmentation of training tasks such as `{"flip": True, "shift": 8, "jitter": 0.4}`, see `Augment`.
        turned_classes: use each training class in four rotations as four classes.
        names: "labels" adds the name of each class to the support set, "a photo of a {label}." as features of the
            encoder's text tower, in a row that is marked; a JSON file `{"rose": "a red flower", …}` adds descriptions,
            one or a list for each class. It goes with features: "encoder" and an encoder of images and texts, such as
            CLIP or SigLIP. `learners.named_means` and `tip_adapter` read the mark, see `kshot.tasks.with_names`.
        bad_images: "error" raises when an unusable image is drawn, or encoded; "drop" decodes all images at once, and
            leaves out unusable ones, which `source.examples.bad` and the log list.
        follow_links: whether to follow links and paths that lead out of the folder.
        progress: called as `progress(num_decoded, num_images)` while "drop" decodes images, or they are encoded.
        options: arguments of `ClassTasks`.

    Raises:
        ValueError: errors of `list_folder`, `list_table`, `cut` and `ClassTasks`, a class in two split folders. While
            drawing tasks: an unusable image.

    Example:
        >>> source = images("flowers", ways=5, shots=1, size=84)  # doctest: +SKIP
        >>> source.task("test", 0).support.inputs.shape  # doctest: +SKIP
        torch.Size([5, 3, 84, 84])
    """
    if names is not None:
        check_reads_names(features, encoder)
    path = Path(path) if isinstance(path, str | Path) else kept_images(path)
    tasks = image_tasks(
        lambda: (list_table if path.is_file() else list_folder)(path, follow_links=follow_links), path,
        size=size, colour=colour, features=features, encoder=encoder, views=views, split=split, within=within,
        augment=augment, turned_classes=turned_classes, bad_images=bad_images, progress=progress, options=options,
    )  # fmt: skip
    return tasks if names is None else named_images(tasks, names)
