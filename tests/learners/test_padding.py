"""Queries of weight 0 have no part in the predictions of transductive learners, in any engine and any outer loss."""

import pytest
import torch
from torch import nn
from zoo import early, small_conv

import kshot
from kshot import Batch, Task, learners
from kshot.inner.unrolling import recomputing
from kshot.learner import predict_query
from kshot.query_weight import current_query_weight, given_query_weight, query_weight
from kshot.testing import make_task
from kshot.training.step import MetaGradient
from kshot.types import stack

QUERY = {"batchnorm": "query"}

TRANSDUCTIVE = {
    "maml": lambda: learners.maml(small_conv(3), inner_lr=0.2, **QUERY),
    "maml++, early": lambda: early(learners.maml_pp(small_conv(3), inner_lr=0.2, steps=2, first_order=0.0, **QUERY)),
    "reptile": lambda: learners.reptile(small_conv(3), inner_lr=0.2, **QUERY),
    "proto-maml": lambda: learners.proto_maml(small_conv(None), inner_lr=0.05, **QUERY),
    "protonet": lambda: learners.protonet(small_conv(None), **QUERY),
    "relation net": lambda: learners.relation_net(small_conv(None), features=16, hidden=8, **QUERY),
    "feat": lambda: learners.feat(small_conv(None), features=16, dropout=0.0, attention_dropout=0.0, **QUERY),
    "cnaps": lambda: learners.cnaps(small_conv(None), small_conv(None), film=["0", "3"], task_dim=16, **QUERY),
    "pmf": lambda: learners.pmf(small_conv(None), inner_lr=0.01, steps=1, **QUERY),
    "laplacian-shot": lambda: learners.laplacian_shot(small_conv(None), features=16, steps=4),
    "laplacian-shot, all neighbours": lambda: learners.laplacian_shot(
        small_conv(None), features=16, neighbours=30, **QUERY
    ),
    "tim": lambda: learners.tim(small_conv(None), steps=4),
    "bd-cspn": lambda: learners.bd_cspn(small_conv(None), confident=2),
    "pt-map": lambda: learners.pt_map(small_conv(None), steps=3),
    "transductive fine-tuning": lambda: learners.transductive_fine_tune(small_conv(None), inner_lr=0.01, steps=2),
    "transductive fine-tuning, order 2": lambda: learners.transductive_fine_tune(
        small_conv(None), inner_lr=0.01, steps=2, order=2, **QUERY
    ),
}


def padded(batch: Batch, rows: int) -> Batch:
    """The batch with a padding row of nonsense before its rows; after them one more, and some near its rows."""

    def pad(leaf):
        nonsense = 1000 * torch.randn(2, *leaf.shape[1:], dtype=leaf.dtype)
        return torch.cat([nonsense[:1], leaf, nonsense[1:], leaf[: rows - 2] + 0.01])

    return Batch(pad(batch.inputs), pad(batch.targets), nn.functional.pad(batch.weight, (1, rows - 1)))


def gradient(learner, tasks, mode):
    learner.zero_grad()
    loss = MetaGradient(learner, mode)(stack(tasks))
    return [loss, *(p.grad.clone() for p in learner.parameters() if p.grad is not None)]


@pytest.mark.parametrize("make", TRANSDUCTIVE.values(), ids=TRANSDUCTIVE.keys())
def test_padding_changes_neither_predictions_nor_the_outer_loss(make):
    torch.manual_seed(0)
    learner = make().double()
    assert learner.transductive
    tasks = [make_task(seed=seed, dtype=torch.float64) for seed in range(2)]
    wide = [Task(task.support, padded(task.query, 3 + seed)) for seed, task in enumerate(tasks)]
    for task, with_padding in zip(tasks, wide):
        state = learner.adapt(task.support)
        found = predict_query(learner, state, with_padding.query)[1 : 1 + len(task.query.weight)]
        torch.testing.assert_close(found, learner.predict(state, task.query.inputs))
        assert not torch.allclose(learner.predict(state, with_padding.query.inputs)[1 : 1 + len(found)], found)
    wide[0] = Task(tasks[0].support, padded(tasks[0].query, 4))  # equal sizes, to be stacked
    expected = gradient(learner, tasks, "loop")
    for mode in ("loop", "vmap"):
        torch.testing.assert_close(gradient(learner, wide, mode), expected)


def test_steps_that_are_recomputed_know_the_padding():
    torch.manual_seed(0)
    learner = TRANSDUCTIVE["transductive fine-tuning, order 2"]().double()
    task = make_task(dtype=torch.float64)
    wide = Task(task.support, padded(task.query, 4))
    expected = torch.autograd.grad(learner(wide), tuple(learner.parameters()), allow_unused=True)
    learner.zero_grad()
    with recomputing():
        learner(wide).backward()
    for grad, parameter in zip(expected, learner.parameters()):
        torch.testing.assert_close(grad, parameter.grad)


def test_running_text_goes_on_after_a_window_of_padding():
    """The query windows before and after it are predicted as if it were not there, and it is no context."""
    torch.manual_seed(0)
    model = kshot.models.language_model(symbols=8, width=6)
    learner = learners.dynamic_evaluation(model, inner_lr=0.5, rule="adam").double()
    text = make_task(learner.objective, dtype=torch.float64)
    state = learner.adapt(text.support)
    whole = learner.predict(state, text.query.inputs)
    inputs = torch.cat([text.query.inputs[:2], text.query.inputs[-1:], text.query.inputs[2:]])
    weight = torch.ones(len(inputs), dtype=torch.float64).index_fill(0, torch.tensor([2]), 0.0)
    with query_weight(weight):
        found = learner.predict(state, inputs)
    torch.testing.assert_close(torch.cat([found[:2], found[3:]]), whole)
    assert not torch.allclose(learner.predict(state, inputs)[3:], whole[2:])


def test_weights_are_those_of_the_innermost_context_and_of_all_queries():
    assert given_query_weight(3) is None
    like = torch.zeros(1, dtype=torch.float64)
    with query_weight(torch.tensor([0.0, 1.0])):
        with query_weight(torch.tensor([2.0])):
            assert current_query_weight(1, like).tolist() == [2.0]
        assert current_query_weight(2, like).tolist() == [0.0, 1.0]
        assert current_query_weight(2, like).dtype == torch.float64
        with pytest.raises(ValueError, match=r"weights \(2,\), but 5 queries are predicted"):
            current_query_weight(5, like)
    assert current_query_weight(2, like).tolist() == [1.0, 1.0]
