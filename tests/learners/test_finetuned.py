"""Learners that tune on a task, or see all its queries, against loops written out with torch.optim and numpy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features import features, support_of
from sklearn.neighbors import NearestNeighbors
from torch import nn

import kshot
from kshot import Batch, Task
from kshot.models import conv4


def prototypes(feat, labels, ways):
    return torch.stack([feat[labels == c].mean(0) for c in range(ways)])


def test_baseline_pp_descends_on_cosine_weights():
    feat, target, labels = features(9, 4, 3)
    learner = kshot.learners.baseline_pp(nn.Flatten(), inner_lr=0.2, steps=4, scale=5.0).double()
    weight = prototypes(F.normalize(feat, dim=1), labels, 3).requires_grad_()
    optimizer = torch.optim.SGD([weight], 0.2)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(5 * F.cosine_similarity(feat[:, None], weight, dim=2), labels).backward()
        optimizer.step()
    torch.testing.assert_close(learner.adapt(support_of(feat, target))["head"]["weight"], weight)


def test_pmf_tunes_the_embedding_with_the_support_as_query_and_trains_as_a_protonet():
    x, target, labels = features(9, 4, 3)
    embedding = nn.Linear(4, 5).double()
    learner = kshot.learners.pmf(embedding, inner_lr=0.05, steps=3, distance="euclidean")
    tuned = copy.deepcopy(embedding)
    optimizer = torch.optim.Adam(tuned.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        feat = tuned(x)
        F.cross_entropy(-torch.cdist(feat, prototypes(feat, labels, 3)).square(), labels).backward()
        optimizer.step()
    support = support_of(x, target)
    with torch.no_grad():  # as an evaluation does
        state = learner.adapt(support)
    torch.testing.assert_close(state["params"], dict(tuned.named_parameters()))
    expected = -torch.cdist(tuned(x), prototypes(tuned(x), labels, 3)).square()
    torch.testing.assert_close(learner.predict(state, x), expected)
    task = Task(support, support)
    torch.testing.assert_close(learner(task), kshot.protonet(embedding)(task))


def test_pmf_moves_all_images_of_a_step_alike():
    learner = kshot.learners.pmf(nn.Flatten(), inner_lr=0.1, shift=3, flip=True)
    image = torch.arange(2 * 36.0).view(2, 1, 6, 6)
    support = Batch.of(image, torch.tensor([0, 1]), ways=2)
    seen = [learner._augmented(support, step).inputs for step in range(8)]
    assert len({tuple(each.flatten().tolist()) for each in seen}) == 8
    for each in seen:
        torch.testing.assert_close(each[1], each[0] + 36)


def test_pretraining_meta_training_and_fine_tuning_are_one_pipeline():
    """P>M>F on glyphs of 20 pixels: what is fine-tuned starts at what was meta-trained."""
    source = kshot.sources.glyphs(ways=3, shots=2, queries=3)
    model = conv4(1, channels=4)
    kshot.pretrain(model, source, steps=2, batch=8)
    learner = kshot.learners.pmf(model, inner_lr=1e-3, steps=2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    kshot.fit(learner, source, steps=2, tasks_per_step=1)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert kshot.evaluate(learner, source, num_tasks=2).inductive
    state = learner.adapt(source.task("test", 0).support)
    for name, parameter in model.named_parameters():
        assert not torch.equal(state["params"][name], parameter), name


def test_laplacian_shot_passes_labels_between_neighbours():
    feat, target, labels = features(6, 4, 3)
    query = torch.randn(7, 4, dtype=torch.float64)
    learner = kshot.learners.laplacian_shot(nn.Flatten(), features=4, neighbours=2, smoothness=0.7, steps=3).double()
    z, means = F.normalize(query, dim=1).numpy(), prototypes(F.normalize(feat, dim=1), labels, 3).numpy()
    far = ((z[:, None] - means) ** 2).sum(2)
    graph = np.zeros((7, 7))
    for m in range(7):
        away = [(((z[m] - z[p]) ** 2).sum(), p) for p in range(7) if p != m]
        graph[m, [p for _, p in sorted(away)[:2]]] = 1
    logits = -far
    for _ in range(3):
        chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        logits = -far + 0.7 * graph @ chance
    state = learner.adapt(support_of(feat, target))
    torch.testing.assert_close(learner.predict(state, query), torch.from_numpy(logits))
    assert learner.predict(state, query[:1]).shape == (1, 3)
    torch.testing.assert_close(learner.predict(state, query[:1]), torch.from_numpy(-far[:1]))


def test_laplacian_shot_has_the_neighbours_of_its_authors():
    """Of the 3 nearest that scikit-learn finds their code drops the first, which is the query itself."""
    query = torch.randn(9, 4, dtype=torch.float64)
    graph = np.zeros((9, 9))
    for m, nearest in enumerate(NearestNeighbors(n_neighbors=3).fit(query.numpy()).kneighbors(query.numpy())[1]):
        graph[m, nearest[1:]] = 1
    head = kshot.learners.laplacian_shot(nn.Flatten(), features=4).head.head
    np.testing.assert_array_equal(head._neighbour_graph(query), graph)


def test_transductive_fine_tuning_minimises_support_loss_and_query_entropy():
    x, target, labels = features(9, 4, 3)
    query = torch.randn(5, 4, dtype=torch.float64)
    embedding = nn.Linear(4, 5).double()
    learner = kshot.learners.transductive_fine_tune(embedding, inner_lr=0.05, steps=3, entropy=0.4)
    body, means = copy.deepcopy(embedding), prototypes(embedding(x), labels, 3).detach()
    weight, bias = (2 * means).requires_grad_(), (-means.square().sum(1)).requires_grad_()
    optimizer = torch.optim.Adam([*body.parameters(), weight, bias], 0.05)

    def logits(inputs):
        return F.linear(body(inputs), weight, bias)

    for _ in range(3):
        optimizer.zero_grad()
        entropy = torch.distributions.Categorical(logits=logits(query)).entropy().mean()
        (F.cross_entropy(logits(x), labels) + 0.4 * entropy).backward()
        optimizer.step()
    with torch.no_grad():
        found = learner.predict(learner.adapt(support_of(x, target)), query)
    torch.testing.assert_close(found, logits(query))


@pytest.mark.parametrize("kind", ["laplacian_shot", "transductive_fine_tune"])
def test_an_evaluation_says_that_it_was_transductive(kind):
    source = kshot.sources.glyphs(ways=3, shots=1, queries=2)
    options = {"features": 784} if kind == "laplacian_shot" else {"inner_lr": 0.01, "steps": 1}
    embedding = nn.Flatten() if kind == "laplacian_shot" else nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    assert not kshot.evaluate(getattr(kshot.learners, kind)(embedding, **options), source, num_tasks=2).inductive


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: kshot.learners.laplacian_shot(nn.Flatten(), features=2, neighbours=0),
            "neighbours must be at least 1",
        ),
        (
            lambda: kshot.learners.laplacian_shot(nn.Flatten(), features=2, smoothness=-1.0),
            "smoothness must be at least 0",
        ),
        (lambda: kshot.learners.laplacian_shot(nn.Flatten(), features=2, steps=-1), "steps must be at least 0"),
        (
            lambda: kshot.learners.transductive_fine_tune(nn.Linear(1, 1), inner_lr=0.1, entropy=-1.0),
            "entropy must be at least",
        ),
        (lambda: kshot.learners.transductive_fine_tune(nn.Linear(1, 1), inner_lr=0.1, order=3), "order must be one of"),
        (lambda: kshot.learners.pmf(nn.Flatten(), inner_lr=0.1, shift=-1), "shift must be at least 0"),
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "learner",
    [
        *(pytest.param(f"{{kind: {kind}}}", marks=pytest.mark.slow) for kind in ("simpleshot", "frn")),
        "{kind: laplacian_shot}",
        "{kind: pmf, inner_lr: 0.01, steps: 1}",
    ],
)
def test_a_run_of_a_head_opens_again_as_it_was(learner, tmp_path):
    from rich.console import Console

    from kshot.app.run import run
    from kshot.app.spec import load_spec

    small = ["pretrain.steps=2", "pretrain.batch=8", "train={steps_per_round: 1, tasks_per_step: 1}", "budget.rounds=1"]
    small += [
        "evaluate={num_val_tasks: 2, num_test_tasks: 2, shots: []}",
        "baselines={names: []}",
        "model={kind: conv4, channels: 4}",
    ]
    spec = load_spec("glyphs", [f"learner={learner}", *small])
    report = run(spec, tmp_path / "run", console=Console(quiet=True))
    assert report["protocol"]["inductive"] == ("laplacian" not in learner)
    opened = kshot.load(tmp_path / "run").learner
    found = kshot.evaluate(opened, kshot.sources.glyphs(queries=15), num_tasks=2)
    assert found.metrics["loss"].mean == pytest.approx(report["test"]["loss"]["mean"], abs=1e-6)
    if "shot" in learner:
        assert opened.head.centre.abs().sum() > 0
