"""What every learner promises, one row of the zoo at a time."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from zoo import SYMBOLS, ZOO, make_task

from kshot import Batch, Task
from kshot.training.checkpoint import flatten, load_state, save_state
from kshot.training.step import MetaGradient
from kshot.types import stack

rows = pytest.mark.parametrize("row", ZOO.values(), ids=ZOO.keys())
trained = pytest.mark.parametrize(
    "row", [row for row in ZOO.values() if row.trains], ids=[name for name, row in ZOO.items() if row.trains]
)


def close(a, b, **tolerance):
    flat_a, flat_b = flatten({"": a}), flatten({"": b})
    assert flat_a.keys() == flat_b.keys()
    for name in flat_a:
        torch.testing.assert_close(flat_a[name], flat_b[name], **tolerance)


def alike(a, b) -> bool:
    """Whether two predictions are the same."""
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)


def same_state(row, learner, a, b, task):
    """Two states are the same, or at least predict the same where they hold the support's rows."""
    if row.keeps_rows:
        a, b = ({"prediction": learner.predict(state, task.query.inputs)} for state in (a, b))
    close(a, b, rtol=1e-4, atol=1e-5)


def slopes(function, values, small=1e-5):
    """The derivative of a function along one direction, by autograd and by differences."""
    directions = [torch.randn_like(value) for value in values]
    grads = torch.autograd.grad(function(*values), values, materialize_grads=True)
    up, down = (function(*(v + sign * small * d for v, d in zip(values, directions))).detach() for sign in (1, -1))
    return sum((g * d).sum() for g, d in zip(grads, directions)), (up - down) / (2 * small)


@rows
def test_adapting_and_predicting_leave_weights_and_buffers_bitwise_unchanged(row):
    learner, task = row.make(3), make_task(row)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    learner.train()
    learner.predict(learner.adapt(task.support), task.query.inputs)
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@rows
def test_rows_of_weight_zero_have_no_effect(row):
    learner, task = row.make(3), make_task(row)

    def pad(batch: Batch) -> Batch:
        inputs, targets = (torch.cat([leaf, 7 * torch.ones_like(leaf[:2])]) for leaf in batch[:2])
        return Batch(inputs, targets, torch.cat([batch.weight, torch.zeros(2)]))

    padded = learner.adapt(pad(task.support))
    same_state(row, learner, padded, learner.adapt(task.support), task)
    if not row.transductive:
        losses = [
            learner.objective.loss(learner.predict(state, query.inputs), query)
            for state, query in ((padded, pad(task.query)), (learner.adapt(task.support), task.query))
        ]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        outer = learner(Task(pad(task.support), pad(task.query)))
        torch.testing.assert_close(outer, learner(task), rtol=1e-4, atol=1e-5)


@rows
def test_a_prediction_follows_its_query_and_sees_the_others_only_if_declared(row):
    learner, task = row.make(3), make_task(row)
    assert learner.transductive == row.transductive
    state = learner.adapt(task.support)
    whole = learner.predict(state, task.query.inputs)
    order = torch.randperm(len(task.query.weight))
    shuffled = learner.predict(state, task.query.inputs[order])
    follows = alike(shuffled, tree_map(lambda leaf: leaf[order], whole))
    assert follows != learner.causal_queries
    part = learner.predict(state, task.query.inputs[-4:])
    assert alike(part, tree_map(lambda leaf: leaf[-4:], whole)) != row.transductive


@rows
def test_the_order_of_the_support_matters_only_if_declared(row):
    learner, task = row.make(3), make_task(row)
    turned, given = (
        learner.adapt(support) for support in (tree_map(lambda leaf: leaf.flip(0), task.support), task.support)
    )
    if learner.ordered:
        assert not alike(*(learner.predict(state, task.query.inputs) for state in (turned, given)))
    else:
        same_state(row, learner, turned, given, task)


@rows
def test_a_state_survives_a_file(row, tmp_path):
    learner, task = row.make(3), make_task(row)
    with torch.no_grad():
        state = learner.adapt(task.support)
    save_state(tmp_path / "state.safetensors", state, {"note": "kept"})
    loaded, meta = load_state(tmp_path / "state.safetensors")
    assert meta == {"note": "kept"}
    close(learner.predict(loaded, task.query.inputs), learner.predict(state, task.query.inputs), rtol=0, atol=0)


@trained
def test_every_mode_gives_the_same_gradient(row):
    learner = row.make(3).double()
    tasks = stack([make_task(row, seed=seed, dtype=torch.float64) for seed in range(3)])
    found = {}
    for name in ("loop", "vmap", "one task traced", "a stack traced"):
        learner.zero_grad()
        gradient = MetaGradient(learner, "traced" if "traced" in name else name)
        gradient.single = name == "one task traced"
        loss = gradient(tasks)
        assert learner.annealed or not gradient.choice, gradient.choice
        found[name] = [loss, *(p.grad.clone() for p in learner.parameters() if p.grad is not None)]
    assert len(found["loop"]) > 1
    for name in found:
        for a, b in zip(found["loop"], found[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@trained
def test_the_meta_gradient_is_exact_or_declared_an_approximation(row):
    learner = row.make(3).double()
    task = make_task(row, dtype=torch.float64)
    parameters = dict(learner.named_parameters())

    def loss(*values):
        return torch.func.functional_call(learner, dict(zip(parameters, values)), (task,))

    values = tuple(parameters.values())
    if row.exact:
        assert torch.autograd.gradcheck(loss, values, fast_mode=True)
    else:
        assert not torch.isclose(*slopes(loss, values), rtol=1e-4, atol=1e-7)


@rows
@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (5, 3)])
def test_any_number_of_ways_and_shots(row, ways, shots):
    task = make_task(row, ways, shots)
    prediction = row.make(ways).predict(row.make(ways).adapt(task.support), task.query.inputs)
    for leaf in tree_leaves(prediction):
        assert leaf.shape == (*task.query.targets.shape, *([SYMBOLS] if row.text else []))
        assert torch.isfinite(leaf).all()


classifiers = pytest.mark.parametrize(
    "row",
    [row for row in ZOO.values() if row.classes],
    ids=[name for name, row in ZOO.items() if row.classes],
)


def widened(task: Task, ways: int) -> Task:
    """The same task with further classes that have no examples, and a row of padding."""

    def wide(batch: Batch) -> Batch:
        inputs, targets = (torch.cat([leaf, leaf[:1]]) for leaf in batch[:2])
        targets = torch.nn.functional.pad(targets, (0, ways - targets.shape[1]))
        return Batch(inputs, targets, torch.nn.functional.pad(batch.weight, (0, 1)))

    return Task(wide(task.support), wide(task.query))


@classifiers
def test_a_class_without_support_examples_gets_no_probability(row):
    learner, task = row.make(5), widened(make_task(row, 3), 5)
    chance = learner.predict(learner.adapt(task.support), task.query.inputs).softmax(-1)
    assert (chance[:, 3:] == 0).all()
    torch.testing.assert_close(chance.sum(-1), torch.ones(len(chance)))
    loss = learner(task)
    assert torch.isfinite(loss)
    loss.backward() if row.trains else None
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


def any_ways(row) -> bool:
    """Whether one learner serves any number of ways, its head being made for each task."""
    three, five = ({name: t.shape for name, t in row.make(ways).state_dict().items()} for ways in (3, 5))
    return three == five and row.classes


@pytest.mark.parametrize(
    "row", [row for row in ZOO.values() if any_ways(row)], ids=[name for name, row in ZOO.items() if any_ways(row)]
)
def test_where_the_head_is_made_for_the_task_absent_classes_change_nothing(row):
    learner, small = row.make(3), make_task(row, 3)
    large = widened(small, 5)
    prediction = learner.predict(learner.adapt(large.support), small.query.inputs)
    expected = learner.predict(learner.adapt(small.support), small.query.inputs)
    torch.testing.assert_close(prediction[:, :3], expected, rtol=1e-4, atol=1e-5)


@rows
def test_adapting_beats_not_adapting(row):
    learner = row.make(3)
    optimizer = torch.optim.Adam(learner.parameters(), 0.01) if row.warm else None
    for seed in range(200, 200 + row.warm):
        optimizer.zero_grad()
        learner(make_task(row, shots=4, seed=seed)).backward()
        optimizer.step()
    losses = {"adapted": 0.0, "foreign": 0.0}
    for seed in range(20):
        task, other = make_task(row, shots=4, seed=seed), make_task(row, shots=4, seed=seed + 100)
        for name, support in (("adapted", task.support), ("foreign", other.support)):
            prediction = learner.predict(learner.adapt(support), task.query.inputs)
            losses[name] += float(learner.objective.loss(prediction, task.query).detach())
    assert losses["adapted"] < losses["foreign"]
