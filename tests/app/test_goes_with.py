"""The tables of what goes with what: complete, shown in the documentation, and checked before training."""

import re
from pathlib import Path

import pytest
import yaml
from inputs import tiny

from kshot.app.build import build_source, shapes_of, sort_of
from kshot.app.errors import INVALID
from kshot.app.goes_with import LEARNERS, SOURCES, markdown, targets_of
from kshot.app.schema import kinds
from kshot.app.spec import parse_spec

OF_PARTS = {"mixture", "episodes", "from_hf"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_data(folder)
    return folder


def test_the_tables_name_every_learner_and_source_and_the_documentation_shows_them():
    assert set(LEARNERS) == set(kinds("learner")) - {"choose", "mixture"}
    assert set(SOURCES) == set(kinds("source")) - OF_PARTS
    assert markdown() in Path("docs/run-files.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, source in tiny.SOURCES.items() if source["kind"] in SOURCES])
def test_sources_give_what_the_table_says(name, data, monkeypatch):
    if "encoder" in tiny.SOURCES[name]:
        pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'text'")
        if not (data / "encoder").exists():
            tiny.write_encoder(data / "encoder")
    monkeypatch.chdir(data)
    run = tiny.run_file(tiny.SOURCES[name], tiny.MODELS["mlp"], tiny.learner("maml"))
    source = build_source(parse_spec(yaml.safe_dump(run), "run.yaml"))
    targets, sorts = SOURCES[tiny.SOURCES[name]["kind"]]
    assert targets_of(source.objective) in targets
    assert sort_of(shapes_of(source)) in sorts


@pytest.mark.parametrize(
    ("source", "model", "learner", "more", "message"),
    [
        ("tabular_priors", "mlp", "protonet", {}, "mlp does not fit.* tables of any number of columns.* prior_fitted"),
        ("tabular_priors of numbers", "none", "cnp", {}, "cnp without a model takes one.*prior_fitted"),
        ("ratings", "factorisation", "alpaca", {"pretrain": {"steps": 2}}, "needs a model with a last layer"),
        ("sinusoids", "mlp", "maml", {"pretrain": {"steps": 2, "objective": "contrastive"}}, "contrastive needs"),
        ("tabular_priors", "none", "prior_fitted", {"pretrain": {"steps": 2}}, "pretrain needs a model"),
        ("corpus", "none", "cnp", {}, "cnp predicts .*and these tasks have running text: take .*dynamic_evaluation"),
        ("glyphs", "conv4", "dynamic_evaluation", {}, "predicts running text, and .*such as protonet"),
        ("sinusoids", "mlp", "maml", {"device": "meta"}, "device 'meta' does not train: take auto, cpu"),
        ("sinusoids", "mlp", "maml", {"reject": {"score": "energy"}}, "reject needs tasks with classes of their own"),
        ("sinusoids", "mlp", "maml", {"target": "accuracy >= 1"}, "these tasks report loss, mse"),
        ("ratings", "none", "cnp", {}, "takes one tensor.*features of them, factorisation or"),
        ("glyphs", "conv4", "protonet", {"objective": {"kind": "forecast", "season": 7}}, "is for windows of series"),
        (
            "glyphs",
            "conv4",
            "protonet",
            {"objective": "next_token"},
            "protonet predicts .*these tasks have running text",
        ),
        ("plain table", "none", "partial_pooling", {}, "needs at least two in the training split"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(source, model, learner, more, message, data, kshot):
    run = tiny.run_file(tiny.SOURCES[source], tiny.MODELS[model], tiny.learner(learner), **more)
    if "path" in run["source"]:
        run["source"] = {**run["source"], "path": str(data / run["source"]["path"])}
    Path("run.yaml").write_text(yaml.safe_dump(run))
    result = kshot("run", "run.yaml", "--out", "out")
    assert result.code == INVALID, result.err
    assert not Path("out").exists() or not list(Path("out").glob("*.yaml"))
    assert re.search(message, result.err), result.err
    checked = kshot("data", "check", "run.yaml", "--tasks", "2", "--examples", "20")
    assert checked.code == INVALID, checked.out + checked.err
