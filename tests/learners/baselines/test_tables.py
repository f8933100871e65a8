"""Baselines on grouped tables: the learner's contract, what each must recover, and data that are degenerate."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import kshot
from kshot import objectives
from kshot.data.dataset import ArrayDataset
from kshot.learners.baselines import tables
from kshot.learners.baselines.boosting import BoostedStatistics, Boosting, EncodedBoosting, out_of_fold
from kshot.learners.baselines.tables import PENALTIES, baselines
from kshot.tasks import GroupTasks
from kshot.tasks.read_log import watched
from kshot.testing.learner_checks import learner_checks
from kshot.types import Batch, Task, tree_leaves, tree_map

NUM_GROUPS, SIZE = 60, 24
VALUES = ["shrunken_mean", "pooled_ridge", "group_ridge", "shrunken_ridge", "mixed_model", "pooled_boosting"]
VALUES += ["pooled_boosting_residual"]
CLASSES = [name.replace("ridge", "logistic") for name in VALUES]
IGNORE_SUPPORT = ("pooled_ridge", "pooled_logistic")


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    """Fewer trees than by default, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ITERATIONS", (10, 40))
        yield


def grouped(objective, *, seed=0, outputs=1, slopes=0.5, shots=6):
    """Groups of rows with random intercepts and slopes; of classes if the objective classifies."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(NUM_GROUPS), SIZE)
    inputs = random.normal(size=(len(group), 3))
    inputs[:, 2] = inputs[:, 2] > 0
    effect = random.normal(size=(2, NUM_GROUPS, outputs)) * np.array([1.0, slopes])[:, None, None]
    targets = np.sin(inputs[:, :1]) + effect[0][group] + (0.7 + effect[1][group]) * inputs[:, 1:2]
    targets = targets + 0.3 * random.normal(size=targets.shape)
    if objective.classifies:
        targets = np.eye(3)[np.digitize(targets[:, 0], [-0.7, 0.7])]
    names = [f"group {number}" for number in range(NUM_GROUPS)]
    rows = {name: np.flatnonzero(group == number) for number, name in enumerate(names)}
    parts = {"train": names[:40], "val": names[40:50], "test": names[50:]}
    members = {split: {name: rows[name] for name in part} for split, part in parts.items()}
    return GroupTasks(ArrayDataset((inputs, targets)), members, objective=objective, shots=shots, queries=10, seed=seed)


SOURCES = {
    "mse": grouped(objectives.mse),
    "gaussian": grouped(objectives.gaussian, outputs=2),
    "classes": grouped(objectives.shared_classification),
}
FAST = [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "mse")) for kind in SOURCES]
"""Squared error is slow: it is the mean of a Gaussian, which is tested with two outputs."""
FITTED: dict[tuple[str, str], list[kshot.Learner]] = {}


def candidates(kind, name):
    if (kind, name) not in FITTED:
        FITTED[kind, name] = baselines(SOURCES[kind])[name]()
    return FITTED[kind, name]


def task_of(kind):
    def make_task(*, ways, shots, seed, dtype):
        task = SOURCES[kind].task("test", seed)
        return tree_map(lambda leaf: leaf.to(dtype), task)

    return make_task


KINDS = [(kind, name) for kind in SOURCES for name in (CLASSES if kind == "classes" else VALUES)]
FAST_KINDS = [pytest.param(*each, marks=[pytest.mark.slow] * (each[0] == "mse")) for each in KINDS]


@pytest.mark.parametrize(("kind", "name"), FAST_KINDS)
def test_it_keeps_the_contract_of_learners(kind, name):
    learner = candidates(kind, name)[-1]
    for check_name, check in learner_checks(lambda ways: learner, make_task=task_of(kind)):
        if not (check_name == "adapting" and name in IGNORE_SUPPORT):
            check()


def test_every_method_has_its_name():
    assert list(baselines(SOURCES["mse"])) == VALUES
    assert list(baselines(SOURCES["classes"])) == CLASSES
    assert list(baselines(watched(SOURCES["gaussian"]))) == VALUES


def loss(learner, source, split="test", num_tasks=30):
    return kshot.evaluate(learner, source, split=split, num_tasks=num_tasks, audit=False).metrics["loss"].mean


def best(kind, name):
    losses = [loss(learner, SOURCES[kind], "val", 15) for learner in candidates(kind, name)]
    return candidates(kind, name)[int(np.argmin(losses))]


@pytest.mark.parametrize("kind", FAST)
def test_a_mixed_model_beats_no_pooling_and_complete_pooling(kind):
    linear = "logistic" if kind == "classes" else "ridge"
    partial = loss(best(kind, "mixed_model"), SOURCES[kind])
    for other in ("shrunken_mean", f"pooled_{linear}", f"group_{linear}"):
        assert partial < loss(best(kind, other), SOURCES[kind]), other


@pytest.mark.parametrize("kind", FAST)
def test_boosting_uses_the_support(kind):
    for name in ("pooled_boosting", "pooled_boosting_residual"):
        learner, source, unhelpful = best(kind, name), SOURCES[kind], 0.0
        tasks = [source.task("test", number) for number in range(40)]
        with torch.no_grad():
            own = sum(float(learner(task)) for task in tasks)
            unhelpful = sum(float(learner(Task(a.support, b.query))) for a, b in zip(tasks, tasks[1:] + tasks[:1]))
        assert own < 0.8 * unhelpful


@pytest.mark.slow
def test_standard_deviations_are_calibrated():
    """95 % of the targets are in the interval, up to the variation between 10 groups."""
    for name in VALUES:
        result = kshot.evaluate(best("gaussian", name), SOURCES["gaussian"], num_tasks=100, audit=False)
        assert 0.85 < result.metrics["coverage"].mean < 0.99, name


def test_group_ridge_is_that_of_scikit_learn():
    learner, source = candidates("mse", "group_ridge")[1], SOURCES["mse"]
    task = source.task("test", 0)
    scale = learner.basis.fixed
    model = Ridge(PENALTIES[1]).fit(scale(task.support.inputs)[:, 1:], task.support.targets)
    expected = model.predict(scale(task.query.inputs)[:, 1:]).reshape(-1, 1)
    prediction = learner.predict(learner.adapt(task.support), task.query.inputs)
    np.testing.assert_allclose(prediction, expected, atol=1e-4)


def test_a_mean_is_shrunken_by_the_ratio_of_variances():
    (learner,) = candidates("mse", "shrunken_mean")
    support = SOURCES["mse"].task("test", 1).support
    (model,) = learner.models
    between, within = float(model.covariance), float(model.noise)
    share = between / (between + within / len(support.weight))
    pooled = float(model.coefficients)
    expected = pooled + share * (float(support.targets.mean()) - pooled)
    prediction = learner.predict(learner.adapt(support), support.inputs[:1])
    assert float(prediction) == pytest.approx(expected, abs=1e-4)
    assert 0.5 < share < 1


@pytest.mark.parametrize(("kind", "name"), FAST_KINDS)
def test_degenerate_support_sets_give_finite_predictions(kind, name):
    support, query = SOURCES[kind].task("test", 0)
    none = support._replace(weight=torch.zeros_like(support.weight))
    one = support.rows(slice(0, 1))
    same = support._replace(
        inputs=torch.ones_like(support.inputs), targets=support.targets[:1].expand_as(support.targets)
    )
    far = support._replace(inputs=support.inputs * 1e9)
    for learner in candidates(kind, name):
        for given in (none, one, same, far):
            prediction = learner.predict(learner.adapt(given), query.inputs)
            assert all(torch.isfinite(leaf).all() for leaf in tree_leaves(prediction))
        assert len(tree_leaves(learner.predict(learner.adapt(one), query.inputs[:0]))[0]) == 0


@pytest.mark.parametrize(
    "objective",
    [pytest.param(objectives.mse, marks=pytest.mark.slow), objectives.gaussian, objectives.shared_classification],
)
@pytest.mark.parametrize("targets", ["constant", "two groups"])
def test_degenerate_training_sets_give_finite_predictions(objective, targets):
    random = np.random.default_rng(0)
    inputs = np.concatenate([random.normal(size=(40, 1)), np.full((40, 2), 7.0)], 1)  # constant inputs
    values = np.ones((40, 1)) if targets == "constant" else random.normal(size=(40, 1))
    if objective.classifies:
        values = np.eye(3)[np.zeros(40, int) if targets == "constant" else (values[:, 0] > 0).astype(int)]
    members = {"train": {"a": range(20), "b": range(20, 30)}, "test": {"c": range(30, 40)}}
    source = GroupTasks(ArrayDataset((inputs, values)), members, objective=objective, shots=4, queries=3)
    task = source.task("test", 0)
    for name, fit in baselines(source).items():
        for learner in fit():
            assert torch.isfinite(learner(task)), name


def test_sources_of_another_kind_have_no_baselines():
    assert baselines(kshot.sources.sinusoids()) == {}
    assert baselines(kshot.sources.tabular_priors()) == {}
    images = ArrayDataset((np.zeros((20, 1, 4, 4)), np.zeros((20, 1))))
    groups = {"train": {"a": range(10), "b": range(10, 20)}}
    assert baselines(GroupTasks(images, groups, objective=objectives.mse, shots=2, queries=2)) == {}


def test_only_the_training_split_is_read():
    source = SOURCES["mse"]
    inputs, targets = (leaf.numpy().copy() for leaf in source.examples.take(np.arange(NUM_GROUPS * SIZE)))
    held = np.concatenate([rows for split in ("val", "test") for rows in source.members(split).values()])
    inputs[held], targets[held] = np.nan, np.nan
    members = {split: source.members(split) for split in ("train", "val", "test")}
    spoiled = GroupTasks(ArrayDataset((inputs, targets)), members, objective=objectives.mse, shots=6, queries=10)
    task = source.task("test", 0)
    for name, fit in baselines(spoiled).items():
        own = candidates("mse", name)[-1]
        torch.testing.assert_close(fit()[-1](task), own(task), msg=name)


def test_more_than_32_words_are_target_encoded(tmp_path):
    random = np.random.default_rng(0)
    effect = dict(zip([f"word {number}" for number in range(80)], random.normal(size=80) * 3))
    lines = ["shop,product,price,sales"]
    for shop in range(40):
        level = random.normal()
        for product in random.choice(list(effect), 20):
            price = random.normal()
            lines.append(
                f"shop {shop},{product},{price:.3f},{level + effect[product] - price + 0.3 * random.normal():.3f}"
            )
    path = tmp_path / "shops.csv"
    path.write_text("\n".join(lines))
    source = kshot.sources.table(path, group="shop", target="sales", shots=5, queries=10)
    methods = baselines(source)
    assert list(methods) == [*VALUES, "target_encoded_boosting"]
    encoded, plain = (
        min(loss(learner, source) for learner in methods[name]())
        for name in ("target_encoded_boosting", "pooled_boosting_residual")
    )
    assert encoded < 0.7 * plain


def test_words_are_encoded_by_other_rows():
    """A word that says nothing: rows that were encoded by their own targets would seem predictable."""
    random = np.random.default_rng(1)
    codes = torch.from_numpy(random.choice([-1.0, 1.0], (60, 8)))[random.integers(60, size=200)]
    targets = torch.from_numpy(random.normal(size=(200, 1)))
    model = EncodedBoosting(codes, targets, [range(8)], classifies=False, max_iter=40)
    other = torch.from_numpy(random.normal(size=(200, 1)))
    assert float((model(codes) - other).square().mean()) < 1.3 * float(other.square().mean())
    unknown = model(torch.zeros(3, 8).double())
    assert torch.isfinite(unknown).all()


def test_held_out_predictions_are_of_models_that_never_saw_the_group():
    group = np.repeat(np.arange(10), 4)
    level = torch.from_numpy(group.astype(float))[:, None]
    seen = out_of_fold(lambda inputs, targets: lambda rows: torch.isin(rows, targets).double(), level, level, group)
    assert seen.sum() == 0


def test_a_class_without_training_rows_has_a_small_probability():
    inputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.eye(3)[(inputs[:, 0] > 0).long() * 2]
    log_p = Boosting(inputs, targets, classifies=True, max_iter=20)(inputs)
    assert (log_p.argmax(1) != 1).all()
    assert torch.isfinite(log_p).all()


def test_deviations_reach_levels_beyond_the_training_groups():
    source = SOURCES["mse"]
    task = source.task("test", 0)
    far = Batch(task.support.inputs, task.support.targets + 100, task.support.weight)
    errors = {}
    for form in ("levels", "deviations"):
        learner = BoostedStatistics(source, form=form, max_iter=40)
        prediction = learner.predict(learner.adapt(far), task.query.inputs)
        errors[form] = float((prediction - task.query.targets - 100).abs().mean())
    assert errors["deviations"] < 20 < 80 < errors["levels"]


@pytest.fixture(scope="module")
def in_time():
    """Groups whose residuals are an AR(1) process."""
    random, count = np.random.default_rng(0), 60
    residual = np.zeros((count, SIZE))
    for step in range(1, SIZE):
        residual[:, step] = 0.8 * residual[:, step - 1] + 0.6 * random.normal(size=count)
    inputs = random.normal(size=(count * SIZE, 2))
    targets = inputs[:, :1] + residual.reshape(-1, 1) + random.normal(size=(count, 1)).repeat(SIZE, 0)
    rows = {f"group {number}": range(number * SIZE, (number + 1) * SIZE) for number in range(count)}
    parts = {"train": list(rows)[:36], "val": list(rows)[36:48], "test": list(rows)[48:]}
    members = {split: {name: rows[name] for name in part} for split, part in parts.items()}

    def source(order, objective=objectives.mse):
        examples = ArrayDataset((inputs, targets))
        return GroupTasks(examples, members, objective=objective, shots=5, queries=2, order=order)

    return source


@pytest.mark.parametrize("objective", [objectives.mse, objectives.gaussian])
def test_in_order_of_time_the_latest_residual_is_carried_forward(in_time, objective):
    assert "mixed_model_ar1" not in baselines(in_time("random"))
    source = in_time("given", objective)
    found = baselines(source)
    plain, carried = found["mixed_model"](), found["mixed_model_ar1"]()
    assert len(carried) == 4 * len(plain)
    assert min(loss(each, source) for each in carried) < min(loss(each, source) for each in plain) - 0.05
    support, query = source.task("test", 0)
    padded = Batch(*(torch.cat([leaf, leaf[:2]]) for leaf in support[:2]), torch.tensor([1.0] * 5 + [0.0] * 2))
    state = plain[0].adapt(support)
    predictions = [plain[0].predict(state, inputs) for inputs in (support.inputs, query.inputs)]
    at_support, at_query = (each["mean"] if isinstance(each, dict) else each for each in predictions)
    expected = at_query + 0.25 * (support.targets[-1] - at_support[-1])
    for batch in (support, padded):
        prediction = carried[0].predict(carried[0].adapt(batch), query.inputs)
        mean = prediction["mean"] if isinstance(prediction, dict) else prediction
        torch.testing.assert_close(mean, expected)


def test_the_latest_residual_keeps_the_contract(in_time):
    source = in_time("given")
    learner = baselines(source)["mixed_model_ar1"]()[0]

    def make_task(*, ways, shots, seed, dtype):
        return tree_map(lambda leaf: leaf.to(dtype), source.task("test", seed))

    for _, check in learner_checks(lambda ways: learner, make_task=make_task):
        check()
    empty = source.task("test", 0).support._replace(weight=torch.zeros(5))
    assert torch.isfinite(learner.predict(learner.adapt(empty), source.task("test", 0).query.inputs)).all()
