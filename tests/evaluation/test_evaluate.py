import pytest
import torch

import kshot
from kshot import objectives
from kshot.learners import SupportMean
from kshot.sources import sinusoids
from kshot.tasks import TaskSource
from kshot.types import SPLITS


def test_figures_are_means_over_single_tasks():
    learner, source = SupportMean(objectives.mse), sinusoids()
    found = kshot.evaluate(learner, source, split="val", num_tasks=20)
    expected = [float(learner(source.task("val", index))) for index in range(20)]
    assert found.per_task["mse"] == pytest.approx(expected, rel=1e-5)
    assert found.metrics["mse"].mean == pytest.approx(sum(expected) / 20, rel=1e-5)
    assert found.split == "val"
    assert found.inductive


def test_the_hash_names_the_episodes():
    def sha(**options):
        arguments = {"split": "test", "num_tasks": 5} | options
        seed = arguments.pop("seed", 0)
        return kshot.evaluate(SupportMean(objectives.mse), sinusoids(seed=seed), **arguments).episodes_sha256

    assert sha() == sha()
    assert len({sha(), sha(num_tasks=6), sha(split="val"), sha(seed=1)}) == 4


def test_evaluating_leaves_the_learner_as_it_was():
    learner = kshot.maml(kshot.models.mlp(1, 1, [4]), inner_lr=0.1, objective=objectives.mse).train()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    kshot.evaluate(learner, sinusoids(), num_tasks=3)
    assert learner.training
    assert all(p.grad is None for p in learner.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())


def test_a_transductive_learner_is_called_one():
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    learner = kshot.maml(model, inner_lr=0.1, objective=objectives.mse, batchnorm="query")
    assert not kshot.evaluate(learner, sinusoids(), num_tasks=2).inductive


class Padded(kshot.tasks.TaskSource):
    """Sinusoids whose queries are filled up by rows that are far off and weigh nothing."""

    def __init__(self):
        self.inner = sinusoids()
        self.objective, self.seed = self.inner.objective, self.inner.seed

    def task(self, split, index):
        task = self.inner.task(split, index)
        longer = [torch.cat([leaf, 100 + torch.zeros_like(leaf[:5])]) for leaf in task.query[:2]]
        return task._replace(query=kshot.Batch(*longer, torch.cat([task.query.weight, torch.zeros(5)])))


def test_rows_that_fill_up_a_query_are_not_shown_to_a_transductive_learner():
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    learner = kshot.maml(model, inner_lr=0.1, objective=objectives.mse, batchnorm="query")
    plain, padded = (kshot.evaluate(learner, source, num_tasks=3, audit=False) for source in (sinusoids(), Padded()))
    assert padded.per_task["mse"] == pytest.approx(plain.per_task["mse"], rel=1e-6)


def test_no_tasks_is_refused():
    with pytest.raises(ValueError, match="at least one task, got num_tasks=0"):
        kshot.evaluate(SupportMean(objectives.mse), sinusoids(), num_tasks=0)


def test_from_scratch_starts_from_other_weights_and_fine_tuning_from_the_given_ones():
    model = kshot.models.mlp(1, 1)
    given = model.head.weight.clone()
    scratch = kshot.learners.from_scratch(model, inner_lr=0.1, objective=objectives.mse, seed=1)
    tuned = kshot.learners.fine_tune(model, inner_lr=0.1, objective=objectives.mse)
    classes = kshot.learners.fine_tune(kshot.models.mlp(1, 3), inner_lr=0.1)
    assert not torch.equal(scratch.model.head.weight, given)
    assert torch.equal(tuned.model.head.weight, given)
    assert not classes.model.head.weight.any()
    assert torch.equal(model.head.weight, given)
    assert torch.equal(
        scratch.model.head.weight, kshot.learners.from_scratch(model, inner_lr=0.1, seed=1).model.head.weight
    )


def test_episodes_of_another_hash_are_refused_before_anything_is_scored():
    source, scored = sinusoids(), []
    learner = SupportMean(objectives.mse)
    sha = kshot.evaluate(learner, source, num_tasks=5).episodes_sha256
    for given in (sha, sha[:8], sha[:16].upper() + "…"):
        assert kshot.evaluate(learner, source, num_tasks=5, episodes_sha256=given).episodes_sha256 == sha
    with pytest.raises(ValueError, match=f"6 test tasks have the hash .*, not {sha[:16]}…: they are different"):
        kshot.evaluate(learner, source, num_tasks=6, episodes_sha256=sha, observe=scored.append)
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits, got 'abc'"):
        kshot.evaluate(learner, source, num_tasks=5, episodes_sha256="abc")
    assert not scored


def test_an_observer_sees_each_task_with_what_was_made_of_it():
    source, learner, seen = sinusoids(), SupportMean(objectives.mse), []
    found = kshot.evaluate(learner, source, num_tasks=3, observe=seen.append)
    assert [each.number for each in seen] == [0, 1, 2]
    for each in seen:
        assert torch.equal(each.prediction, learner.predict(each.state, each.task.query.inputs))
        assert each.figures["mse"] == found.per_task["mse"][each.number]
    assert found.adapt_ms.median <= found.adapt_ms.p95
    assert len(set(found.episodes)) == 3


@pytest.mark.slow
def test_classes_are_calibrated_in_every_evaluation_and_numbers_are_not():
    source = kshot.sources.glyphs(ways=3, queries=4)
    found = kshot.evaluate(kshot.learners.nearest_centroid(), source, num_tasks=4)
    assert found.calibration.num_examples == 4 * 12
    assert found.calibration.nll.mean == pytest.approx(found.metrics["loss"].mean, rel=1e-5)
    assert kshot.evaluate(SupportMean(objectives.mse), sinusoids(), num_tasks=2).calibration is None


def test_another_training_seed_draws_other_training_tasks_and_the_same_episodes():
    class Noted(TaskSource):
        objective, seed = objectives.mse, 0

        def task(self, split, index):
            return sinusoids().task(split, index)

        def stack(self, split, indices):
            drawn.setdefault(split, []).extend(indices)
            return sinusoids().stack(split, indices)

    trained = {}
    for seed in (0, 0, 1):
        drawn: dict = {}
        model = kshot.models.mlp(1, 1, [4])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        learner = kshot.maml(model, inner_lr=0.1, objective=objectives.mse)
        losses = kshot.fit(learner, Noted(), steps=2, tasks_per_step=3, seed=seed)
        found = kshot.evaluate(learner, Noted(), num_tasks=2, audit=False)  # which reads of all splits
        trained.setdefault(seed, []).append((drawn["train"], drawn["test"], losses, found.episodes_sha256))
    assert trained[0][0] == trained[0][1]
    (first, test, losses, sha), (other, same, others, also) = trained[0][0], trained[1][0]
    assert first == list(range(6))
    assert not set(first) & set(other)
    assert losses != others
    assert (test, sha) == (same, also)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        kshot.fit(learner, sinusoids(), steps=1, seed=-1)


def test_parts_that_were_in_evaluation_mode_stay_in_it():
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1))
    learner = kshot.maml(model, inner_lr=0.1, objective=objectives.mse).train()
    model[1].eval()
    kshot.evaluate(learner, sinusoids(), num_tasks=1, audit=False)
    assert learner.training
    assert model[0].training
    assert not model[1].training


class Ragged(TaskSource):
    """Tasks of different numbers of classes, support rows and queries."""

    objective, seed = objectives.classification, 0

    def task(self, split, index):
        seed = index + 1000 * SPLITS.index(split)
        sizes = {"ways": 2 + index % 3, "shots": 1 + index % 2, "queries": 2 + index % 4}
        return kshot.testing.make_task(self.objective, **sizes, inputs=(6,), seed=seed)


def ragged_learners():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    return {
        "protonet": kshot.protonet(net),
        "transductive": kshot.protonet(net, batchnorm="query"),
        "proto-maml": kshot.learners.proto_maml(net, inner_lr=0.1),
        "laplacian-shot": kshot.learners.laplacian_shot(net, features=4, batchnorm="support"),
    }


@pytest.mark.parametrize("name", ragged_learners())
def test_ragged_tasks_are_each_evaluated_as_if_alone(name):
    learner = ragged_learners()[name].eval()
    found = kshot.evaluate(learner, kshot.tasks.watched(Ragged()), num_tasks=20)
    assert found.trusted
    with torch.no_grad():
        expected = [float(learner(Ragged().task("test", index))) for index in range(20)]
    assert found.per_task["loss"] == expected
    assert found.calibration.num_examples == sum(len(Ragged().task("test", i).query.weight) for i in range(20))


def test_ragged_tasks_are_drawn_once_if_the_source_draws_single_tasks():
    drawn = []

    class Counted(Ragged):
        def task(self, split, index):
            drawn.append(index)
            return super().task(split, index)

    kshot.evaluate(ragged_learners()["protonet"], Counted(), num_tasks=5, audit=False)
    assert drawn == [0, 1, 2, 3, 4]


def test_ragged_tasks_of_a_mixture():
    source = kshot.tasks.mixture({"a": Ragged(), "b": Ragged()})
    found = kshot.evaluate(ragged_learners()["protonet"], source, num_tasks=20, audit=False)
    assert found.metrics["accuracy"].num_tasks == 20
