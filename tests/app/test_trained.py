"""`kshot.load`: a run folder as an object that adapts and predicts as the command line does."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import kshot
from kshot.app import inputs
from kshot.app.build import build_learner, build_model, build_source, has_head
from kshot.app.run import run
from kshot.app.spec import parse_spec
from kshot.app.trained import start_from
from kshot.training.checkpoint import flatten

GLYPHS = """\
name: characters
source: {kind: glyphs, ways: 3, queries: 2}
model: {kind: conv4, channels: 4, downsample: stride}
learner: {kind: protonet}
train: {steps_per_round: 2, tasks_per_step: 2}
target: accuracy >= 0.99
budget: {rounds: 1}
evaluate: {num_val_tasks: 3, num_test_tasks: 4, shots: []}
baselines: {names: []}
"""
SINE = """\
name: sine
source: {kind: sinusoids}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01}
train: {steps_per_round: 2, tasks_per_step: 2}
target: mse <= 1000
budget: {rounds: 1}
evaluate: {num_val_tasks: 4, num_test_tasks: 4, shots: []}
baselines: {names: []}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, text in (("glyphs", GLYPHS), ("sine", SINE)):
        run(parse_spec(text, name), folder / name, console=Console(quiet=True))
    return folder


def save_images(folder, column):
    for name in ("left", "right"):
        pixels = np.zeros((28, 28), np.uint8)
        start = column + 14 * (name == "right")
        pixels[:, start : start + 4] = 255
        (folder / name).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / name / "1.png")


def test_a_run_on_images_adapts_and_predicts_as_the_command_line(runs, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "support", 2)
    save_images(tmp_path / "new", 3)
    trained = kshot.load(runs / "glyphs")
    assert (trained.preprocessor, trained.spec.name, trained.report["name"]) == (None, "characters", "characters")
    adapted = trained.adapt("support")
    assert (adapted.classes, adapted.num_examples) == (["left", "right"], 2)
    columns = trained.predict(adapted, ["new"])
    assert columns["label"] == ["left", "right"]

    command("adapt", str(runs / "glyphs"), "--support", "support", "--out", "state")
    printed = command("predict", str(runs / "glyphs"), "--state", "state", "--inputs", "new")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["label"] for row in rows] == columns["label"]
    assert [float(row["p(left)"]) for row in rows] == pytest.approx(columns["p(left)"], rel=1e-4)
    saved, own = flatten(trained.load_state("state").state), flatten(adapted.state)
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)


def test_images_in_memory_are_those_of_files(runs, tmp_path):
    save_images(tmp_path / "support", 2)
    save_images(tmp_path / "new", 3)
    trained = kshot.load(runs / "glyphs")
    files = {name: Image.open(tmp_path / "support" / name / "1.png") for name in ("left", "right")}
    adapted = trained.adapt([(image, name) for name, image in files.items()])
    other = trained.adapt(tmp_path / "support")
    assert (adapted.classes, adapted.num_examples) == (["left", "right"], 2)
    assert all(torch.equal(leaf, flatten(other.state)[name]) for name, leaf in flatten(adapted.state).items())
    new = [Image.open(tmp_path / "new" / name / "1.png") for name in ("left", "right")]
    expected = trained.predict(other, tmp_path / "new")
    del expected["path"]
    columns = trained.predict(adapted, [new[0], torch.from_numpy(np.array(new[1]))])
    assert columns == {"row": [1, 2]} | expected
    assert trained.predict(adapted, new[1])["label"] == ["right"]
    with pytest.raises(ValueError, match=r"must be one of Pillow, or a tensor \(C, H, W\), got a int"):
        trained.predict(adapted, [3])
    with pytest.raises(ValueError, match=r"item 0 of the list must be \(image, label\)"):
        trained.adapt([new[0], new[1]])


def test_one_bad_image_stops_no_other(runs, tmp_path, monkeypatch, capsys):
    from kshot.app.apply import predict_run

    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "support", 2)
    save_images(tmp_path / "new", 3)
    (tmp_path / "new" / "left" / "0.png").write_bytes(b"no image")
    (tmp_path / "new" / "left" / "._1.png").write_bytes(b"of a file manager")
    (tmp_path / "new" / "Thumbs.db").write_bytes(b"of another")
    trained = kshot.load(runs / "glyphs")
    adapted = trained.adapt("support")
    columns = trained.predict(adapted, ["new"])
    assert [path.split("/", 1)[1] for path in columns["path"]] == ["left/0.png", "left/1.png", "right/1.png"]
    assert columns["label"] == [None, "left", "right"]
    assert "new/left/0.png is not an image that can be read" in columns["error"][0]
    assert columns["error"][1:] == ["", ""]
    alone = trained.predict(adapted, ["new/left/1.png", "new/right/1.png"])
    assert "error" not in alone
    assert columns["p(left)"][1:] == pytest.approx(alone["p(left)"])
    monkeypatch.setattr("kshot.app.trained.IMAGES_AT_ONCE", 1)
    assert trained.predict(adapted, ["new"])["p(left)"] == [None, *map(pytest.approx, columns["p(left)"][1:])]
    trained.save_state("state", adapted)
    count = predict_run(runs / "glyphs", tmp_path / "state", [tmp_path / "new"], resize=False, invert=False)
    printed = capsys.readouterr()
    assert count == 1
    assert "no prediction for 1 of 3" in printed.err
    assert [row["label"] for row in csv.DictReader(io.StringIO(printed.out))] == ["", "left", "right"]
    with pytest.raises(ValueError, match="none of 1 images can be read; the first: .*0.png"):
        trained.predict(adapted, ["new/left/0.png"])


def test_folders_without_images_are_no_classes_of_a_support_set(runs, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(inputs, "SUFFIXES", (".png",))  # as where Pillow reads no AVIF
    save_images(tmp_path / "support", 2)
    (tmp_path / "support" / "empty").mkdir()
    (tmp_path / "support" / "left" / "2.avif").write_bytes(b"")
    assert kshot.load(runs / "glyphs").adapt(tmp_path / "support").classes == ["left", "right"]
    assert "1 folders hold no images, and are no classes: empty" in caplog.text
    assert "1 files are not read, the first 2.avif" in caplog.text


def test_predictions_that_are_not_finite_are_told(runs, tmp_path, monkeypatch):
    (tmp_path / "support.csv").write_text("x,y\n0,0\n1,0.8\n2,0.9\n")
    (tmp_path / "new.csv").write_text("x\n0.5\n1.5\n")
    trained = kshot.load(runs / "sine")
    adapted = trained.adapt(tmp_path / "support.csv")
    monkeypatch.setattr(type(trained), "logits", lambda *_: torch.tensor([[1.0], [float("nan")]]))
    columns = trained.predict(adapted, [tmp_path / "new.csv"])
    assert columns["error"] == ["", "the prediction is not finite: look for missing or extreme inputs"]


def test_a_state_of_three_classes_is_saved_and_extended(runs, tmp_path):
    save_images(tmp_path / "support", 2)
    save_images(tmp_path / "more", 6)
    (tmp_path / "more" / "left").rename(tmp_path / "more" / "middle")
    trained = kshot.load(str(runs / "glyphs"))
    trained.save_state(tmp_path / "state", trained.adapt(tmp_path / "support"))
    extended = trained.adapt(tmp_path / "more", before=trained.load_state(tmp_path / "state"))
    assert extended.classes == ["left", "right", "middle"]
    assert set(trained.predict(extended, [tmp_path / "support"])) > {"p(left)", "p(right)", "p(middle)", "label"}
    with pytest.raises(ValueError, match="was not adapted from the weights in"):
        kshot.load(runs / "sine").load_state(tmp_path / "state")


def test_a_run_on_numbers_predicts_numbers(runs, tmp_path):
    (tmp_path / "support.csv").write_text("x,y\n0,0\n1,0.8\n2,0.9\n")
    (tmp_path / "new.csv").write_text("x\n0.5\n1.5\n")
    trained = kshot.load(runs / "sine")
    columns = trained.predict(trained.adapt(tmp_path / "support.csv"), [tmp_path / "new.csv"])
    assert columns.keys() == {"row", "prediction"}
    assert columns["row"] == [1, 2]
    with pytest.raises(ValueError, match="there is no .*none.csv"):
        trained.predict(trained.adapt(tmp_path / "support.csv"), [tmp_path / "none.csv"])


def test_other_tasks_of_a_trained_run(runs):
    changed = kshot.load(runs / "glyphs", ["source.shots=4", "source.ways=7"])
    assert (changed.spec.source.shots, changed.spec.source.ways) == (4, 7)
    changed.check_shapes(build_source(changed.spec))  # prototypes take any number of ways
    with pytest.raises(ValueError, match="--set model.channels=8: a trained run takes changes of source, target"):
        kshot.load(runs / "glyphs", ["model.channels=8"])
    with pytest.raises(ValueError, match="these tasks have inputs"):
        changed.check_shapes(kshot.sources.sinusoids())


def test_a_learner_starts_from_the_weights_of_another_run(runs):
    first = kshot.load(runs / "glyphs")
    spec = parse_spec(GLYPHS.replace("ways: 3", "ways: 5") + "seed: 7\n", "glyphs")
    shapes = first.shapes
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    weights = dict(learner.named_parameters())
    assert any(not torch.equal(value, weights[name]) for name, value in first.learner.named_parameters())
    said = start_from(learner, runs / "glyphs")
    assert all(torch.equal(value, weights[name]) for name, value in first.learner.named_parameters())
    assert f"starts from {len(first.learner.state_dict())} weights of" in said
    with pytest.raises(ValueError, match="of which no weight has the name and shape"):
        start_from(learner, runs / "sine")


def test_what_is_no_run_folder_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"is no run folder: it holds no spec\.yaml"):
        kshot.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds several runs: choose one of glyphs, sine"):
        kshot.load(runs)
    (tmp_path / "spec.yaml").write_text(SINE)
    with pytest.raises(ValueError, match="holds no finished round yet; continue with `kshot run .*spec.yaml --out"):
        kshot.load(tmp_path)
