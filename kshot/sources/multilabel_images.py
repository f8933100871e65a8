"""Few-shot tasks from your own images with any number of labels each, listed in a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import PathText, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.images.decode import Colour
from kshot.data.images.encoder import ImageEncoder
from kshot.data.images.in_memory import ImageData, kept_labelled_images
from kshot.data.images.index import shown
from kshot.data.images.labels import list_labels
from kshot.data.tables.frames import TableLike
from kshot.sources.image_files import BadImages, Features, ImagePreprocessor, encoder_of, kept_of, open_images
from kshot.tasks.label_tasks import LabelOptions, LabelTasks
from kshot.tasks.preprocessor import Support
from kshot.tasks.splitting import DEFAULT_SPLIT, cut

log = logging.getLogger(__name__)


@check_arguments
def multilabel_images(
    path: Path | PathText | ImageData,
    *,
    labels: str | Sequence[str] = "labels",
    separator: str = ";",
    size: PositiveInt | None = None,
    colour: Colour | None = None,
    features: Features | ImageEncoder = "pixels",
    encoder: str | None = None,
    split: Mapping[str, Any] | None = None,
    bad_images: BadImages = "error",
    follow_links: bool = False,
    progress: Callable[[int, int], object] | None = None,
    **options: LabelOptions,
) -> LabelTasks:
    """Tell which labels are true of your own images, of which each may have several, one or none.

    Images are listed in a CSV with the column path, and either a column of labels, "cat;dog", or a column for each
    label, of 1 and 0. The labels are split into train, val and test, and no image with a label of val or test is seen
    in training; see `LabelTasks`.

    Args:
        path: the table, whose paths are relative to its folder; or a Dataset of PyTorch or of Hugging Face in memory,
            see `kept_labelled_images`, whose images are written into the cache.
        labels: the column with the labels of an image, or a list of columns, one for each label.
        separator: between the labels in one column.
        size, colour, features, encoder, bad_images, follow_links, progress: as in `images`.
        split: of the labels, see `kshot.tasks.splitting`; by default by ratio 0.7, 0.15, 0.15.
        options: arguments of `LabelTasks`.

    Raises:
        ValueError: errors of `list_labels`, `cut` and `LabelTasks`. While drawing tasks: an unusable image.

    Example:
        >>> source = multilabel_images("photos.csv", ways=3, shots=2, queries=5)  # doctest: +SKIP
        >>> source.task("test", 0).support.targets.shape  # doctest: +SKIP
        torch.Size([12, 3])
    """
    if not isinstance(path, str | Path):
        if labels != "labels":
            raise ValueError("labels names columns of a table; items in memory have their labels: leave it out")
        path = kept_labelled_images(path, separator)
    path = Path(path)
    preparing = encoder_of(features, encoder, size, colour)
    listing = list_labels(path, labels, separator=separator, follow_links=follow_links)
    examples = open_images(
        listing.files, listing.root, preparing, features=features, size=size, colour=colour, bad_images=bad_images,
        progress=progress,
    )  # fmt: skip
    bad = [*examples.bad] if bad_images == "drop" else []
    rows = {name: np.array(numbers, np.int64) for name, numbers in listing.labels.items()}
    if split and "rows" in split:
        raise ValueError("split by rows has the same labels in all splits; labels are split by ratio, files or folds")
    parts = cut(rows, split or DEFAULT_SPLIT, kind="label")
    kept, column = kept_of(features, preparing, size, colour), labels if isinstance(labels, str) else ""
    preprocessor = None if kept is None else MultilabelPreprocessor(**kept, labels=column, separator=separator)
    of_parts = {part: {name: rows[name] for name in names} for part, names in parts.items()}
    name = f"labelled images of {shown(path.name)}"
    return LabelTasks(examples, of_parts, **options, without=bad, name=name, preprocessor=preprocessor)


@dataclass(frozen=True)
class MultilabelPreprocessor(ImagePreprocessor):
    """Converts image files into inputs, and predictions into labels.

    Attributes:
        labels: the column of labels of a table; empty for a column for each label.
        separator: between the labels in one column.
    """

    labels: str = "labels"
    separator: str = ";"

    def kept_support(self, data: ImageData) -> Path:
        if not self.labels:
            raise ValueError(
                "this run reads a table with a column for each label: give such a table instead of a data set in memory"
            )
        return kept_labelled_images(data, self.separator, self.labels)

    def support(self, path: Path | TableLike) -> Support:
        """The images of a table, whose labels are those of the task."""
        assert isinstance(path, Path)
        listing = list_labels(path, self.labels or (), separator=self.separator)
        targets = np.zeros((len(listing.files), len(listing.labels)), np.float32)
        for number, rows in enumerate(listing.labels.values()):
            targets[rows, number] = 1
        images = torch.stack([self.image(listing.root / file.name) for file in listing.files])
        return Support(self.encoded(images), torch.from_numpy(targets), {"labels": [*listing.labels]})

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """The labels of each image, and the probability of each label."""
        names, probability = kept["labels"], prediction.double().sigmoid()
        predicted = [self.separator.join(np.array(names)[row.numpy() > 0.5].tolist()) for row in probability]
        return {"labels": predicted} | {f"p({name})": column for name, column in zip(names, probability.T.tolist())}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "multilabel_images", **asdict(self)}
