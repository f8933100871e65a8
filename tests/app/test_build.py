"""From run files to objects."""

import inspect

import pytest
import torch
from torch import nn

import kshot
from kshot.app.build import build_learner, build_model, has_head
from kshot.app.schema import check_part
from kshot.app.spec import load_spec
from kshot.supplied import Channels, FeatureMaps, InputShape, NumOutputs

IMAGES = {"inputs": [1, 20, 20], "targets": [5], "objective": "classification"}


@pytest.mark.parametrize(
    "kind", ["meta_sgd", "meta_curvature", "meta_kfo", "alfa", "anil", "boil", "fomaml", "reptile", "maml_pp", "imaml"]
)
def test_each_learner_of_a_run_file_is_built_as_its_factory_says(kind):
    recipe = load_spec("sinusoid", ["learner={kind: " + kind + ", inner_lr: 0.01}"])
    shapes = {"inputs": [1], "targets": [1], "objective": "mse"}
    learner = build_learner(recipe, build_model(recipe, shapes, head=True), shapes)
    task = kshot.sources.sinusoids().task("val", 0)
    assert learner.predict(learner.adapt(task.support), task.query.inputs).shape == (10, 1)


HEADS = ["protonet", "r2d2", "logistic_regression", "metaoptnet", "matching_net", "relation_net", "feat", "frn", "pmf"]
HEADS += ["simpleshot", "plda", "baseline_pp", "laplacian_shot", "tim", "bd_cspn", "pt_map"]
HEADS += ["transductive_fine_tune", "deep_bdc", "caml"]


@pytest.mark.parametrize("kind", HEADS)
def test_each_head_of_a_run_file_takes_what_its_factory_does_and_is_built_for_maps_and_vectors(kind):
    rate = ", inner_lr: 0.01, steps: 1" if kind in ("pmf", "baseline_pp", "transductive_fine_tune") else ""
    arguments = inspect.signature(getattr(kshot.learners, kind)).parameters
    for model, inputs in (("{kind: conv4, channels: 4}", [1, 20, 20]), ("{kind: mlp, hidden: [6]}", [7])):
        recipe = load_spec("glyphs", ["learner={kind: " + kind + rate + "}", f"model={model}"])
        options = recipe.learner.model_dump(exclude={"kind"})
        assert set(arguments) - set(options) <= {"embedding", "objective", "features", "relation"}
        for key in recipe.learner.model_fields_set ^ set(recipe.learner.model_dump()):
            assert options[key] == arguments[key].default, key
        shapes = {"inputs": inputs, "targets": [5], "objective": "classification"}
        assert not has_head(recipe)
        learner = build_learner(recipe, build_model(recipe, shapes, head=False), shapes)
        support = kshot.Batch.of(torch.randn(6, *inputs), torch.arange(6) % 3, ways=3)
        assert learner.predict(learner.adapt(support), torch.randn(4, *inputs)).shape == (4, 3)


@pytest.mark.parametrize("kind", ["alpaca", "relation_net", "feat", "matching_net, context_steps: 1", "cnp"])
def test_all_weights_of_a_run_depend_on_its_seed_alone(kind):
    shapes = {"inputs": [7], "targets": [1 if kind in ("alpaca", "cnp") else 5]}
    shapes["objective"] = "gaussian" if kind in ("alpaca", "cnp") else "classification"

    def weights(seed: int, global_seed: int) -> list[torch.Tensor]:
        recipe = load_spec("glyphs", ["learner={kind: " + kind + "}", "model={kind: mlp, hidden: [6]}", f"seed={seed}"])
        torch.manual_seed(global_seed)
        model = build_model(recipe, shapes, head=False)
        model_weights = {id(parameter) for parameter in model.parameters()}
        learner = build_learner(recipe, model, shapes)
        return [p.detach() for p in learner.parameters() if id(p) not in model_weights and p.ndim > 1]

    first, again, other = weights(0, 1), weights(0, 2), weights(1, 1)
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other) if a.std() > 0)


def no_maps(channels: Channels, outputs: NumOutputs | None) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(400 * channels, 6 if outputs is None else outputs))


def with_maps(channels: Channels, outputs: NumOutputs | None, maps: FeatureMaps) -> nn.Module:
    return nn.Conv2d(channels, 3, 3, 2) if maps else no_maps(channels, outputs)


def always_a_head(shape: InputShape, outputs: NumOutputs) -> nn.Module:
    return nn.Linear(shape[0], outputs)


def named(factory) -> str:
    return f"{__name__}:{factory.__name__}"


@pytest.fixture(autouse=True)
def this_module_can_be_imported(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or inspect.getmodule(no_maps))


@pytest.mark.parametrize("learner", ["relation_net", "frn", "deep_bdc"])
def test_a_backbone_without_maps_is_refused_by_a_learner_of_maps(learner):
    spec = load_spec("glyphs", [f"learner={learner}", f"model='{named(no_maps)}'"])
    with pytest.raises(ValueError, match=rf"learner {learner} compares feature maps, which .*:no_maps does not give"):
        build_model(spec, IMAGES, head=False)
    spec = load_spec("glyphs", [f"learner={learner}", f"model='{named(with_maps)}'"])
    model = build_model(spec, IMAGES, head=False)
    assert model(torch.zeros(2, 1, 20, 20)).ndim == 4
    build_learner(spec, model, IMAGES)


def test_a_model_that_always_has_a_last_layer_is_refused_by_a_learner_of_features():
    spec = load_spec("glyphs", ["learner=protonet", f"model='{named(always_a_head)}'"])
    with pytest.raises(ValueError, match="protonet takes features, and model .*always_a_head always has a last"):
        build_model(spec, IMAGES | {"inputs": [7]}, head=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"inputs": [7]}, r"takes images \(channels, height, width\); these inputs are \(7,\)"),
        (
            {"counts": [1, 2], "inputs": {"item": []}},
            r"inputs \(item\): .* ratings, which model factorisation or",
        ),
        ({"encoder": "x"}, "texts with features: tokens, or images with an encoder, which model encoder takes"),
        ({"symbols": 9}, r"running text \(source corpus\), which model causal_lm or language_model takes"),
        ({"ids": True}, "numbers of symbols, which no model of kshot takes"),
    ],
)
def test_a_model_that_does_not_fit_the_inputs_is_refused_with_those_that_do(more, message):
    with pytest.raises(ValueError, match=message):
        build_model(load_spec("glyphs"), IMAGES | more, head=True)


def test_heads_fit_features_and_others_the_model_with_its_last_layer():
    spec = load_spec("glyphs")
    assert not has_head(spec)
    assert has_head(spec, check_part("learner", {"kind": "maml", "inner_lr": 0.1}))
