import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import kshot
from kshot import Batch, Task, objectives
from kshot.tasks import from_loader
from kshot.types import stack, tree_leaves, unstack

NUM, WAYS, SHOTS, QUERIES = 12, 2, 1, 2


def arrays(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x and y of support and query sets of NUM tasks."""
    random = torch.Generator().manual_seed(seed)
    labels = lambda count: torch.arange(WAYS).repeat(count).expand(NUM, -1)  # noqa: E731
    x = torch.randn(NUM, WAYS * (SHOTS + QUERIES), 3, generator=random)
    return x[:, : WAYS * SHOTS], labels(SHOTS), x[:, WAYS * SHOTS :], labels(QUERIES)


def expected() -> list[Task]:
    return [
        Task(Batch.of(xs, ys, ways=WAYS), Batch.of(xq, yq, ways=WAYS)) for xs, ys, xq, yq in zip(*arrays(), strict=True)
    ]


class Singles(IterableDataset):
    """Items, one after the other, as they are."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def loaders():
    xs, ys, xq, yq = arrays()
    quadruples = list(zip(xs, ys, xq, yq))
    torchmeta = [{"train": [a, b], "test": [c, d]} for a, b, c, d in zip(*(leaf.split(4) for leaf in arrays()))]
    pairs = [(torch.cat([a, c]), torch.cat([b, d])) for a, b, c, d in quadruples]
    return {
        "quadruples in batches": (DataLoader(TensorDataset(xs, ys, xq, yq), batch_size=4), {}),
        "quadruples, one by one": (DataLoader(Singles(quadruples), batch_size=None), {}),
        "arrays": ([tuple(leaf.numpy() for leaf in item) for item in quadruples], {}),
        "pairs of pairs": ([((a, b), (c, d)) for a, b, c, d in quadruples], {}),
        "torchmeta": (torchmeta, {"stacked": True}),
        "a dict": ([{"support": (a, b), "query": (c, d)} for a, b, c, d in quadruples], {}),
        "learn2learn": (pairs, {"shots": SHOTS}),
        "tasks": (expected(), {}),
        "tasks in batches": (DataLoader(expected(), batch_size=5), {}),
    }


@pytest.mark.parametrize("name", loaders())
def test_every_form_gives_the_same_tasks(name):
    loader, options = loaders()[name]
    source = from_loader(loader, test=loader, ways=WAYS, **options)
    for split in ("train", "test"):
        for index, task in enumerate(expected()):
            for ours, theirs in zip(tree_leaves(source.task(split, index)), tree_leaves(task), strict=True):
                assert torch.equal(ours, theirs)
    assert source.num_tasks("test") == NUM
    assert source.num_tasks("train") is source.num_tasks("val") is None


def test_a_pair_of_examples_in_the_order_of_classes_is_split_by_shots():
    x, y = np.arange(6.0)[:, None], [0, 0, 0, 1, 1, 1]
    task = from_loader([(x, y)], ways=2, shots=2).task("train", 0)
    assert task.support.inputs.flatten().tolist() == [0, 1, 3, 4]
    assert task.query.inputs.flatten().tolist() == [2, 5]


def make_learner(seed: int = 0) -> kshot.Learner:
    torch.manual_seed(seed)
    return kshot.maml(torch.nn.Linear(3, WAYS), inner_lr=0.1)


def test_fit_on_a_loader_equals_fit_on_its_tasks():
    class Cycle(kshot.TaskSource):
        objective, seed = objectives.classification, 0

        def task(self, split, index):
            return expected()[index % NUM]

    learners = make_learner(), make_learner()
    loader = DataLoader(TensorDataset(*arrays()), batch_size=4)
    losses = [
        kshot.fit(learner, source, steps=7, tasks_per_step=3)  # 21 tasks, so that the loader starts again
        for learner, source in zip(learners, (from_loader(loader, ways=WAYS), Cycle()), strict=True)
    ]
    assert losses[0] == losses[1]


def test_a_loader_itself_is_refused_with_the_line_that_makes_a_source_of_it():
    loader = DataLoader(TensorDataset(*arrays()), batch_size=4)
    for call in (
        lambda: kshot.fit(make_learner(), loader, steps=1),
        lambda: kshot.evaluate(make_learner(), loader),
        lambda: kshot.pretrain(torch.nn.Linear(3, 2), loader, steps=1),
    ):
        with pytest.raises(TypeError, match=r"got a DataLoader: .* kshot.tasks.from_loader\(loader, objective=…\)"):
            call()
    with pytest.raises(TypeError, match="got a int: write a subclass"):
        kshot.fit(make_learner(), 3, steps=1)


def test_evaluation_reads_a_loader_once_and_sees_the_same_tasks_again():
    passes = []

    class Once(IterableDataset):
        def __iter__(self):
            passes.append(1)
            return iter([tuple(leaf) for leaf in zip(*arrays(seed=len(passes)))])

    source = from_loader(DataLoader(Once(), batch_size=None), test=DataLoader(Once(), batch_size=None), ways=WAYS)
    first, again = (kshot.evaluate(make_learner(), source, num_tasks=5, audit=False) for _ in range(2))
    assert first.episodes_sha256 == again.episodes_sha256
    assert len(passes) == 1
    with pytest.raises(ValueError, match=r"has 12 test tasks, 0 … 11; task 12 was asked"):
        kshot.evaluate(make_learner(), source, num_tasks=13, audit=False)


def test_training_tasks_that_are_gone_are_not_replaced_in_silence(monkeypatch):
    monkeypatch.setattr("kshot.tasks.loader.KEPT", 2)
    source = from_loader(expected(), ways=WAYS)
    assert torch.equal(
        source.task("train", 9).support.inputs, expected()[9].support.inputs
    )  # skips, as in a resumption
    assert torch.equal(source.task("train", 1).support.inputs, expected()[1].support.inputs)
    with pytest.raises(ValueError, match="training task 5 has been read and is not kept"):
        source.task("train", 5)
    kshot.fit(make_learner(), source, steps=1, seed=1)  # another seed starts anew


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([{"x": 1, "y": 2}], {}, "yields a dict of x, y, which is no task"),
        ([(1, 2, 3)], {}, "yields a tuple of 3, which is no task"),
        ([(torch.zeros(4, 1), torch.zeros(4).long())], {}, "give ways= and shots="),
        ([(torch.zeros(2, 1), torch.tensor([0, 1]))], {"ways": 2, "shots": 1}, "too few for 1 shots"),
        ([(torch.zeros(3, 1), torch.tensor([0, 1, 1]))], {"ways": 2, "shots": 2}, "too few for 2 shots"),
        (
            [tuple(torch.zeros(2, 1).long() for _ in range(4))],
            {},
            "one-hot .*; give ways= if the targets are class ids",
        ),
        ([{"train": 3, "test": 4}], {}, r"each set of a task must be a pair \(x, y\), got a int"),
        ([], {}, "no more tasks"),
    ],
)
def test_what_is_no_task_is_refused(items, options, message):
    with pytest.raises(ValueError, match=message):
        from_loader(items, **options).task("train", 0)


def test_a_split_without_an_iterable_and_an_iterator_at_its_end():
    source = from_loader(iter(expected()[:2]), ways=WAYS)
    with pytest.raises(ValueError, match="no iterable of val tasks, only of train"):
        source.task("val", 0)
    with pytest.raises(ValueError, match="no more tasks; give one that can be iterated again"):
        source.task("train", 2)
    with pytest.raises(ValueError, match="at least one iterable"):
        from_loader()


def test_regression_tasks_and_stacks():
    tasks = [kshot.sources.sinusoids().task("train", index) for index in range(4)]
    source = from_loader([stack(tasks)], objective=objectives.mse, stacked=True)
    for ours, theirs in zip(unstack(source.stack("train", range(4))), tasks, strict=True):
        assert torch.equal(ours.query.targets, theirs.query.targets)
    assert source.describe()["loaders"] == {"train": "list"}
