"""Masks: their files, their place on the image, and the feature maps beside them."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from kshot.data.images import masks as masks_module
from kshot.data.images.decode import BadImage, decode
from kshot.data.images.encoder import ImageEncoder
from kshot.data.images.feature_maps import FeatureMaps
from kshot.data.images.masks import (
    DecodedMasks,
    class_names,
    decode_mask,
    list_masks,
    of_one_class,
    to_original,
    values_in,
)


def png(array, *, palette=False) -> bytes:
    image = Image.fromarray(np.asarray(array, np.uint8))
    if palette:
        image.putpalette([7] * 768)  # all colours equal: only the numbers count
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


VALUES = np.random.default_rng(0).integers(0, 4, (6, 8))


@pytest.mark.parametrize("palette", [False, True])
def test_values_are_kept_whatever_the_palette(palette):
    found = decode_mask(png(VALUES, palette=palette), "1.png", size=6)
    np.testing.assert_array_equal(found, VALUES[:, 1:7])


@pytest.mark.parametrize("crop", [1.0, 0.875, None])
@pytest.mark.parametrize("shape", [(80, 120), (120, 80), (66, 94)])
def test_a_mask_lies_on_its_image(shape, crop):
    """An image that is its own mask, of large blocks, decoded both ways."""
    blocks = 255 * (np.indices(shape).sum(0) // 28 % 2)
    mask = decode_mask(png(blocks), "1.png", size=48, crop=crop) > 0
    image = decode(png(blocks), "1.png", size=48, colour="grey", crop=crop)[0] / 255
    assert (mask == (image > 0.5)).mean() > 0.93
    back = to_original(mask.astype(np.uint8), shape[1], shape[0], crop)
    seen = back != 255
    assert ((back == 1) == (blocks > 0))[seen].mean() > 0.9
    assert seen.all() == (crop is None)


def test_a_mask_of_colours_is_refused():
    with pytest.raises(BadImage, match="is a mask of mode RGB; a mask is grey or has a palette"):
        decode_mask(png(np.zeros((4, 4, 3))), "1.png", size=4)


def test_a_folder_of_images_and_one_of_masks(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(3):
        (tmp_path / f"images/{number}.png").write_bytes(png(np.full((8, 8), 40 * number)))
        (tmp_path / f"masks/{number}.png").write_bytes(png(np.full((8, 8), number)))
    listing = list_masks(tmp_path)
    assert [file.name for file in listing.masks] == ["masks/0.png", "masks/1.png", "masks/2.png"]
    masks = DecodedMasks(listing, size=4, crop=1.0)[np.arange(3)]
    assert masks[:, 0, 0].tolist() == [0, 1, 2]
    assert np.argwhere(values_in(masks, 0.1)).tolist() == [[0, 0], [1, 1], [2, 2]]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert class_names(tmp_path, [1, 2, 3]) == {1: "cat", 2: "dog", 3: "class 3"}
    (tmp_path / "masks/1.png").write_bytes(png(np.zeros((8, 20))))
    with pytest.raises(BadImage, match="is a mask of 8×20 pixels, and its image has 8×8"):
        DecodedMasks(list_masks(tmp_path), size=4, crop=1.0).shows(0.1)
    (tmp_path / "masks/1.png").unlink()
    with pytest.raises(ValueError, match=r"1 has 1 images and 0 masks, masks/1.png; each image needs one mask"):
        list_masks(tmp_path)


def test_a_folder_for_each_class(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.jpg")
        (tmp_path / name / "1.png").write_bytes(png(np.repeat([[0, 255]], 8, 0).repeat(4, 1)))
    listing = list_masks(tmp_path)
    assert listing.folders == ["cat", "dog"]
    assert DecodedMasks(listing, size=8, crop=1.0)[np.arange(2)][:, 0].tolist() == [[0] * 4 + [1] * 4] * 2
    with pytest.raises(ValueError, match="holds no images with masks; it needs the folders images and masks"):
        list_masks(tmp_path / "cat")


@pytest.fixture
def scenes(tmp_path):
    """Five images with masks of the values 0 to 3 and 255."""
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (17, 12)).save(tmp_path / f"scenes/images/{number}.jpg")
        mask = random.choice(np.array([0, 1, 2, 3, 255]), (12, 17))
        (tmp_path / f"scenes/masks/{number}.png").write_bytes(png(mask))
    return tmp_path / "scenes"


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(monkeypatch):
    """The masks that are decoded."""
    names = []

    def decode(content, name, **options):
        names.append(name.rpartition("/")[2])
        return decode_mask(content, name, **options)

    monkeypatch.setattr(masks_module, "decode_mask", decode)
    return names


def by_pillow(root, size):
    """The masks of a folder, each fitted by Pillow alone."""
    files = sorted((root / "masks").iterdir())
    return np.stack(
        [np.asarray(ImageOps.fit(Image.open(file), (size, size), Image.Resampling.NEAREST)) for file in files]
    )


def test_masks_are_decoded_once_and_read_by_row(scenes, own_cache, counted):
    expected = by_pillow(scenes, 8)
    masks = DecodedMasks(list_masks(scenes), size=8, crop=1.0)
    assert (masks.shape, len(masks), counted) == ((5, 8, 8), 5, [])
    rows = np.array([[3, 1], [1, 0]])
    np.testing.assert_array_equal(masks[rows], expected[rows])
    assert sorted(counted) == ["0.png", "1.png", "3.png"], "those that are read"
    shares = np.stack([(expected == value).mean((1, 2)) for value in range(256)], 1)
    for _ in range(2):
        masks = DecodedMasks(list_masks(scenes), size=8, crop=1.0)
        np.testing.assert_array_equal(masks.shows(0.2), shares >= 0.2)
        np.testing.assert_array_equal(masks.shows(0.1), shares >= 0.1)
    assert sorted(counted) == [f"{number}.png" for number in range(5)], "each once"


def test_masks_half_written_or_damaged_in_the_cache_are_decoded_again(scenes, own_cache, counted):
    expected, rows = by_pillow(scenes, 8), np.arange(5)

    def check(masks):
        np.testing.assert_array_equal(masks[rows], expected)

    check(DecodedMasks(list_masks(scenes), size=8, crop=1.0))
    (pixels,) = own_cache.glob("masks-*/pixels")
    content = bytearray(pixels.read_bytes())
    content[2 * 64 + 5] ^= 1
    pixels.write_bytes(content)
    counted.clear()
    masks = DecodedMasks(list_masks(scenes), size=8, crop=1.0)
    check(masks)
    assert counted == ["2.png"]
    shutil.rmtree(own_cache)
    check(masks)
    assert counted == ["2.png"], "what was opened stays"
    check(DecodedMasks(list_masks(scenes), size=8, crop=1.0))
    (checksums,) = own_cache.glob("masks-*/checksums")
    checksums.write_bytes(checksums.read_bytes()[:-4] + bytes(4))  # killed before the last was confirmed
    counted.clear()
    check(DecodedMasks(list_masks(scenes), size=8, crop=1.0))
    assert counted == ["4.png"]
    first, values = masks.shows(0.1), own_cache / f"{masks.name}-values-0.1.npz"
    values.write_bytes(values.read_bytes()[:-20])
    np.testing.assert_array_equal(DecodedMasks(list_masks(scenes), size=8, crop=1.0).shows(0.1), first)


def test_a_damaged_mask_is_named(scenes, own_cache):
    (scenes / "masks/3.png").write_bytes(b"")
    masks = DecodedMasks(list_masks(scenes), size=8, crop=1.0)
    assert masks[np.array([0])].shape == (1, 8, 8)
    with pytest.raises(BadImage, match=r"masks/3\.png is empty \(0 bytes\); replace it"):
        masks.shows(0.1)


def test_a_mask_of_black_and_white_has_no_ignored_pixels():
    assert of_one_class(np.array([0, 255])).tolist() == [0, 1]
    assert of_one_class(np.array([0, 1, 255])).tolist() == [0, 1, 255]


def test_feature_maps_are_the_output_of_the_last_block_of_a_stride():
    first = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Tanh())
    network = nn.Sequential(first, second, nn.Sequential(nn.Conv2d(5, 6, 3, stride=2, padding=1)), nn.Flatten())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(FeatureMaps(network, 2)(images), second(first(images)))
    assert FeatureMaps(network, 4)(images).shape == (2, 6, 4, 4)
    with pytest.raises(ValueError, match="no feature maps of stride 8 for images of 16 pixels; .* are of 2, 4"):
        FeatureMaps(network, 8)(images)


class Patches(nn.Module):
    """A transformer in little: tokens of patches of 4 pixels after one for the class."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(48, 48))])

    def forward(self, images):
        patches = nn.functional.unfold(images, 4, stride=4).mT
        tokens = torch.cat([torch.zeros(len(images), 1, 48), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]


def test_tokens_of_patches_are_a_map_without_the_token_of_the_class():
    network, images = Patches(), torch.randn(2, 3, 12, 12)
    maps = FeatureMaps(network, 4)(images)
    patch = images[1, :, 4:8, 8:12].flatten()
    torch.testing.assert_close(maps[1, :, 1, 2], network.blocks[0](patch))


def test_an_encoder_with_a_stride_gives_maps():
    network = nn.Sequential(nn.Sequential(nn.AvgPool2d(2), nn.Identity()), nn.Flatten())
    encoder = ImageEncoder.of(network, size=8, stride=2, mean=(0, 0, 0), std=(1, 1, 1))
    found = encoder.encode(np.arange(8 * 8, dtype=np.uint8).reshape(1, 1, 8, 8).repeat(3, 1))
    assert found.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(found[0, 0, 0] * 255, [4.5, 6.5, 8.5, 10.5], rtol=1e-5)
