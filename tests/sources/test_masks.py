"""Segmentation of image files: both layouts, feature maps, baselines, and a run from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import kshot
from kshot import objectives, sources
from kshot.app.apply import mask_writer
from kshot.app.run import run
from kshot.app.spec import parse_spec
from kshot.data.images.encoder import ImageEncoder
from kshot.evaluation.report.mask_pictures import Segmented, segmentations
from kshot.learners.baselines.masks import MeanMask, PixelClassifier, pixel_features
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.types import SPLITS, Batch

FOLDS = {"folds": 3, "fold": 0}
SMALL = {"size": 16, "shots": 1, "queries": 2, "split": FOLDS}


def draw(random: np.random.Generator, colour: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """A square of a colour on noise, and where it is."""
    inside = np.zeros((20, 28), bool)
    y, x = random.integers(2, 10), random.integers(6, 14)
    inside[y : y + 8, x : x + 8] = True
    pixels = np.where(inside[..., None], colour, 0.5 * random.random((20, 28, 3)))
    return Image.fromarray((255 * pixels).astype(np.uint8)), inside


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    """A folder for each of six classes."""
    root, random = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for number in range(6):
        (root / f"shape{number}").mkdir()
        for image in range(6):
            drawn, inside = draw(random, 0.4 + 0.6 * random.permutation([1, number / 6, 0]))
            drawn.save(root / f"shape{number}/{image}.jpg", quality=95)
            Image.fromarray((255 * inside).astype(np.uint8)).save(root / f"shape{number}/{image}.png")
    return root


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Images in one folder, and masks of values in another; a border of each mask is not scored."""
    root, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(1)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for image in range(36):
        value = 1 + image % 6
        drawn, inside = draw(random, np.array([value / 6, 1 - value / 6, 0.9]))
        mask = np.where(inside, value, 0).astype(np.uint8)
        mask[:, :6] = 255
        drawn.save(root / f"images/{image}.png")
        Image.fromarray(mask).save(root / f"masks/{image}.png")
    (root / "classes.txt").write_text("\n".join(f"kind{value}" for value in range(1, 7)))
    return root


@pytest.mark.parametrize("layout", ["by_class", "together"])
def test_the_contract_of_its_tasks(layout, request):
    source = sources.masks(request.getfixturevalue(layout), **SMALL)
    kshot.testing.check_source(source)
    assert source.describe()["classes"] == dict.fromkeys(SPLITS, 2)
    names = {name for split in SPLITS for name in source.class_names[split]}
    assert names == {f"shape{n}" for n in range(6)} if layout == "by_class" else {f"kind{n}" for n in range(1, 7)}


def in_memory(root, layout):
    """All masks of a folder as Pillow reads them, with a value for each class, and -1 where they are not scored."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if layout == "by_class" else [root / "masks"]
    maps = []
    for number, folder in enumerate(folders, 1):
        for file in sorted(folder.glob("*.png")):
            mask = np.asarray(ImageOps.fit(Image.open(file), (16, 16), Image.Resampling.NEAREST)).astype(np.int16)
            maps.append(number * (mask > 0) if layout == "by_class" else np.where(mask == 255, -1, mask))
    return np.stack(maps)


@pytest.mark.parametrize("layout", ["by_class", "together"])
def test_targets_are_the_masks_that_pillow_reads(layout, request):
    root = request.getfixturevalue(layout)
    source, maps = sources.masks(root, **SMALL), in_memory(root, layout)
    np.testing.assert_array_equal(source.masks[np.arange(36)], maps)
    for index in range(6):
        (name,) = [source.class_names["test"][number] for number in source.units("test", [index])]
        value = int(name.lstrip("shapekind")) + (layout == "by_class")
        for batch, rows in zip(source.task("test", index), source.example_rows("test", index)):
            expected = np.stack([(maps[rows] >= 0) & (maps[rows] != value), maps[rows] == value], 1)
            np.testing.assert_array_equal(batch.targets, expected.astype(np.float32))


def test_pixels_that_are_not_scored_are_in_no_class(together):
    query = sources.masks(together, **SMALL).task("test", 0).query
    assert (query.targets[..., 0] == 0).all()
    assert (query.targets[..., 5:].sum(1) == 1).all()


def test_frozen_feature_maps(by_class):
    network = nn.Sequential(nn.Sequential(nn.AvgPool2d(2), nn.Identity()), nn.Flatten())
    encoder = ImageEncoder.of(network, size=16, stride=2, mean=(0, 0, 0), std=(1, 1, 1))
    options = {"shots": 1, "queries": 2, "split": FOLDS}
    source, pixels = sources.masks(by_class, features=encoder, **options), sources.masks(by_class, **SMALL)
    assert source.task("test", 0).support.inputs.shape == (1, 3, 8, 8)
    for found, expected in zip(source.task("test", 3), pixels.task("test", 3)):
        torch.testing.assert_close(found.targets, expected.targets)
    learner = kshot.protonet(nn.Identity(), objective=objectives.segmentation)
    figure = kshot.evaluate(learner, source, num_tasks=10, audit=False).metrics["mean_iou"].mean
    assert figure > 0.5
    with pytest.raises(ValueError, match="segmentation needs feature maps: give the ImageEncoder a stride"):
        sources.masks(by_class, features=ImageEncoder.of(network, size=16), **options)


def test_feature_maps_are_read_by_row_from_the_cache(by_class, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kshot.data.images.encoder.CHUNK", 7)
    network = nn.Sequential(nn.Sequential(nn.AvgPool2d(2), nn.Identity()), nn.Flatten())
    encoder = ImageEncoder.of(network, size=16, stride=2, mean=(0, 0, 0), std=(1, 1, 1))
    source = sources.masks(by_class, features=encoder, shots=1, queries=2, split=FOLDS)
    files = [source.examples.root / file.name for file in source.examples.files]
    images = np.stack([encoder.decoded(file.read_bytes(), file.name) for file in files])
    assert len([*(tmp_path / "cache").glob(".rows-*/rows/*.npz")]) == 6, "36 images by 7"
    rows = np.array([[35, 0], [8, 8]])
    np.testing.assert_array_equal(source.examples.take(rows), encoder.encode(images)[rows])


def test_the_baselines_of_an_expert(together):
    source = sources.masks(together, **SMALL)
    figures = {
        name: kshot.evaluate(each, source, num_tasks=6, audit=False).metrics["mean_iou"].mean
        for name, each in kshot.evaluation.baselines(source, num_val_tasks=1).items()
    }
    assert figures.keys() == {"all_background", "mean_mask", "pixel_logistic", "pixel_forest"}
    assert figures["all_background"] == 0
    assert 0 < figures["mean_mask"] < figures["pixel_forest"]
    assert figures["pixel_logistic"] > 0.5


def test_a_mean_mask_is_the_weighted_mean():
    masks = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]], [[[1.0, 0.0]], [[0.0, 1.0]]], [[[0.0, 0.0]], [[1.0, 1.0]]]])
    support = Batch.of(torch.zeros(3, 3, 1, 2), masks, weight=torch.tensor([1.0, 3.0, 0.0]))
    learner = MeanMask()
    found = learner.predict(learner.adapt(support), torch.zeros(2, 3, 1, 2)).exp()
    torch.testing.assert_close(found[1, :, 0, 1], torch.tensor([0.25, 0.75]))


def test_pixel_features_are_values_blurs_and_edges():
    image = torch.zeros(1, 1, 9, 9)
    image[:, :, :, 5:] = 1
    features = pixel_features(image)
    assert features.shape == (1, 9, 9, 7)
    np.testing.assert_array_equal(features[0, ..., 0], image[0, 0])
    assert int(features[0, 4, :, 3].argmax()) in (4, 5)  # the gradient, at the edge


def test_a_forest_ignores_images_of_weight_0(together):
    support, query = sources.masks(together, **SMALL | {"shots": 2}).task("test", 0)
    alone, padded = support.rows(slice(1)), support._replace(weight=torch.tensor([1.0, 0.0]))
    learner = PixelClassifier(kind="logistic")
    found, expected = (learner.predict(learner.adapt(each), query.inputs) for each in (padded, alone))
    torch.testing.assert_close(found, expected)


def test_a_picture_has_the_overlap_of_each_image(together):
    source = sources.masks(together, **SMALL)
    task = source.task("test", 0)
    rows = source.example_rows("test", 0)
    images = [source.pictures.take(each) for each in rows]
    certain = objectives.segmentation.as_prediction(task.query.targets)
    figure = segmentations([Segmented(task, *images, certain), Segmented(task, *images, -certain)])
    overlaps = [text.get_text() for text in figure.axes[0].texts if text.get_gid() == "overlap"]
    assert overlaps == ["1.00", "1.00", "0.00", "0.00"]


@pytest.mark.parametrize("learner", ["{kind: protonet}", "{kind: maml, inner_lr: 0.1, steps: 2}"])
def test_a_run_from_its_file_to_masks(learner, together, tmp_path):
    spec = parse_spec(
        f"""
name: kinds
source: {{kind: masks, path: {together}, size: 16, queries: 2, split: {{folds: 3, fold: 0}}}}
model: {{kind: segmenter, channels: [8, 8], halvings: 1}}
learner: {learner}
target: mean_iou >= 0.9
budget: {{rounds: 1}}
train: {{steps_per_round: 3, tasks_per_step: 2}}
baselines: {{names: [all_background, mean_mask, scratch], steps: 2, num_val_tasks: 2, inner_lrs: [0.1]}}
evaluate: {{num_val_tasks: 4, num_test_tasks: 4, shots: [1, 2]}}
""",
        "kinds.yaml",
    )
    report = run(spec, tmp_path / "run")
    assert {"mean_iou", "fb_iou", "pixel_accuracy"} <= report["test"].keys()
    assert set(report["baselines"]) == {"all_background", "mean_mask", "scratch"}
    page = (tmp_path / "run/report.html").read_text()
    assert "Errors by class" in page
    assert "Images with the lowest overlap" in page
    trained = kshot.load(tmp_path / "run")
    (tmp_path / "mine/images").mkdir(parents=True)
    (tmp_path / "mine/masks").mkdir()
    for folder, number in (("images", 4), ("masks", 4)):
        (tmp_path / f"mine/{folder}/{number}.png").write_bytes((together / f"{folder}/{number}.png").read_bytes())
    adapted = trained.adapt(tmp_path / "mine")
    assert adapted.kept == {"classes": ["class 5"], "values": [5]}
    image = together / "images/10.png"
    masks: dict[Path, np.ndarray] = {}
    told = trained.predict(adapted, [image], masks=masks.__setitem__)
    mask = masks[image]
    assert mask.shape == (20, 28)
    assert (mask[:, :4] == 255).all()
    assert set(np.unique(mask)) <= {0, 5, 255}
    assert (mask == 5).sum() / (mask != 255).sum() == pytest.approx(told["share(class 5)"][0], abs=0.06)
    mask_writer(tmp_path / "out", [image])(image, mask)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/10.png")), mask)
    with pytest.raises(ValueError, match="exists and is never overwritten"):
        mask_writer(tmp_path / "out", [image])(image, mask)


def test_its_preprocessor_is_kept(together):
    preprocessor = sources.masks(together, **SMALL).preprocessor
    assert preprocessor_from_json(json.loads(json.dumps(preprocessor.to_json()))) == preprocessor
