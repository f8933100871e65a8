"""Near copies of pictures, rows and texts, and the nearest row of each against all distances."""

import io
import json
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from PIL import Image
from planted import EACH, numbers, pictures

from kshot import sources
from kshot.checking.check import check
from kshot.checking.contents import _compared
from kshot.checking.findings import parts_of
from kshot.checking.near_copies import (
    _CROWD,
    PICTURE_RADIUS,
    Sketcher,
    _nearest_rows,
    mirrored,
    nearest,
    normalise,
    picture_sketches,
)
from kshot.data.images.encoder import ImageEncoder

found = partial(planted.found, num_tasks=20)


def by_all_distances(rows, known, same, radius):
    distance = np.abs(rows[:, None] - known[None]).max(-1)
    crowded = (distance <= 10 * radius).sum(1) >= _CROWD
    if same:
        np.fill_diagonal(distance, np.inf)
    least = distance.min(1)
    return np.where(least <= 1000 * radius, least, np.inf), distance, crowded


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("equal", [0, 1, 40])
def test_the_nearest_row_is_found_with_and_without_equal_rows(same, equal):
    random = np.random.default_rng(equal)
    known = random.normal(size=(120, 2))
    known[random.choice(120, equal, replace=False)] = known[0]
    known[60:70] += known[50:60] - known[60:70] + 1e-3
    rows = known if same else np.concatenate([known[:20], random.normal(size=(30, 2))])
    distance, index, crowded = _nearest_rows(rows, known, same, 1e-3)
    least, every, crowd = by_all_distances(rows, known, same, 1e-3)
    assert distance == pytest.approx(least)
    near = np.isfinite(distance)
    assert every[near, index[near]] == pytest.approx(distance[near])
    assert (crowded == crowd).all()


def test_many_equal_rows_are_searched_in_time():
    rows = np.repeat([[0.0], [1.0]], 100_000, 0)  # 20 seconds for a k-d tree of all rows
    distance, index, crowded = _nearest_rows(rows, rows, True, 1e-4)
    assert (distance == 0).all()
    assert (index != np.arange(len(rows))).all()
    assert (rows[index] == rows).all()
    assert crowded.all()


def photos(seed=0, classes=32):
    """Smooth pictures of three channels, (classes * EACH, 3, 32, 32)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (classes * EACH, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(own).resize((32, 32), Image.Resampling.BICUBIC)) for own in coarse])


def encoded(image, quality=85):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(image):
    return np.asarray(Image.fromarray(image).resize((48, 48)).resize((32, 32), Image.Resampling.BILINEAR))


def turned_over(image):
    return encoded(image[:, ::-1])


@pytest.mark.parametrize("change", [encoded, resized, turned_over], ids=["re-encoded", "resized", "mirrored"])
def test_pictures_that_were_resized_or_encoded_again_are_copies(change):
    clean = photos()
    source = pictures(clean.transpose(0, 3, 1, 2))
    assert {found(source, name)[0] for name in ("two splits", "copies", "support and query")} <= {"ok", None}
    images = clean.copy()
    images[EACH * 25 : EACH * 25 + 4] = [change(own) for own in clean[:4]]
    severity, sentence = found(pictures(images.transpose(0, 3, 1, 2)), "two splits")
    assert severity == "error"
    assert "4 of 80 test examples looked at equal one of train up to resizing, re-encoding or mirroring" in sentence
    assert "'member 25'" in sentence
    images = clean.copy()
    images[1::2] = [change(own) for own in clean[::2]]
    source = pictures(images.transpose(0, 3, 1, 2))
    assert found(source, "copies")[0] == "warning"
    assert found(source, "support and query")[0] == "error"


def test_the_sketch_of_a_mirror_image_is_the_mirrored_sketch_and_drawings_are_not_mirrored():
    pixels = torch.from_numpy(photos().transpose(0, 3, 1, 2).astype(np.float32) / 255)
    np.testing.assert_allclose(picture_sketches(pixels.flip(-1)), mirrored(picture_sketches(pixels)), atol=1e-5)
    grey = pixels.mean(1, keepdim=True)
    sketcher = Sketcher(grey)
    assert (nearest(sketcher(grey.flip(-1)), sketcher(grey), sketcher.radius) < 0).all()


@pytest.mark.parametrize("change", [encoded, turned_over], ids=["re-encoded", "mirrored"])
def test_copies_of_photos_are_found_where_a_source_has_their_features(change, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    pictures_of = photos(classes=12)
    pictures_of[EACH * 9 : EACH * 9 + 4] = [change(own) for own in pictures_of[:4]]  # of a test class, one of training
    pictures_of[6] = change(pictures_of[5])
    for number, own in enumerate(pictures_of):
        split = "train" if number < 6 * EACH else "val" if number < 9 * EACH else "test"
        folder = tmp_path / "photos" / split / f"member {number // EACH}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(own).resize((64, 64)).save(folder / f"{number}.png")
    encoder = ImageEncoder.of(torch.nn.AvgPool2d(8), size=16)
    source = sources.images(tmp_path / "photos", features=encoder, ways=2, shots=2, queries=2)
    severity, sentence = found(source, "two splits")
    assert severity == "error"
    assert "4 of 24 test examples looked at equal one of train up to resizing, re-encoding or mirroring" in sentence
    assert "test/member 9/72.png, which is train/member 0/0.png" in sentence
    assert found(source, "copies")[0] == "warning"
    assert found(source, "support and query", num_tasks=100)[0] in ("warning", "error")
    assert found(source, "images") == ("ok", "All 96 images can be decoded.")
    part, first = next(iter(parts_of(source)))._replace(pixels=True), source.task("train", 0)
    (task,) = _compared(part, "train", [type(first)(*(batch.rows(slice(3)) for batch in first))])
    assert {len(batch.inputs) for batch in task} == {3}  # the images of those examples that are looked at


def test_swatches_of_similar_colours_are_no_copies():
    colours = np.random.default_rng(0).integers(0, 256, (32 * EACH, 3), dtype=np.uint8)
    source = pictures(np.broadcast_to(colours[..., None, None], (*colours.shape, 16, 16)).copy())
    assert {found(source, name)[0] for name in ("two splits", "copies", "support and query")} <= {"ok", None}


@pytest.mark.parametrize("width", [1, 3, 40])
def test_rows_with_a_little_noise_are_copies(width):
    random = np.random.default_rng(width)
    inputs, targets = random.normal(size=(32 * EACH, width)), random.normal(size=(32 * EACH, 1))
    assert found(numbers(inputs, targets), "two splits")[0] == "ok"
    inputs[-EACH:], targets[-EACH:] = inputs[:EACH] + 1e-6 * random.normal(size=(EACH, width)), targets[:EACH]
    severity, sentence = found(numbers(inputs, targets), "two splits")
    assert severity == "error"
    assert f"{EACH} of 80 test examples looked at equal one of train up to noise" in sentence
    targets[-EACH:] += 1
    assert found(numbers(inputs, targets), "two splits")[0] == "ok"


def test_rows_that_are_near_by_chance_are_no_copies():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(32 * EACH, 1))
    dense = numbers(inputs, np.ones((32 * EACH, 1)))  # a line: many neighbours, at any radius
    assert found(dense, "two splits")[0] in ("ok", "note")
    rows = random.normal(size=(40_000, 1)).astype(np.float32)
    sketcher = Sketcher(torch.from_numpy(rows))
    assert (nearest(sketcher(torch.from_numpy(rows)), None, sketcher.radius) < 0).all()


@pytest.mark.parametrize(
    "copy",
    ["SAY word {c} {n}", "say  word {c}\t{n}", "Say word {c} {n}.", "“say word {c} {n}”!", "say wo\u0301rd {c} {n}"],
)
def test_texts_of_other_case_spacing_or_punctuation_are_copies(tmp_path, copy):
    word = "wórd" if "\u0301" in copy else "word"
    rows = [[f"say {word} {c} {n}", f"class {c}"] for c in range(40) for n in range(6)]
    split = {"ratio": [0.4, 0.3, 0.3]}

    def checked():
        (tmp_path / "t.json").write_text(json.dumps({"train": rows}))
        source = sources.text(tmp_path / "t.json", ways=3, shots=1, queries=4, width=64, split=split)
        return source, [f for f in check(source).findings if f.check in ("two splits", "copies")]

    source, clean = checked()
    assert {finding.severity for finding in clean} == {"ok"}
    test, train = (source.class_names[s][0].removeprefix("class ") for s in ("test", "train"))
    rows[6 * int(test)][0] = copy.format(c=train, n=0)
    (finding,) = [finding for finding in checked()[1] if finding.severity != "ok"]
    assert finding.check == "two splits"
    assert "up to case, spacing or punctuation" in finding.sentence


def test_numbers_and_signs_in_texts_are_not_punctuation():
    different = ["pay 3.50", "pay 350", "pay 35", "c", "c++", "-5 degrees", "5 degrees", "50 €", "50 $", "!", "?"]
    assert len({normalise(text) for text in different}) == len(different)
    assert normalise("Don\u2019t!") == normalise("don't") == normalise("DONT")


REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def files_of(archive, most):
    path = REAL / archive
    if not path.exists():
        pytest.skip(f"{archive} is not here")
    with zipfile.ZipFile(path) as file:
        names = sorted(n for n in file.namelist() if n.endswith(".png") and "__MACOSX" not in n)
        chosen = np.random.default_rng(1).permutation(len(names))[:most]
        return [file.read(names[number]) for number in chosen]


@pytest.mark.parametrize(
    ("archive", "size", "mode", "most"),
    [("omniglot/images_background.zip", 28, "L", 0), ("cifar_fs/train_val.zip", 32, "RGB", 6)],
)
def test_photos_and_drawings_of_different_things_are_no_copies(archive, size, mode, most):
    images = [Image.open(io.BytesIO(own)).convert(mode).resize((size, size)) for own in files_of(archive, 4000)]
    pixels = np.stack([np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1) for image in images])
    sketches = picture_sketches(torch.from_numpy(pixels.astype(np.float32) / 255))
    radius = PICTURE_RADIUS[pixels.shape[1]]
    assert (nearest(sketches, None, radius) >= 0).sum() <= most  # CIFAR-FS does have copies
    again = np.stack([encoded(np.asarray(image.convert("RGB"))) for image in images[:300]])
    again = np.stack([np.asarray(Image.fromarray(own).convert(mode)).reshape(size, size, -1) for own in again])
    changed = picture_sketches(torch.from_numpy(again.transpose(0, 3, 1, 2).astype(np.float32) / 255))
    index = nearest(changed, sketches, radius)
    assert (index == np.arange(300)).mean() > 0.95
