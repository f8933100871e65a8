"""Neural processes, their tasks and their objective, against references of other make."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ExpSineSquared, Matern

import kshot
from kshot import Batch, objectives
from kshot.learners import SupportMean
from kshot.learners.amortised.attention import Attention
from kshot.learners.heads.distances import log_weight
from kshot.models import Spread
from kshot.sources import gaussian_processes, sinusoids
from kshot.types import one_hot, unstack


def row(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gaussian_metrics_are_those_of_scipy():
    mean, std, targets, weight = row(0, 20, 2), row(1, 20, 2).exp(), row(2, 20, 2), torch.ones(20)
    weight[3] = 0
    batch, kept = Batch(torch.zeros(20, 1), targets, weight), weight.bool().numpy()
    prediction = {"mean": mean, "std": std}
    exact = norm(mean.double().numpy()[kept], std.double().numpy()[kept])
    y = targets.double().numpy()[kept]
    metrics = {name: float(value) for name, value in objectives.gaussian.metrics(prediction, batch).items()}
    assert metrics["log_likelihood"] == pytest.approx(exact.logpdf(y).mean(), rel=1e-5)
    assert metrics["log_likelihood"] == -float(objectives.gaussian.loss(prediction, batch))
    inside = (exact.ppf(0.025) <= y) & (y <= exact.ppf(0.975))
    assert metrics["coverage"] == pytest.approx(inside.mean())
    # the score by its definition: the squared distance of the distribution function from the step at what came
    grid = np.linspace(-60, 60, 200_001)[:, None, None]
    step = exact.cdf(grid) - (grid >= y)
    assert metrics["crps"] == pytest.approx(float(np.trapezoid(step**2, grid[:, 0, 0], axis=0).mean()), rel=1e-3)


def test_a_prediction_that_is_no_gaussian_is_told_apart():
    batch = Batch.of(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="models.Spread"):
        objectives.gaussian.loss(torch.zeros(3, 1), batch)
    with pytest.raises(ValueError, match="three must agree"):
        objectives.gaussian.loss({"mean": torch.zeros(3), "std": torch.ones(3)}, batch)
    assert objectives.from_name(objectives.name_of(objectives.gaussian)) is objectives.gaussian


KERNELS = {
    "rbf": lambda scale, period: RBF(scale),
    "matern52": lambda scale, period: Matern(scale, nu=2.5),
    "periodic": lambda scale, period: ExpSineSquared(scale, period),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_posterior_is_that_of_scikit_learn(kernel):
    source = gaussian_processes(kernel=kernel, length_scale=(0.5, 0.5), period=(1.3, 1.3), noise=0.1, shots=(3, 12))
    for index in range(4):
        (x, y, weight), query = source.task("test", index)
        seen = weight > 0
        reference = GaussianProcessRegressor(KERNELS[kernel](0.5, 1.3), alpha=0.1**2, optimizer=None)
        reference.fit(x[seen].double().numpy(), y[seen, 0].double().numpy())
        mean, std = reference.predict(query.inputs.double().numpy(), return_std=True)
        found = source.posterior("test", index)
        np.testing.assert_allclose(found["mean"][:, 0], mean, atol=1e-4)
        np.testing.assert_allclose(found["std"][:, 0], np.sqrt(std**2 + 0.1**2), atol=1e-4)


def test_functions_have_the_covariance_of_their_kernel():
    source = gaussian_processes(length_scale=(0.7, 0.7), noise=0.1, shots=1, queries=1)
    (x, y, _), query = source.stack("train", range(20_000))
    apart = (x - query.inputs)[:, 0, 0].abs()
    product = (y * query.targets)[:, 0, 0]
    for low in (0.0, 0.5, 1.0, 2.0):
        here = (apart >= low) & (apart < low + 0.1)
        expected = np.exp(-((low + 0.05) ** 2) / (2 * 0.7**2))
        error = 4 * float(product[here].std()) / here.sum() ** 0.5
        assert abs(float(product[here].mean()) - expected) < error + 0.02
    assert float(y.var()) == pytest.approx(1 + 0.1**2, rel=0.05)


def test_tasks_are_a_function_of_their_index_and_padding_is_of_weight_zero():
    source = gaussian_processes(shots=(2, 9), queries=4, seed=3)
    tasks = source.stack("val", [5, 2, 40])
    for index, task in zip([5, 2, 40], unstack(tasks)):
        alone = source.task("val", index)
        for a, b in zip((*task.support, *task.query), (*alone.support, *alone.query)):
            torch.testing.assert_close(a, b)
    counts = source.stack("train", range(200)).support.weight.sum(1)
    assert set(counts.tolist()) == set(range(2, 10))


def test_no_learner_is_likelier_than_the_posterior():
    source = gaussian_processes()
    mean = SupportMean(objectives.gaussian)
    scores = {"oracle": 0.0, "mean": 0.0}
    for index in range(50):
        task = source.task("test", index)
        guesses = {"oracle": source.posterior("test", index)}
        guesses["mean"] = mean.predict(mean.adapt(task.support), task.query.inputs)
        for name, guess in guesses.items():
            scores[name] += float(source.objective.metrics(guess, task.query)["log_likelihood"]) / 50
    assert scores["oracle"] > scores["mean"] + 0.5


def test_noise_leaves_the_sinusoids_what_they_were():
    still, noisy = (
        sinusoids(shots=500).task("train", 0),
        sinusoids(shots=500, noise=0.3, target_type="distribution").task("train", 0),
    )
    assert torch.equal(still.support.inputs, noisy.support.inputs)
    assert float((still.support.targets - noisy.support.targets).std()) == pytest.approx(0.3, rel=0.1)


def test_attention_is_that_of_torch_and_a_weight_is_a_count():
    ours, reference = Attention(8, 2), torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in (ours.query, ours.key, ours.value)]))
        reference.out_proj.weight.copy_(ours.out.weight)
    rows, support = row(0, 5, 8), row(1, 7, 8)
    weight = torch.tensor([1.0, 0, 2, 1, 1, 1, 1])
    found = ours(rows, ours.memory(support), log_weight(weight))
    repeated = torch.repeat_interleave(support, weight.long(), 0)
    torch.testing.assert_close(found, reference(rows[None], repeated[None], repeated[None])[0][0])


def test_a_conditional_process_is_deep_sets():
    learner = kshot.learners.cnp(2, 1, width=8, depth=2)
    x, y, weight = row(0, 6, 2), row(1, 6, 1), torch.tensor([1.0, 1, 0.5, 2, 0, 1])
    state = learner.adapt(Batch(x, y, weight))
    codes = [learner.encoder(torch.cat([x[i], y[i]])) * weight[i] for i in range(6)]
    torch.testing.assert_close(state["summary"], sum(codes) / weight.sum())
    raw = learner.decoder(torch.cat([x[0], state["summary"]]))
    found = learner.predict(state, x[:1])
    torch.testing.assert_close(found["mean"][0, 0], raw[0])
    torch.testing.assert_close(found["std"][0, 0], 0.01 + 0.99 * raw[1].exp().log1p())


def test_a_task_adaptive_process_modulates_its_decoder_by_the_tasks_that_it_is_like():
    learner = kshot.learners.tanp(2, 1, width=8, depth=2, clusters=3)
    x, y, weight = row(0, 6, 2), row(1, 6, 1), torch.tensor([1.0, 1, 0.5, 2, 0, 1])
    state = learner.adapt(Batch(x, y, weight))
    own = sum(learner.task_encoder(torch.cat([x[i], y[i]])) * weight[i] for i in range(6)) / weight.sum()
    near = torch.stack([1 / (1 + (own - centre).square().sum()) for centre in learner.clusters])
    torch.testing.assert_close(state["context"], own + (near[:, None] * learner.clusters).sum(0) / near.sum())
    hidden = torch.cat([x[0], state["summary"]])
    layers, modulations = learner.decoder.model, learner.decoder.modulations
    for layer, modulation in zip((layers[0], layers[2]), modulations):
        scale, shift = modulation(state["context"]).chunk(2)
        hidden = torch.nn.functional.gelu((1 + scale) * layer(hidden) + shift)
    torch.testing.assert_close(learner.predict(state, x[:1])["mean"][0, 0], layers[4](hidden)[0])


def mixed(attention, query, key, value):
    """PyTorch's attention of all heads with the weights of ours; rows (m, d) and (n, d)."""
    heads = [part.unflatten(1, (attention.heads, -1)).transpose(0, 1) for part in (query, key, value)]
    read = torch.nn.functional.scaled_dot_product_attention(*heads)
    return attention.out(read.transpose(0, 1).flatten(1))


def test_an_attentive_process_reads_the_support_by_attention_and_its_mean():
    learner = kshot.learners.attentive_np(2, 1, width=8, depth=2, heads=2).double()
    x, y, asked = (row(seed, *shape).double() for seed, shape in ((0, (6, 2)), (1, (6, 1)), (2, (4, 2))))
    part, codes = learner.attention, learner.encoder(torch.cat([x, y], 1))
    query, key = part.query(learner.input_encoder(asked)), part.key(learner.input_encoder(x))
    read = mixed(part, query, key, part.value(codes))
    raw = learner.decoder(torch.cat([asked, read, codes.mean(0).expand(4, -1)], 1))
    found = learner.predict(learner.adapt(Batch(x, y, torch.ones(6).double())), asked)
    torch.testing.assert_close(found, {"mean": raw[:, :1], "std": 0.01 + 0.99 * raw[:, 1:].exp().log1p()})


def test_a_transformer_process_is_a_transformer_in_which_all_tokens_read_those_of_the_support():
    learner = kshot.learners.tnp_d(2, 1, width=8, layers=2, heads=2).double()
    x, y, asked = (row(seed, *shape).double() for seed, shape in ((0, (6, 2)), (1, (6, 1)), (2, (4, 2))))
    known = torch.cat([x, y, torch.ones(6, 1).double()], 1)
    tokens = learner.point(torch.cat([known, torch.cat([asked, torch.zeros(4, 2).double()], 1)]))
    for block in learner.blocks:
        normed, part = block.before(tokens), block.attention
        tokens = tokens + mixed(part, part.query(normed), part.key(normed[:6]), part.value(normed[:6]))
        tokens = tokens + block.mixed(block.between(tokens))
    raw = learner.out(tokens[6:])
    found = learner.predict(learner.adapt(Batch(x, y, torch.ones(6).double())), asked)
    torch.testing.assert_close(found, {"mean": raw[:, :1], "std": 0.01 + 0.99 * raw[:, 1:].exp().log1p()})


PROCESSES = {"cnp": {}, "tanp": {"clusters": 2}, "attentive_np": {"heads": 2}, "tnp_d": {"heads": 2, "layers": 1}}


@pytest.mark.parametrize(("kind", "target_type"), [*((kind, "ordinal") for kind in PROCESSES), ("tanp", "regression")])
def test_ratings_are_read_through_a_model_of_them(kind, target_type, tmp_path):
    random = np.random.default_rng(0)
    rows = [f"{u},{i},{1 + 2 * (u % 2 + i % 2)}" for u in range(99) for i in random.permutation(12)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,rating", *rows]))
    source = kshot.sources.ratings(tmp_path / "log.csv", target_type=target_type, shots=5, queries=5)
    model = kshot.models.rating_mlp(len(source.preprocessor.items), 0, None, embedding=8, hidden=(16,))
    outputs = source.task("train", 0).support.targets.shape[1]
    learner = getattr(kshot.learners, kind)(
        model.width, outputs, width=32, depth=1, embedding=model, objective=source.objective, **PROCESSES[kind]
    )
    kshot.fit(learner, source, steps=100, tasks_per_step=16, outer_lr=4e-3, mode="vmap")
    found = kshot.evaluate(learner, source, num_tasks=30)
    assert found.trusted
    assert found.metrics["mae"].mean < 0.5, "half of the users rate 2 more: 1 off for who does not tell which"


def test_inputs_of_several_parts_need_an_embedding_and_classes_must_be_shared():
    with pytest.raises(ValueError, match=r"several parts \(item\) need an embedding"):
        kshot.learners.cnp(1, 1).adapt(Batch.of({"item": torch.zeros(3, 1)}, torch.zeros(3, 1)))
    with pytest.raises(ValueError, match="for task-specific classes use a learner that compares"):
        kshot.learners.tnp_d(2, 5, objective=objectives.classification)


@pytest.mark.parametrize(
    "make",
    [kshot.learners.cnp, kshot.learners.tanp, kshot.learners.attentive_np, kshot.learners.tnp_d],
    ids=["cnp", "tanp", "attentive_np", "tnp_d"],
)
def test_what_fits_no_input_is_told(make):
    learner = make(2, 1, width=8, **({} if make in (kshot.learners.cnp, kshot.learners.tanp) else {"heads": 2}))
    with pytest.raises(ValueError, match="takes 2 inputs"):
        learner.adapt(Batch.of(torch.zeros(3, 1), torch.zeros(3, 1)))
    with pytest.raises(ValueError, match=r"targets must be \(n, 1\)"):
        learner.adapt(Batch.of(torch.zeros(3, 2), torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="min_std"):
        make(2, 1, width=8, min_std=0.0)


def test_training_brings_a_neural_process_near_the_posterior():
    source = gaussian_processes(length_scale=(1.0, 1.0), noise=0.2, shots=(5, 10), queries=10)
    learner = kshot.learners.attentive_np(1, 1, width=32, depth=1, heads=4)
    before = kshot.evaluate(learner, source, num_tasks=50, audit=False).metrics["log_likelihood"].mean
    kshot.fit(learner, source, steps=300, tasks_per_step=16, outer_lr=3e-3, mode="vmap")
    after = kshot.evaluate(learner, source, num_tasks=50, audit=False).metrics["log_likelihood"].mean
    best = np.mean(
        [
            float(
                source.objective.metrics(source.posterior("test", index), source.task("test", index).query)[
                    "log_likelihood"
                ]
            )
            for index in range(50)
        ]
    )
    assert before < after < best
    assert best - after < 0.5 * (best - before)


def test_any_model_predicts_a_spread_through_its_last_layer():
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2), Spread())
    learner = kshot.maml(model, inner_lr=0.01, steps=2, objective=objectives.gaussian)
    result = kshot.evaluate(learner, gaussian_processes(), num_tasks=3)
    assert set(result.metrics) == {"loss", "log_likelihood", "mse", "crps", "coverage"}
    with pytest.raises(ValueError, match="even number"):
        Spread()(torch.zeros(1, 3))


def test_mahalanobis_is_the_distance_under_each_class_own_covariance():
    head, labels = kshot.learners.Mahalanobis(ridge=0.5), torch.tensor([0, 0, 0, 1, 1, 2])
    features, asked = row(0, 6, 3).double(), row(1, 4, 3).double()
    weight = torch.ones(6, dtype=torch.float64)
    state = head.fit(features, one_hot(labels, 4, torch.float64), weight)
    found = head.predict(state, asked)
    whole = np.cov(features.numpy().T, bias=True)
    for way, count in enumerate((3, 2, 1)):
        own = features[labels == way].numpy()
        spread = np.cov(own.T, bias=True) if count > 1 else np.zeros((3, 3))
        trust = count / (count + 1)
        inverse = np.linalg.inv(trust * spread + (1 - trust) * whole + 0.5 * np.eye(3))
        off = asked.numpy() - own.mean(0)
        np.testing.assert_allclose(found[:, way], -0.5 * np.einsum("md,de,me->m", off, inverse, off))
    assert (found.softmax(1)[:, 3] == 0).all()


def test_cnaps_without_a_context_is_a_protonet():
    backbone = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    learner = kshot.learners.cnaps(backbone, torch.nn.Linear(3, 6), film=["0"], task_dim=6, head="prototypes")
    batch = Batch.of(row(0, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), ways=3)
    plain = kshot.protonet(backbone)
    expected = plain.predict(plain.adapt(batch), batch.inputs)
    assert not torch.allclose(learner.predict(learner.adapt(batch), batch.inputs), expected)
    for parameter in learner.backbone.modulations.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(learner.predict(learner.adapt(batch), batch.inputs), expected)
    with pytest.raises(ValueError, match="no layer"):
        kshot.learners.cnaps(backbone, torch.nn.Linear(3, 6), film=["7"], task_dim=6)


def test_cnaps_modulates_by_the_mean_code_of_the_support():
    backbone = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5)).double()
    encoder = torch.nn.Linear(3, 6).double()
    learner = kshot.learners.cnaps(backbone, encoder, film=["0"], task_dim=6, head="prototypes").double()
    x, labels = row(0, 6, 3).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    scale, shift = learner.backbone.modulations[0](learner.generator(encoder(x).mean(0))).chunk(2)
    features = backbone[2](((1 + scale) * backbone[0](x) + shift).relu())
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    support = Batch(x, one_hot(labels, 3, torch.float64), torch.ones(6).double())
    found = learner.predict(learner.adapt(support), x)
    torch.testing.assert_close(found, -torch.cdist(features, means).square())


def test_cnaps_learns_how_tasknorm_blends():
    """In the backbone and in the encoder; both norms are meta-parameters."""
    norm = lambda: torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6))  # noqa: E731
    learner = kshot.learners.cnaps(norm(), norm(), film=["0"], task_dim=6, batchnorm="tasknorm")
    batch = Batch.of(row(0, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), ways=3)
    learner(kshot.Task(batch, batch)).backward()
    blends = [p for name, p in learner.named_parameters() if name.startswith(("task_norm.", "code_norm."))]
    assert len(blends) > 1
    assert all(p.grad is not None for p in blends)
