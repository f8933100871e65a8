"""Models that return several things: what is scored, and what is refused."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import nn

import kshot
from kshot import objectives, testing
from kshot.models import select

Named = namedtuple("Named", ["hidden", "logits"])


@dataclass
class Plain:
    hidden: Any
    logits: Any


@dataclass
class Output(OrderedDict):
    """As ModelOutput of transformers: a dataclass that is a mapping of those fields that are not None."""

    loss: Any = None
    logits: Any = None
    hidden: Any = None

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


FORMS = {
    "dict": lambda hidden, logits: {"hidden": hidden, "logits": logits},
    "named tuple": Named,
    "dataclass": Plain,
    "model output": lambda hidden, logits: Output(logits=logits, hidden=hidden),
}
try:
    from transformers.modeling_outputs import SequenceClassifierOutput

    FORMS["transformers"] = lambda hidden, logits: SequenceClassifierOutput(logits=logits, hidden_states=hidden)
except ImportError:
    pass


class Net(nn.Module):
    """Two layers; returns what `wrap` makes of the hidden values and the logits."""

    def __init__(self, wrap, outputs: int = 3, inputs: int = 64):
        super().__init__()
        self.body, self.head, self.wrap = nn.Linear(inputs, 8), nn.Linear(8, outputs), wrap

    def forward(self, x):
        hidden = torch.tanh(self.body(x.flatten(1)))
        return self.wrap(hidden, self.head(hidden))


def logits_alone(hidden, logits):
    return logits


def nets(wrap, **options):
    torch.manual_seed(0)
    plain = Net(logits_alone, **options)
    other = Net(wrap, **options)
    other.load_state_dict(plain.state_dict())
    return plain, other


def gradients(learner, task, mode="loop"):
    loss = kshot.training.step.meta_gradient(learner, kshot.types.stack([task, task]), mode)
    return [loss, *(p.grad for p in learner.parameters() if p.grad is not None)]


LEARNERS = {
    "maml": lambda model: kshot.maml(model, inner_lr=0.1, steps=2),
    "multilabel": lambda model: kshot.maml(model, inner_lr=0.1, steps=2, objective=objectives.multilabel),
    "anil": lambda model: kshot.learners.anil(model, inner_lr=0.1, steps=2, head="head"),
    "fine-tuned": lambda model: kshot.learners.fine_tune(model, inner_lr=0.1, steps=2),
    "imaml": lambda model: kshot.learners.imaml(model, inner_lr=0.1, steps=2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LEARNERS)
def test_the_field_logits_is_scored(name, form):
    plain, other = map(LEARNERS[name], nets(FORMS[form]))
    task = testing.make_task(plain.objective)
    for mode in ("loop", "vmap"):
        for learner in (plain, other):
            learner.zero_grad()
        for ours, theirs in zip(gradients(other, task, mode), gradients(plain, task, mode), strict=True):
            assert torch.equal(ours, theirs)
    predictions = [each.predict(each.adapt(task.support), task.query.inputs) for each in (plain, other)]
    assert torch.equal(*predictions)


def test_a_regression_and_a_distribution():
    task = testing.make_task(objectives.mse)
    plain, other = nets(FORMS["model output"], outputs=1, inputs=1)
    learners = [kshot.maml(model, inner_lr=0.1, objective=objectives.mse) for model in (plain, other)]
    assert torch.equal(*(learner(task) for learner in learners))

    spread = lambda hidden, logits: (logits, logits.exp())  # noqa: E731
    Normal = namedtuple("Normal", ["mean", "std"])
    forms = (lambda *both: dict(zip(("mean", "std"), spread(*both))), lambda *both: Normal(*spread(*both)))
    losses = []
    for form in forms:
        model = nets(form, outputs=1, inputs=1)[1]
        losses.append(kshot.maml(model, inner_lr=0.1, objective=objectives.gaussian)(task))
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda hidden, logits: (hidden, logits), r"a tuple of 2: say which part is scored.*select\(model, 0\)"),
        (lambda hidden, logits: [logits], r"a list of 1: say which part is scored"),
        (
            lambda hidden, logits: {"n": 3, "scores": logits},
            r"a dict of n, scores: say which part .*select\(model, 'scores'\)",
        ),
        (lambda hidden, logits: {"logits": None, "scores": logits}, r"a dict of logits, scores: say which part"),
        (lambda hidden, logits: None, "a NoneType: say which part is scored"),
    ],
)
@pytest.mark.parametrize("objective", [objectives.classification, objectives.multilabel, objectives.mse])
def test_an_ambiguous_output_is_refused(wrap, message, objective):
    _, model = nets(wrap)
    learner = kshot.maml(model, inner_lr=0.1, objective=objective)
    task = testing.make_task(objectives.classification)
    with pytest.raises(ValueError, match=f"the model returned {message}"):
        learner.adapt(task.support)
    with pytest.raises(ValueError, match=f"the model returned {message}"):
        objective.loss(model(task.query.inputs), task.query)


def test_select_says_which_part_is_scored():
    task = testing.make_task()
    for wrap, part in (
        (lambda hidden, logits: (hidden, logits), 1),
        (lambda hidden, logits: [hidden, logits], -1),
        (lambda hidden, logits: {"scores": logits, "logits": hidden}, "scores"),
        (FORMS["dataclass"], 1),
        (FORMS["named tuple"], "logits"),
        (FORMS["model output"], "logits"),
    ):
        plain, model = nets(wrap)
        learners = (
            kshot.maml(plain, inner_lr=0.1, adaptable="head.*"),
            kshot.maml(select(model, part), inner_lr=0.1, adaptable="model.head.*"),
        )
        assert torch.equal(*(learner(task) for learner in learners))
    with pytest.raises(ValueError, match="a tuple of 2, which has no part 2"):
        select(Net(lambda *both: both), 2)(torch.zeros(1, 64))
    with pytest.raises(ValueError, match="a tuple of 2, which has no part 'logits'"):
        select(Net(lambda *both: both), "logits")(torch.zeros(1, 64))


@pytest.mark.parametrize(
    "make",
    [
        kshot.protonet,
        kshot.learners.r2d2,
        lambda model: kshot.learners.proto_maml(model, inner_lr=0.1),
        lambda model: kshot.learners.transductive_fine_tune(model, inner_lr=0.1),
    ],
)
def test_an_embedding_with_several_outputs_is_refused_unless_one_is_selected(make):
    plain, model = nets(FORMS["model output"])
    task = testing.make_task()
    with pytest.raises(ValueError, match=r"a Output of logits, hidden: say which part holds the features.*'logits'"):
        make(model)(task)
    assert torch.equal(make(plain)(task), make(select(model, "logits"))(task))


def test_an_objective_of_ones_own_scores_what_the_model_returns():
    mean_entropy = objectives.Objective(lambda output, batch: output["logits"].square().mean(), lambda *_: {})
    _, model = nets(FORMS["dict"])
    learner, task = kshot.maml(model, inner_lr=0.1, objective=mean_entropy), testing.make_task()
    assert learner.predict(learner.adapt(task.support), task.query.inputs).keys() == {"hidden", "logits"}


def test_pretraining_scores_the_same_part():
    class Points(kshot.TaskSource):
        objective, seed = objectives.mse, 0

        def task(self, split, index):
            return testing.make_task(objectives.mse, seed=index)

    losses = [kshot.pretrain(model, Points(), steps=3) for model in nets(FORMS["dataclass"], outputs=1, inputs=1)]
    assert losses[0] == losses[1]
