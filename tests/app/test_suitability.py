"""A learner that cannot learn a source's tasks is refused before training; one that can is not."""

import random

import pytest

import kshot
from kshot.app.build import build_learner, build_model, build_source, has_head, shapes_of
from kshot.app.spec import parse_spec
from kshot.app.suitability import refuse_unsuited, unsuited
from kshot.training.fit import Diverged

SOURCES = {
    "numbers": "group: g, target: y, shots: 4, queries: 4",
    "shared": "group: g, target: c, shots: 4, queries: 4",
    "own": "classes: g, ways: 3, shots: 2, queries: 4",
}
INNER = {"maml", "anil", "reptile", "proto_maml", "baseline_pp", "transductive_fine_tune"}
NETWORKS = {"cnp", "prior_fitted"}
REFUSED = {  # no classes of the task's own, and a support set of 4 rows lacks one of 3 classes now and then
    "protonet": {"numbers", "shared"},
    "logistic_regression": {"numbers", "shared"},
    "relation_net": {"numbers", "shared"},
    "simpleshot": {"numbers", "shared"},
    "baseline_pp": {"numbers", "shared"},
    "transductive_fine_tune": {"numbers", "shared"},
    "proto_maml": {"numbers"},
    "prior_fitted": {"numbers"},
    "alpaca": {"shared", "own"},
    "cnp": {"own"},
    "maml": set(),
    "anil": set(),
    "reptile": set(),
    "r2d2": set(),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "t.csv"
    lines = [f"s{i % 40},{draw.gauss(0, 1):.3f},{draw.gauss(0, 1):.3f},{draw.choice('abc')}" for i in range(480)]
    path.write_text("\n".join(["g,x,y,c", *lines]))
    return path


def spec_of(path, kind, options):
    inner = ", inner_lr: 0.05" if kind in INNER else ""
    model = "" if kind in NETWORKS else "model: {kind: mlp, hidden: [8]}\n"
    learner = f"learner: {{kind: {kind}{inner}}}"
    return parse_spec(
        f"name: x\nsource: {{kind: table, path: {path}, {options}}}\n{model}{learner}\ntarget: loss <= 1", "x"
    )


@pytest.mark.parametrize("tasks", SOURCES)
@pytest.mark.parametrize("kind", REFUSED)
def test_learners_are_refused_before_training_where_they_cannot_learn(rows, kind, tasks):
    spec = spec_of(rows, kind, SOURCES[tasks])
    source = build_source(spec)
    if tasks not in REFUSED[kind]:
        refuse_unsuited(spec, source)
        return
    with pytest.raises(ValueError, match=rf"learner {kind}|a prior-fitted learner|a neural process"):
        refuse_unsuited(spec, source)


def test_what_is_refused_would_diverge_and_what_is_not_trains(rows):
    for kind, diverges in (("protonet", True), ("maml", False)):
        spec = spec_of(rows, kind, SOURCES["numbers"])
        source = build_source(spec)
        shapes = shapes_of(source)
        learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
        assert bool(unsuited(learner, source)) is diverges
        if diverges:
            with pytest.raises(Diverged):
                kshot.fit(learner, source, steps=3, tasks_per_step=2, outer_lr=1e-3)
        else:
            kshot.fit(learner, source, steps=3, tasks_per_step=2, outer_lr=1e-3)


def test_the_refusal_says_what_to_write_instead(rows):
    spec = spec_of(rows, "protonet", SOURCES["numbers"])
    with pytest.raises(ValueError, match=r"learner protonet predicts.*such as maml.*target_type: classif"):
        refuse_unsuited(spec, build_source(spec))
    spec = spec_of(rows, "protonet", SOURCES["shared"])
    with pytest.raises(ValueError, match=r"gives a class without support examples no probability.*such as maml"):
        refuse_unsuited(spec, build_source(spec))


def test_a_model_with_a_fixed_number_of_outputs_is_refused_where_ways_differ(rows):
    options = "classes: g, ways: 3, train_ways: 5, shots: 2, queries: 4"
    spec = spec_of(rows, "maml", options)
    with pytest.raises(ValueError, match="the tasks have 5 in train, 3 in val, 3 in test: make ways, train_ways"):
        refuse_unsuited(spec, build_source(spec))
    spec = spec_of(rows, "protonet", options)
    refuse_unsuited(spec, build_source(spec))
