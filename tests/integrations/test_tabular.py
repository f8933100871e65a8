"""The estimators of one table behave as scikit-learn's, and give what the learner within them does."""

import inspect
import pickle
import pickletools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PowerTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import kshot
from kshot import objectives
from kshot.files import DamagedFile
from kshot.integrations.sklearn import TabularClassifier, TabularRegressor, tabular
from kshot.integrations.sklearn.encoder import MOST_LEVELS, Encoder
from kshot.integrations.sklearn.weights import load_weights, packaged, save_weights
from kshot.learners import prior_fitted
from kshot.training.checkpoint import save_state

WEIGHTED = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 is left out whole, of two rows only one"
}
SMALL = {"cell_width": 8, "width": 16, "heads": 2, "cell_layers": 1, "layers": 1}


def network(objective=objectives.classification, **sizes):
    """A learner whose every weight has a part in its predictions, as after training."""
    torch.manual_seed(0)
    learner = prior_fitted(objective=objective, **SMALL | sizes)
    for layer in (learner.fit_weights, learner.correction):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return learner


def halves(load):
    x, y = load(return_X_y=True)
    return train_test_split(
        x, y, train_size=90, test_size=50, random_state=0, stratify=y if len(np.unique(y)) < 5 else None
    )


def logits(learner, x, y, ways, queries):
    """The prediction of the learner itself."""
    with torch.no_grad():
        targets = torch.eye(ways)[torch.from_numpy(y)]
        state = learner.adapt(kshot.Batch.of(torch.from_numpy(x).float(), targets))
        return learner.predict(state, torch.from_numpy(queries).float()).double().numpy()


@pytest.mark.parametrize("ensemble", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", [TabularClassifier, TabularRegressor])
def test_all_checks_of_scikit_learn_pass(estimator, ensemble):
    results = check_estimator(estimator(ensemble=ensemble), on_skip=None, expected_failed_checks=WEIGHTED)
    not_passed = {each["check_name"] for each in results if each["status"] != "passed"}
    assert not_passed <= {"check_array_api_input", *WEIGHTED}


def test_one_member_predicts_what_the_learner_does():
    x, queries, y, _ = halves(load_wine)
    learner = network()
    classifier = TabularClassifier(ensemble=1, learner=learner).fit(x, y)
    assert classifier.predict_proba(queries) == pytest.approx(softmax(logits(learner, x, y, 3, queries), 1), abs=1e-4)
    x, queries, y, _ = halves(load_diabetes)
    learner = network(objectives.gaussian)
    mean, std = TabularRegressor(ensemble=1, learner=learner).fit(x, y).predict(queries, return_std=True)
    with torch.no_grad():
        state = learner.adapt(kshot.Batch.of(torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]))
        expected = learner.predict(state, torch.from_numpy(queries).float())
    assert mean == pytest.approx(expected["mean"][:, 0].numpy(), rel=1e-3)
    assert std == pytest.approx(expected["std"][:, 0].numpy(), rel=1e-3)


def test_an_ensemble_is_the_geometric_mean_over_transforms_and_orders_of_classes():
    x, queries, y, _ = halves(load_wine)
    learner = network()
    scaler = StandardScaler().fit(x)
    power = make_pipeline(scaler, PowerTransformer()).fit(x)
    members = []
    for shift in (0, 1):
        for transform in (scaler, power):
            ours = logits(learner, transform.transform(x), (y + shift) % 3, 3, transform.transform(queries))
            members.append(np.roll(softmax(ours, 1), -shift, 1))
    expected = np.exp(np.mean(np.log(members), 0))
    actual = TabularClassifier(learner=learner).fit(x, y).predict_proba(queries)
    assert actual == pytest.approx(expected / expected.sum(1, keepdims=True), abs=1e-4)
    assert np.abs(members[0] - members[3]).max() > 0.01


def test_an_ensemble_of_regressions_is_the_mixture_of_their_distributions():
    x, queries, y, _ = halves(load_diabetes)
    learner = network(objectives.gaussian)
    plain, negated = (TabularRegressor(ensemble=2, learner=learner).fit(x, sign * y) for sign in (1, -1))
    parts = [member * [1, 1] for _, member in plain._predicted(queries)]
    parts += [member * [-1, 1] for _, member in negated._predicted(queries)]
    means, stds = (y.std() * np.array(parts)[..., column] for column in (0, 1))
    mean, std = TabularRegressor(ensemble=4, learner=learner).fit(x, y).predict(queries, return_std=True)
    assert mean == pytest.approx(y.mean() + means.mean(0))
    assert std**2 == pytest.approx((stds**2 + means**2).mean(0) - means.mean(0) ** 2)


def table(rows=80, seed=0):
    """Columns, of which `kind`, and whether `size` is missing, determine the class."""
    random = np.random.default_rng(seed)
    kind = random.choice(["red", "green", "blue"], rows)
    missing = random.random(rows) < 0.5
    size = np.where(missing, np.nan, random.normal(size=rows))
    columns = {"kind": kind, "size": size, "noise": random.normal(size=rows), "flag": random.random(rows) < 0.5}
    return columns, np.where(kind == "red", "warm", np.where(missing, "unknown", "cold"))


@pytest.mark.parametrize("library", ["pandas", "pandas categories", "polars", "array", "lists"])
def test_categories_booleans_and_missing_values_may_come_in_any_table(library):
    def made(columns):
        pandas = pytest.importorskip("pandas")
        if library == "polars":
            return pl.DataFrame(columns).with_columns(pl.col("size").fill_nan(None))
        frame = pandas.DataFrame(columns)
        if library == "pandas categories":
            return frame.astype({"kind": "category"})
        return {"pandas": frame, "array": frame.to_numpy(), "lists": frame.to_numpy().tolist()}[library]

    (columns, y), (queries, expected) = table(), table(seed=1)
    classifier = TabularClassifier(ensemble=2).fit(made(columns), y)
    assert classifier.n_features_in_ == 4
    if library not in ("array", "lists"):
        assert classifier.feature_names_in_.tolist() == list(columns)
    assert classifier.score(made(queries), expected) > 0.9
    regressor = TabularRegressor(ensemble=2).fit(made(columns), 10.0 * (y == "warm"))
    assert np.mean((regressor.predict(made(queries)) - 10 * (expected == "warm")) ** 2) < 1


def test_the_encoder_gives_each_frequent_level_a_feature_and_of_many_levels_how_often_they_occur():
    shops = np.array([f"shop {number}" for number in range(20) for _ in range(2 + number)], object)
    encode = Encoder({"shop": shops})
    features = encode({"shop": np.array(["shop 19", "shop 0", "shop 4", None, "new"], object)})
    assert features.shape == (5, MOST_LEVELS + 1)
    assert features[:, :-1].sum(1).tolist() == [1, 0, 1, 0, 0]
    assert features[:, -1] == pytest.approx(np.log([22, 3, 7, 1, 1]))
    names = Encoder({"name": np.array([f"name {number}" for number in range(20)], object), "x": np.arange(20.0)})
    assert names({"name": np.array(["name 3"], object), "x": np.array([5.0])}).tolist() == [[5.0]]


def test_numbers_that_are_missing_are_the_median_and_marked():
    number = np.array([1.0, 2.0, np.nan, 9.0])
    date = np.array(["2020-01-01", "2020-01-03", "NaT", "2020-01-02"], "datetime64[D]")
    encode = Encoder({"number": number, "date": date, "constant": np.full(4, 7)})
    day = 86400 * 1e6
    start = date[0].astype("datetime64[us]").astype(float)
    features = encode({"number": number[1:3], "date": date[1:3], "constant": np.full(2, 8)})
    assert ((features - [0, start, 0, 0]) / [1, day, 1, 1]).tolist() == [[2, 2, 0, 0], [2, 1, 1, 1]]


def test_what_cannot_be_read_is_refused_in_a_sentence():
    pandas = pytest.importorskip("pandas")
    frame, y = pandas.DataFrame({"price": [1.0, 2.0, 3.0]}), [0, 1, 0]
    with pytest.raises(ValueError, match="the word 'dear' in column 'price', which had numbers when it was fitted"):
        TabularClassifier().fit(frame, y).predict(pandas.DataFrame({"price": ["dear"]}))
    with pytest.raises(ValueError, match="infinity"):
        TabularClassifier().fit(frame.assign(price=np.inf), y)
    with pytest.raises(ValueError, match="ensemble must be at least 1, got 0"):
        TabularRegressor(ensemble=0).fit(frame, y)
    with pytest.raises(
        ValueError, match="the learner of a TabularRegressor must be a prior_fitted that is a regressor"
    ):
        TabularRegressor(learner=network()).fit(frame, y)
    for weights, message in (([1, -1, 1], "at least 0, got -1"), ([1, 1], "one weight for each of the 3 rows, got 2")):
        with pytest.raises(ValueError, match=message):
            TabularClassifier().fit(frame, y, sample_weight=weights)


def test_more_classes_than_the_network_has():
    x, y = load_digits(return_X_y=True)
    left = x.reshape(-1, 8, 8)[:, :, :4].sum((1, 2))
    half = ["right" if left[row] > np.median(left[y == digit]) else "left" for row, digit in enumerate(y)]
    x = x.reshape(-1, 4, 2, 4, 2).sum((2, 4)).reshape(-1, 16)
    classes = np.array([f"{digit} {side}" for digit, side in zip(y, half)])
    x, queries, y, expected = train_test_split(
        x, classes, train_size=300, test_size=300, stratify=classes, random_state=0
    )
    classifier = TabularClassifier(ensemble=2).fit(x, y)
    assert len(classifier.classes_) == 20
    assert classifier.predict_proba(queries).sum(1) == pytest.approx(1)
    assert classifier.score(queries, expected) > GaussianNB().fit(x, y).score(queries, expected) + 0.1


def test_groups_of_many_classes_are_of_equal_size_and_differ_between_members():
    learner = network(classes=4)
    y = np.arange(60) % 11
    x = np.random.default_rng(0).normal(size=(60, 2))
    codes = [member.code for member in TabularClassifier(ensemble=3, learner=learner).fit(x, y)._members]
    assert len(codes) == 6
    assert all(np.bincount(code).tolist() == [3, 3, 3, 2] for code in codes)
    pairs = {(a, b) for a in range(11) for b in range(a) if all(code[a] == code[b] for code in codes)}
    assert not pairs


@pytest.mark.parametrize(("load", "estimator"), [(load_iris, TabularClassifier), (load_diabetes, TabularRegressor)])
def test_a_prediction_depends_on_no_other_query_and_on_no_order(load, estimator):
    x, queries, y, _ = halves(load)
    method = "predict_proba" if estimator is TabularClassifier else "predict"
    predict = getattr(estimator(ensemble=2).fit(x, y), method)
    together = predict(queries)
    one_by_one = np.concatenate([predict(query[None]) for query in queries])
    assert one_by_one == pytest.approx(together, abs=1e-7)
    assert predict(np.tile(queries, (3, 1)))[-len(queries) :] == pytest.approx(together, abs=1e-7)
    order, rows = np.random.default_rng(0).permutation(x.shape[1]), np.random.default_rng(0).permutation(len(x))
    permuted = estimator(ensemble=2).fit(x[rows][:, order], y[rows])
    assert getattr(permuted, method)(queries[:, order]) == pytest.approx(together, rel=1e-3, abs=1e-4)


def test_a_member_reads_at_most_the_rows_and_features_that_it_may(monkeypatch):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(600, 3)), np.repeat([0, 1, 2], [400, 198, 2])
    x[:, 0] += 3 * y
    classifier = TabularClassifier(ensemble=2, max_rows=60).fit(x, y)
    counts = [member.targets.sum(0).tolist() for member in classifier._members]
    assert all(sum(each) == 60 and each[2] >= 1 and abs(each[0] - 40) <= 1 for each in counts)
    assert classifier._members[0].inputs.tolist() != classifier._members[1].inputs.tolist()
    assert classifier.score(x, y) > 0.9
    monkeypatch.setattr(tabular, "MOST_FEATURES", 2)
    monkeypatch.setattr(tabular, "MOST_CELLS", 2 * 50**2)
    shapes = [member.inputs.shape for member in TabularRegressor().fit(x, x[:, 0])._members]
    assert shapes == [(50, 2)] * 4


@pytest.mark.parametrize("estimator", [TabularClassifier, TabularRegressor])
def test_the_random_state_determines_samples(estimator):
    x = np.random.default_rng(0).normal(size=(80, 2))
    y = (x[:, 0] > 0).astype(int)
    one, same, other = (estimator(max_rows=20, random_state=seed).fit(x, y) for seed in (1, 1, 2))
    read = [[member.inputs.tolist() for member in each._members] for each in (one, same, other)]
    assert read[0] == read[1] != read[2]


def test_rows_of_weight_zero_are_left_out_and_heavy_ones_count_more():
    x, queries, y, _ = halves(load_iris)
    weight = (np.arange(len(y)) % 3 > 0).astype(float)
    kept = weight > 0
    left_out = TabularClassifier().fit(x, y, sample_weight=weight).predict_proba(queries)
    assert left_out == pytest.approx(TabularClassifier().fit(x[kept], y[kept]).predict_proba(queries))
    assert left_out == pytest.approx(TabularClassifier().fit(x, y, sample_weight=7 * weight).predict_proba(queries))
    noise = np.random.default_rng(0).normal(size=(60, 2))
    coin = np.arange(60) % 2
    heavy = TabularClassifier(learner=prior_fitted(**SMALL)).fit(noise, coin, sample_weight=1 + 9 * coin)
    assert heavy.predict_proba(noise)[:, 1].mean() > 0.8


def test_the_smallest_tables():
    assert TabularClassifier().fit([[1.0], [2.0]], ["a", "a"]).predict([[5.0]]).tolist() == ["a"]
    assert TabularRegressor().fit([[1.0], [2.0]], [3.0, 3.0]).predict([[5.0]]) == pytest.approx([3.0], abs=1e-4)
    untrained = prior_fitted(**SMALL)
    a_row_a_class = TabularClassifier(learner=untrained).fit(np.eye(4), list("abcd"))
    assert a_row_a_class.predict(np.eye(4)).tolist() == list("abcd")
    constant = TabularClassifier(learner=untrained).fit(np.ones((30, 2)), np.arange(30) % 3 == 0)
    assert constant.classes_.tolist() == [False, True]
    assert constant.predict_proba([[1.0, 1.0]]) == pytest.approx(np.array([[2, 1]]) / 3, abs=0.1)
    names = TabularClassifier(learner=untrained).fit([["Ann"], ["Bob"], ["Cy"], ["Di"]], [0, 0, 0, 1])
    assert names.predict([["Di"], ["Ed"]]).tolist() == [0, 0]
    assert constant.predict_proba([[1e300, -5.0]]).tolist() == constant.predict_proba([[1.0, 1.0]]).tolist()


def test_large_offsets_and_units_do_not_matter():
    x, queries, y, _ = halves(load_diabetes)
    mean, std = TabularRegressor(ensemble=2).fit(x, y).predict(queries, return_std=True)
    moved = TabularRegressor(ensemble=2).fit(1e7 + 1e3 * x, 1e9 + 1e-2 * y)
    other_mean, other_std = moved.predict(1e7 + 1e3 * queries, return_std=True)
    assert 100 * (other_mean - 1e9) == pytest.approx(mean, rel=1e-3)
    assert 100 * other_std == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("learner", [None, network()])
def test_a_pickle_holds_the_rows_and_the_weights_only_if_they_are_of_the_user(learner):
    x, queries, y, _ = halves(load_iris)
    classifier = TabularClassifier(learner=learner, ensemble=2).fit(x, y)
    content = pickle.dumps(classifier)
    names = {argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert any(name.startswith("torch") for name in names) == (learner is not None)
    opened = pickle.loads(content)
    assert opened.predict_proba(queries).tolist() == classifier.predict_proba(queries).tolist()
    assert pickle.loads(pickle.dumps(clone(opened))).get_params().keys() == classifier.get_params().keys()


def test_it_works_in_pipelines_searches_and_cross_validation():
    x, y = load_iris(return_X_y=True)
    assert cross_val_score(TabularClassifier(ensemble=1), x, y, cv=3, n_jobs=1).min() > 0.9
    scaled = make_column_transformer((MinMaxScaler(), [0, 1]), remainder="passthrough")
    pipeline = make_pipeline(scaled, TabularClassifier())
    search = GridSearchCV(pipeline, {"tabularclassifier__ensemble": [1, 2]}, cv=2, scoring="neg_log_loss").fit(x, y)
    assert search.best_score_ > -0.4


def test_a_file_of_weights_describes_its_learner(tmp_path):
    learner = network(objectives.gaussian, width=24)
    save_weights(learner, tmp_path / "mine.safetensors")
    opened = load_weights(tmp_path / "mine.safetensors")
    assert (opened.objective, opened.sizes) == (learner.objective, learner.sizes)
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in learner.state_dict().items())
    assert learner.sizes.keys() == inspect.signature(prior_fitted).parameters.keys() - {"objective"}


def test_a_damaged_or_missing_file_of_weights_is_an_error_in_a_sentence(tmp_path):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(DamagedFile, match=r"mine.safetensors is missing"):
        load_weights(path)
    save_weights(network(), path)
    content = path.read_bytes()
    for damaged in (content[:-10], content[:-1] + bytes([content[-1] ^ 1]), b"", b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"mine.safetensors is damaged"):
            load_weights(path)
    for state, meta in (
        ({"w": torch.ones(2)}, {}),
        ({"w": torch.ones(2)}, {"prior_fitted": '{"objective": "classification", "depth": 3}'}),
        ({"w": torch.ones(2)}, {"prior_fitted": '{"objective": "classification"}'}),
    ):
        save_state(path, state, meta)
        with pytest.raises(DamagedFile, match=r"mine.safetensors holds no weights of a learner prior_fitted of this"):
            load_weights(path)


def test_the_package_holds_small_files_that_are_read_once():
    assert packaged("classifier") is packaged("classifier")
    assert TabularClassifier().fit([[0.0], [1.0]], [0, 1]).learner_ is packaged("classifier")
    assert packaged("classifier").targets == 10
    assert packaged("regressor").objective == objectives.gaussian
    files = list(Path(inspect.getfile(load_weights)).parent.glob("*.safetensors"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 20e6
