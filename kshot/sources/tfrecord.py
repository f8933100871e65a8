"""Few-shot tasks from TFRecord files in the format of Meta-Dataset, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.images.augment import AugmentOptions
from kshot.data.images.decode import Colour
from kshot.data.images.encoder import ImageEncoder, NumViews
from kshot.data.images.meta_dataset import list_records
from kshot.sources.image_files import BadImages, Features
from kshot.sources.image_tasks import image_tasks
from kshot.tasks.class_tasks import ClassOptions, ClassTasks


@check_arguments
def tfrecord(
    path: Path | str,
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
    bad_images: BadImages = "error",
    progress: Callable[[int, int], object] | None = None,
    **options: ClassOptions,
) -> ClassTasks:
    """Classify images of TFRecord files, one or several for each class, as the converters of Meta-Dataset write them.

    The folder holds `dataset_spec.json`, which names the classes and splits them, and `0.tfrecords`, `1.tfrecords`, …
    by the number of the class, or `0_0.tfrecords`, `0_1.tfrecords`, …, whose images are joined. A record is a
    `tf.train.Example` with the features image, an encoded image, and label, the number of the class. Its checksums are
    compared when it is read. Where records begin is kept in the cache, as decoded images are.

    A superclass, such as an alphabet of Omniglot, is the domain of its classes. The graph of ImageNet's classes gives
    their splits alone. For tasks as in the benchmark of Meta-Dataset give ways and shots as ranges; how it weighs them
    is not reproduced.

    Args:
        path: the folder.
        split: by default that of `dataset_spec.json`; else see `kshot.tasks.splitting`.
        size, colour, features, encoder, views, within, augment, turned_classes, bad_images, progress: as in `images`.
        options: arguments of `ClassTasks`.

    Raises:
        ValueError: errors of `list_records`, `cut` and `ClassTasks`. While drawing tasks: a damaged record, or one
            that holds no usable image or has another label.

    Example:
        >>> source = tfrecord("records/aircraft", ways=5, shots=1, size=84)  # doctest: +SKIP
        >>> source.task("test", 0).support.inputs.shape  # doctest: +SKIP
        torch.Size([5, 3, 84, 84])

    References:
        Triantafillou et al.: Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples, ICLR 2020,
        arXiv:1903.03096.
    """
    path = Path(path)
    return image_tasks(
        lambda: list_records(path), path,
        size=size, colour=colour, features=features, encoder=encoder, views=views, split=split, within=within,
        augment=augment, turned_classes=turned_classes, bad_images=bad_images, progress=progress, options=options,
    )  # fmt: skip
