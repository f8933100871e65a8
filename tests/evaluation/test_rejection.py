"""Telling what is out of scope: novelty, thresholds, AUROC; from a source with outsiders to `kshot predict`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

import kshot
from kshot.app.spec import parse_spec
from kshot.evaluation.rejection import auroc, calibrated, fpr95, novelty, rejection, threshold_at
from kshot.sources import text


def test_auroc_and_fpr_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    inside, outside = random.normal(size=200).round(1), random.normal(1, size=90).round(1)  # with ties
    scores, labels = np.concatenate([inside, outside]), np.repeat([0, 1], [200, 90])
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(labels, scores))
    inside, outside = random.normal(size=200), random.normal(1, size=90)
    scores = np.concatenate([inside, outside])
    passes, outsiders, _ = roc_curve(1 - labels, -scores)[1], roc_curve(1 - labels, -scores)[0], None
    assert fpr95(inside, outside) == pytest.approx(outsiders[np.argmax(passes >= 0.95)])


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.5])
def test_a_threshold_rejects_at_most_its_share(share):
    scores = np.random.default_rng(1).normal(size=400)
    rejected = (scores > threshold_at(scores, share)).mean()
    assert share - 1 / 400 <= rejected <= share


def test_novelty_of_logits():
    logits = torch.tensor([[1.0, 0.0], [-3.0, -4.0]])
    torch.testing.assert_close(novelty(logits, "nearest"), torch.tensor([-1.0, 3.0]))
    torch.testing.assert_close(novelty(logits, "energy"), -torch.log(logits.exp().sum(1)))
    torch.testing.assert_close(novelty(logits, "probability"), 1 - torch.tensor([1.0, 1.0]).exp() / (1 + np.e))
    with pytest.raises(ValueError, match="score must be one of energy, nearest, probability, got 'entropy'"):
        novelty(logits, "entropy")
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="false_rejection is a share"):
            threshold_at([1.0], share)


WORDS = ["play", "stop", "louder", "pay", "freeze", "balance", "next", "order"]


def write_intents(path: Path) -> Path:
    parts = {
        "train": [[f"{word} it {n}", word] for n in range(10) for word in WORDS],
        "oos_val": [[f"what {n} ever", "oos"] for n in range(7)],
        "oos_test": [[f"some thing {n}", "oos"] for n in range(9)],
    }
    path.write_text(json.dumps(parts))
    return path


def source_of(tmp_path, **options):
    how = {"ways": 2, "shots": 2, "queries": 5, "split": {"ratio": [0.5, 0.25, 0.25], "exact": True}, "width": 64}
    return text(write_intents(tmp_path / "intents.json"), **{"out_of_scope_label": "oos"} | how | options)


def test_texts_out_of_scope_are_of_no_class_and_of_their_part(tmp_path):
    source = source_of(tmp_path)
    assert source.describe()["out_of_scope"] == {"val": 7, "test": 9}
    assert not any("oos" in names for names in source.class_names.values())
    assert {source.texts[row].split()[0] for row in source.out_of_scope["test"]} == {"some"}
    one, other = (source.out_of_scope_inputs("test", index, 4) for index in (0, 1))
    assert one.shape == (4, 64)
    assert torch.equal(one, source.out_of_scope_inputs("test", 0, 4))
    assert not torch.equal(one, other)
    assert len(source.out_of_scope_inputs("test", 0, 100)) == 9
    plain = text(tmp_path / "intents.json", ways=2, queries=5, split={"ratio": [1, 0, 0]})
    with pytest.raises(ValueError, match="no out-of-scope examples"):
        plain.out_of_scope_inputs("test", 0, 1)
    with pytest.raises(ValueError, match="no text with the label 'none'"):
        source_of(tmp_path, out_of_scope_label="none")


def test_a_threshold_set_on_validation_holds_on_test(tmp_path):
    source = source_of(tmp_path)
    learner = kshot.protonet(nn.Flatten())
    threshold = calibrated(learner, source, tasks=30, false_rejection=0.1)
    found = rejection(learner, source, threshold=threshold, false_rejection=0.1, tasks=30)
    assert found.auroc.mean > 0.9
    assert found.rejected_inside.mean < 0.2
    assert found.rejected_outside.mean > 0.5
    assert learner.training


RUN = """
name: intents
source: {kind: text, path: intents.json, out_of_scope_label: oos, ways: 2, shots: 2, queries: 5, width: 64,
         split: {ratio: [0.5, 0.25, 0.25], exact: true}}
model: {kind: mlp, hidden: []}
learner: {kind: plda}
train: {steps_per_round: 2, tasks_per_step: 2}
target: accuracy >= 0.1
budget: {rounds: 1}
evaluate: {num_val_tasks: 20, num_test_tasks: 5}
baselines: {names: []}
reject: {false_rejection: 0.1}
"""


def test_a_run_rejects_and_takes_in_new_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_intents(Path("intents.json"))
    from kshot.app import cli
    from kshot.app.run import run

    report = run(parse_spec(RUN, "run.yaml"), Path("out"))
    assert report["rejection"]["auroc"]["mean"] > 0.8
    assert "Out of scope" in Path("out/report.html").read_text()
    Path("mine.csv").write_text("text,label\nplay it,on\nplay it 1,on\nstop it,off\nstop it 2,off\n")
    Path("more.csv").write_text("text,label\npay it,bank\npay it 2,bank\nstop it 3,off\n")
    Path("new.csv").write_text("text\nplay it 3\nstop it 1\npay it 4\nsome thing else entirely\n")

    def kshot_(*arguments):
        monkeypatch.setattr("sys.argv", ["kshot", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (0, None)
        return capsys.readouterr().out

    kshot_("adapt", "out", "--support", "mine.csv", "--out", "mine.safetensors")
    kshot_("adapt", "out", "--support", "more.csv", "--state", "mine.safetensors", "--out", "more.safetensors")
    capsys.readouterr()
    head, *rows = kshot_("predict", "out", "--state", "more.safetensors", "--inputs", "new.csv").strip().splitlines()
    assert head == "row,label,p(off),p(on),p(bank),novelty"
    cells = [row.split(",") for row in rows]
    likeliest = [max(zip(map(float, row[2:5]), ("off", "on", "bank")))[1] for row in cells]
    assert likeliest[:3] == ["on", "off", "bank"]
    labels = [row[1] for row in cells]
    assert labels[3] == "out of scope"
    assert all(label in (best, "out of scope") for label, best in zip(labels, likeliest))
    assert labels.count("out of scope") < 4
