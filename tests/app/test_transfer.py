"""Trained runs on other data sets: the tasks are those of these data alone, and the figures those of an evaluation."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.app.folder import RunFolder
from kshot.app.run import run
from kshot.app.spec import load_spec, parse_spec
from kshot.app.trained import load
from kshot.app.transfer import other_files
from kshot.evaluation import evaluate
from kshot.sources import images

SPEC = """
name: {name}
source: {{kind: images, path: {path}, size: 16, ways: 2, shots: 1, queries: 3, split: {{ratio: [0.5, 0.25, 0.25]}}}}
model: {{kind: conv4, channels: 4}}
learner: {{kind: protonet}}
train: {{steps_per_round: 2, tasks_per_step: 2}}
target: accuracy >= 0.5
budget: {{rounds: 1}}
evaluate: {{num_val_tasks: 4, num_test_tasks: 4, shots: []}}
baselines: {{names: [centroid]}}
"""


def write(folder, classes: int, seed: int) -> None:
    """Images of one colour a class, with noise."""
    random = np.random.default_rng(seed)
    for number in range(classes):
        place, colour = folder / f"class{number:02}", random.uniform(0, 255, 3)
        place.mkdir(parents=True)
        for each in range(10):
            pixels = (colour + random.normal(0, 20, (16, 16, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{each}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    for seed, (name, classes) in enumerate({"home": 12, "birds": 5, "stones": 6}.items()):
        write(folder / name, classes, seed)
    run(parse_spec(SPEC.format(name="home", path=folder / "home"), "test"), folder / "run")
    return folder


def test_the_figures_are_those_of_an_evaluation_on_the_other_data_alone(kshot, place):
    to = ["--to", place / "birds", "--to", place / "stones", "--shots", 1]
    done = kshot("transfer", place / "run", *to, "--tasks", 6, "--out", "out")
    assert done.code == 0, done.err
    with open("out/transfer.csv") as file:
        rows = {(row["data"], row["shots"]): row for row in csv.DictReader(file)}
    assert [*rows] == [("birds", "1"), ("stones", "1")]
    trained = load(place / "run")
    for (name, shots), row in rows.items():
        source = images(place / name, size=16, ways=2, shots=int(shots), queries=3, split={"only": "test"})
        expected = evaluate(trained.learner, source, num_tasks=6, audit=False).metrics["accuracy"].mean
        assert float(row["mean"]) == pytest.approx(expected, abs=1e-6)
        assert row["baseline"] == "centroid"
        assert row["difference"] != ""
    mean = np.mean([float(rows[name, "1"]["mean"]) for name in ("birds", "stones")])
    assert f"mean of 2  1      run  protonet  {mean:.3f}" in done.out
    assert "birds" in Path("out/transfer.html").read_text()
    units = json.loads(Path("out/run/birds/shots-1/report.json").read_text())["by_class"]["classes"]
    assert {each["name"].rpartition("/")[2].rpartition(": ")[2] for each in units} == {f"class{n:02}" for n in range(5)}

    again = kshot("transfer", place / "run", *to, "--tasks", 6, "--out", "out")
    assert again.code == 2
    assert "out is not empty; choose another --out, or continue with --resume" in again.err
    resumed = kshot("transfer", place / "run", *to, "--tasks", 6, "--out", "out", "--resume")
    assert resumed.code == 0
    assert resumed.out == done.out[done.out.index("data") :]
    other = kshot("transfer", place / "run", *to, "--tasks", 7, "--out", "out", "--resume")
    assert other.code == 2
    assert "was evaluated on another number of tasks" in other.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "a/birds", "--to", "b/birds"], "a/birds and b/birds have the same name"),
        (["--to", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(kshot, place, words, message):
    refused = kshot("transfer", place / "run", *words, "--out", "out")
    assert refused.code == 2
    assert message in refused.err


def test_a_run_on_drawn_characters_reads_images_of_their_size(tmp_path):
    text = SPEC.format(name="glyphs", path="").replace("kind: images, path: , size: 16", "kind: glyphs")
    spec = parse_spec(text.replace(", split: {ratio: [0.5, 0.25, 0.25]}", ""), "test")
    RunFolder(tmp_path).start(spec, {"inputs": [1, 28, 28]}, None)
    own, other = other_files(tmp_path)
    assert own["kind"] == "glyphs"
    assert other == {"kind": "images", "size": 28, "colour": "grey", "ways": 2, "queries": 3}


def test_a_run_on_sine_waves_reads_no_files(tmp_path):
    RunFolder(tmp_path).start(load_spec("sinusoid"), {"inputs": [1]}, None)
    with pytest.raises(
        ValueError, match="is a run on sinusoids, and transfer takes runs on images, table, text, tfrecord"
    ):
        other_files(tmp_path)
