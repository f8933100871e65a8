"""Images with several labels each: their tables, tasks, baselines, and a run from end to end."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn

import kshot
from kshot import Batch, objectives, sources
from kshot.data.images.encoder import ImageEncoder
from kshot.data.images.labels import list_labels
from kshot.evaluation.by_label import ByLabelMeter
from kshot.evaluation.report.label_pictures import labelled
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.types import SPLITS

OPTIONS = {"ways": 2, "shots": 2, "queries": 3, "size": 12, "colour": "grey"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Images of nine fields, each bright if the image has its label."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = ["path,labels," + ",".join(f"has{label}" for label in range(9))]
    for number in range(240):
        has = random.random(9) < 0.15
        pixels = (60 * random.random((12, 12)) + 180 * np.kron(has.reshape(3, 3), np.ones((4, 4)))).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        names = "; ".join(f"field{label}" for label in np.flatnonzero(has))
        lines.append(f"{number}.png,{names}," + ",".join(str(int(each)) for each in has))
    (root / "photos.csv").write_text("\n".join(lines))
    return root / "photos.csv"


def test_a_column_of_labels_and_a_column_for_each_are_the_same(table):
    one, many = list_labels(table), list_labels(table, [f"has{label}" for label in range(9)])
    assert {name.replace("field", "has"): rows for name, rows in one.labels.items()} == many.labels
    assert [file.name for file in one.files[:2]] == ["0.png", "1.png"]


def test_tables_that_cannot_be_read(tmp_path, table):
    (tmp_path / "empty.csv").write_text("path,labels\na.png,\n")
    (tmp_path / "a.png").write_bytes((table.parent / "0.png").read_bytes())
    with pytest.raises(ValueError, match="holds no labels; write those of an image as cat;dog"):
        list_labels(tmp_path / "empty.csv")
    (tmp_path / "odd.csv").write_text("path,cat\na.png,maybe\n")
    with pytest.raises(ValueError, match="'maybe' is neither true nor false"):
        list_labels(tmp_path / "odd.csv", ["cat"])
    with pytest.raises(ValueError, match="'tags'"):
        list_labels(tmp_path / "odd.csv", "tags")
    with pytest.raises(ValueError, match="labels are split by ratio, files or folds"):
        sources.multilabel_images(table, split={"rows": [0.5, 0.25, 0.25]}, **OPTIONS)


def test_the_contract_of_its_tasks(table):
    source = sources.multilabel_images(table, split={"folds": 3, "fold": 0}, **OPTIONS)
    kshot.testing.check_source(source)
    assert source.describe()["labels"] == dict.fromkeys(SPLITS, 3)


def test_frozen_features_have_the_baselines_of_an_expert(table):
    module = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    encoder = ImageEncoder.of(module, size=12, mean=(0, 0, 0), std=(1, 1, 1))
    options = {"ways": 2, "shots": 2, "queries": 3, "split": {"folds": 3, "fold": 0}}
    source = sources.multilabel_images(table, features=encoder, **options)
    learner = kshot.learners.r2d2(nn.Identity(), objective=source.objective)
    figures = {
        name: kshot.evaluate(each, source, num_tasks=12, audit=False).metrics["mean_average_precision"].mean
        for name, each in {"r2d2": learner, **kshot.evaluation.baselines(source, num_val_tasks=2)}.items()
    }
    assert figures.keys() == {"r2d2", "class_mean_cosine", "logistic_regression", "ridge", "knn", "support_mean"}
    assert min(value for name, value in figures.items() if name != "support_mean") > figures["support_mean"] + 0.1
    assert figures["r2d2"] > 0.6


def test_figures_by_label_are_those_of_scikit_learn():
    random, meter = np.random.default_rng(0), ByLabelMeter()
    expected, share, found = [], [], []
    for _ in range(7):
        targets, logits = (random.random((12, 2)) < 0.4).astype(float), random.normal(size=(12, 2))
        meter.add(torch.from_numpy(logits), Batch.of(torch.zeros(12, 1), torch.from_numpy(targets)), ["cat", "dog"])
        expected.append(average_precision_score(targets[:, 1], logits[:, 1]))
        share.append(targets[:, 1].mean())
        found.append([(targets[:, 1] * (logits[:, 1] > 0)).sum(), targets[:, 1].sum()])
    (dog,) = [each for each in meter.result() if each.name == "dog"]
    assert dog.average_precision.mean == pytest.approx(np.mean(expected), abs=1e-6)
    assert dog.share == pytest.approx(np.mean(share))
    assert dog.found == pytest.approx(np.divide(*np.sum(found, 0)))


def test_a_picture_marks_found_missed_and_wrong_labels():
    batch = Batch.of(torch.zeros(2, 1, 4, 4), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    task, names = kshot.Task(batch, batch), ["cat", "dog", "owl"]

    def texts(logits, **options):
        figure = labelled(task, torch.tensor(logits), names, **options)
        return [text.get_text() for text in figure.axes[0].texts][2:]

    assert texts([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]]) == ["cat, [dog], ✗ owl", "none"]
    assert texts([[1.0, -1.0, 1.0], [-1.0, -1.0, 9.0]], wrong_only=True) == ["✗ owl", "cat, [dog], ✗ owl"]
    assert texts([[1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]], wrong_only=True) == []


def test_a_run_from_its_file_to_predictions(table, tmp_path):
    from kshot.app.run import run
    from kshot.app.spec import parse_spec

    spec = parse_spec(
        f"""
name: fields
source: {{kind: multilabel_images, path: {table}, ways: 2, shots: 2, queries: 3, size: 12, colour: grey,
          split: {{folds: 3, fold: 0}}}}
model: {{kind: conv4, channels: 4, downsample: stride}}
learner: {{kind: protonet}}
target: mean_average_precision >= 0.3
budget: {{rounds: 1}}
train: {{steps_per_round: 2}}
baselines: {{names: [support_mean]}}
evaluate: {{num_val_tasks: 4, num_test_tasks: 6, shots: [2]}}
""",
        "fields.yaml",
    )
    run(spec, tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert {each["name"] for each in report["by_label"]} <= {f"field{label}" for label in range(9)}
    assert "Errors by label" in (tmp_path / "run/report.html").read_text()
    assert (tmp_path / "run/labels.csv").read_text().startswith("label,tasks,average precision")
    trained = kshot.load(tmp_path / "run")
    adapted = trained.adapt(table)
    told = trained.predict(adapted, [table.parent / "0.png", table.parent / "1.png"])
    assert told["path"][0].endswith("0.png")
    probability = np.array([told[f"p({name})"] for name in adapted.kept["labels"]]).T
    assert [";".join(np.array(adapted.kept["labels"])[row > 0.5]) for row in probability] == told["labels"]


def test_its_preprocessor_is_kept(table):
    preprocessor = sources.multilabel_images(table, split={"folds": 3, "fold": 0}, **OPTIONS).preprocessor
    assert preprocessor_from_json(json.loads(json.dumps(preprocessor.to_json()))) == preprocessor
    support = preprocessor.support(table)
    assert support.inputs.shape == (240, 1, 12, 12)
    objectives.multilabel.check_targets(support.targets)
