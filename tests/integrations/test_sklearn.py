"""The estimators behave as scikit-learn's, and give what the learners within them do."""

import pickle
import pickletools

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import kshot
from kshot.integrations.sklearn import KShotClassifier, KShotRegressor, MetaClassifier, MetaRegressor


def shops(count=30, rows=12, seed=0):
    """X, y and groups, where each group has a slope and a level of its own."""
    random = np.random.default_rng(seed)
    shop = np.repeat(np.arange(count), rows)
    x = random.uniform(0, 10, (count * rows, 2))
    y = random.normal(5, 3, count)[shop] + random.normal(2, 1, count)[shop] * x[:, 0] + random.normal(0, 0.3, len(shop))
    return x, y, shop


def patients(count=30, rows=20, seed=0):
    random = np.random.default_rng(seed)
    patient, x = np.repeat(np.arange(count), rows), random.normal(size=(count * rows, 2))
    return x, np.where(x[:, 0] > random.normal(0, 2, count)[patient], "high", "low"), patient


@pytest.fixture(scope="module")
def regressor():
    x, y, shop = shops()
    return MetaRegressor().fit(x, y, groups=shop)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [MetaRegressor(), MetaClassifier()], ids=["regressor", "classifier"])
def test_all_checks_of_scikit_learn_pass(estimator):
    results = check_estimator(estimator, on_skip=None)
    assert {each["check_name"] for each in results if each["status"] != "passed"} <= {"check_array_api_input"}


def test_a_few_rows_of_a_new_group_beat_a_regression_on_them(regressor):
    x, y, _ = shops(count=1, rows=200, seed=5)
    new = regressor.adapt(x[:3], y[:3])
    error = np.mean((new.predict(x[3:]) - y[3:]) ** 2)
    alone = np.mean((LinearRegression().fit(x[:3], y[:3]).predict(x[3:]) - y[3:]) ** 2)
    pooled = np.mean((regressor.predict(x[3:]) - y[3:]) ** 2)
    assert error < 0.5 * min(alone, pooled)
    assert new.score(x[3:], y[3:]) > 0.9


def test_adapting_gives_what_the_learner_gives(regressor):
    x, y, _ = shops(count=1, seed=5)
    new, trained = regressor.adapt(x[:6], y[:6]), regressor.trained_
    columns = dict(zip(trained.names, x.T))
    inputs = trained.preprocessor.inputs(columns, {})
    mean, std = trained.preprocessor.mean[0], trained.preprocessor.std[0]
    targets = torch.from_numpy(((y - mean) / std).astype(np.float32))[:, None]
    state = trained.learner.adapt(kshot.Batch.of(inputs[:6], targets[:6]))
    expected = trained.learner.predict(state, inputs)
    expected = expected["mean"] if isinstance(expected, dict) else expected
    assert new.predict(x) == pytest.approx(expected[:, 0].detach().numpy() * std + mean, rel=1e-6)


def test_rows_that_are_added_later_count_as_if_they_had_been_there(regressor):
    x, y, _ = shops(count=1, seed=5)
    at_once = regressor.adapt(x[:6], y[:6])
    one_by_one = regressor.adapt(x[:2], y[:2]).partial_fit(x[2:5], y[2:5]).partial_fit(x[5:6], y[5:6])
    assert one_by_one.predict(x) == pytest.approx(at_once.predict(x))


def test_known_groups_have_their_own_predictions_and_others_those_of_all(regressor):
    x, y, shop = shops()
    assert np.mean((regressor.predict(x, groups=shop) - y) ** 2) < 0.2 * np.mean((regressor.predict(x) - y) ** 2)
    assert regressor.predict(x[:5], groups=["new"] * 5) == pytest.approx(regressor.predict(x[:5]))
    order = np.random.default_rng(0).permutation(len(x))
    assert regressor.predict(x[order], groups=shop[order]) == pytest.approx(regressor.predict(x, groups=shop)[order])


def test_the_score_of_groups_is_that_of_rows_that_were_not_adapted_to(regressor):
    x, y, shop = shops(seed=7)
    by_group = regressor.score(x, y, groups=shop)
    assert regressor.score(x, y) < 0.9 < by_group < 1
    with pytest.raises(ValueError, match="no group has more than shots=5 rows"):
        regressor.score(x[:20], y[:20], groups=np.arange(20))


def test_classes_keep_their_names_and_probabilities_sum_to_one():
    x, y, patient = patients()
    classifier = MetaClassifier().fit(x, y, groups=patient)
    assert classifier.classes_.tolist() == ["high", "low"]
    assert classifier.predict_proba(x, groups=patient).sum(1) == pytest.approx(1)
    new = classifier.adapt([[0.0, 0.0], [3.0, 0.0], [1.0, 1.0]], ["low", "high", "low"])
    assert new.predict([[-1.0, 0.0], [4.0, 0.0]]).tolist() == ["low", "high"]
    numbers = MetaClassifier().fit(x, np.where(y == "low", 10, 9), groups=patient)
    assert numbers.classes_.tolist() == [9, 10]
    again = numbers.adapt([[0.0, 0.0], [3.0, 0.0], [1.0, 1.0]], [10, 9, 10])
    assert again.predict_proba(x) == pytest.approx(new.predict_proba(x))
    with pytest.raises(ValueError, match="the class 11, and the learner was trained on 9, 10"):
        numbers.adapt([[0.0, 0.0]], [11])


def test_a_data_frame_may_have_categories_missing_values_and_any_order_of_columns():
    pandas = pytest.importorskip("pandas")
    x, y, shop = shops()
    kind = np.where(np.arange(len(x)) % 3 == 0, "east", "west")
    frame = pandas.DataFrame({"visitors": x[:, 0], "noise": x[:, 1], "kind": kind})
    frame.loc[5, "noise"] = np.nan
    fitted = MetaRegressor().fit(frame, y + 40 * (kind == "east"), groups=shop)
    assert fitted.feature_names_in_.tolist() == ["visitors", "noise", "kind"]
    new = fitted.adapt(frame[:6], y[:6] + 40 * (kind[:6] == "east"))
    east, west = (new.predict(frame[:1].assign(kind=each))[0] for each in ("east", "west"))
    assert east - west == pytest.approx(40, abs=3)
    with pytest.raises(ValueError, match="feature names should match"):
        new.predict(frame[["noise", "visitors", "kind"]])


def test_a_pickle_holds_safetensors_and_no_code_of_torch(regressor):
    x, _, shop = shops()
    content = pickle.dumps(regressor)
    names = {argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert not any(name.startswith("torch") for name in names)
    opened = pickle.loads(content)
    assert opened.predict(x, groups=shop) == pytest.approx(regressor.predict(x, groups=shop))


def test_it_works_in_pipelines_searches_and_cross_validation_by_group():
    x, y, shop = shops(count=12)
    with config_context(enable_metadata_routing=True):
        estimator = MetaRegressor().set_fit_request(groups=True).set_score_request(groups=True)
        scores = cross_val_score(estimator, x, y, cv=GroupKFold(3), params={"groups": shop})
        assert scores.min() > 0.8
        search = GridSearchCV(estimator, {"shots": [1, 4]}, cv=GroupKFold(2)).fit(x, y, groups=shop)
        assert search.best_params_ == {"shots": 4}
        assert search.best_estimator_.adapt(x[:4], y[:4]).predict(x[:2]).shape == (2,)
        scaled = make_pipeline(ColumnTransformer([("scale", StandardScaler(), [0, 1])]), estimator)
        assert scaled.fit(x, y, groups=shop).score(x, y, groups=shop) > 0.8
    assert clone(estimator).get_params() == estimator.get_params()


def test_a_learner_that_takes_steps_needs_a_model_and_is_the_same_each_time():
    x, y, shop = shops(count=12)
    maml = {"kind": "maml", "inner_lr": 0.05, "steps": 2}
    options = {"model": {"kind": "mlp", "hidden": [8]}, "steps": 20, "random_state": 3}
    one, other = (MetaRegressor(maml, **options).fit(x, y, groups=shop) for _ in range(2))
    assert one.adapt(x[:4], y[:4]).predict(x).tolist() == other.adapt(x[:4], y[:4]).predict(x).tolist()
    with pytest.raises(ValueError, match="model"):
        MetaRegressor(maml).fit(x, y, groups=shop)
    with pytest.raises(ValueError, match="protonet"):
        MetaRegressor("protonet", model="mlp").fit(x, y, groups=shop)


def test_the_run_folder_of_a_table_opens_as_an_estimator(tmp_path):
    x, y, shop = shops()
    source = {"kind": "table", "path": {"a": x[:, 0], "b": x[:, 1], "shop": shop, "sales": y}, "group": "shop"}
    report = kshot.run(
        {
            "source": {**source, "target": "sales", "shots": 4, "queries": 6}, "learner": "partial_pooling",
            "target": "mse <= 100", "budget": {"rounds": 1}, "baselines": {"names": []},
            "evaluate": {"num_val_tasks": 4, "num_test_tasks": 4, "shots": []},
        },
        tmp_path / "run",
    )  # fmt: skip
    for estimator in (KShotRegressor(tmp_path / "run"), KShotRegressor.from_run(tmp_path / "run")):
        run = report.trained
        expected = run.predict(run.adapt({"a": x[:4, 0], "b": x[:4, 1], "sales": y[:4]}), {"a": x[:, 0], "b": x[:, 1]})
        assert clone(estimator).fit(x[:4], y[:4]).predict(x) == pytest.approx(expected["sales"])
    with pytest.raises(ValueError, match="X has 1 columns, and the learner was trained on 2: a, b"):
        KShotRegressor(tmp_path / "run").fit(x[:4, :1], y[:4])
    with pytest.raises(ValueError, match="no run folder"):
        KShotClassifier(tmp_path / "other").fit(x[:4], y[:4])


def test_tasks_with_classes_of_their_own_take_any_labels(tmp_path):
    random = np.random.default_rng(0)
    kind = np.repeat(np.arange(24), 12)
    centre = random.normal(0, 3, (24, 2))
    values = {"a": centre[kind, 0] + random.normal(size=288), "b": centre[kind, 1] + random.normal(size=288)}
    source = {"kind": "table", "path": values | {"kind": [f"kind {each}" for each in kind]}, "classes": "kind"}
    kshot.run(
        {
            "source": {**source, "ways": 3, "shots": 3, "queries": 4, "split": {"ratio": [0.5, 0.25, 0.25]}},
            "learner": "nearest_centroid", "target": "accuracy >= 0",
            "budget": {"rounds": 1}, "train": {"steps_per_round": 1, "tasks_per_step": 1},
            "evaluate": {"num_val_tasks": 4, "num_test_tasks": 4, "shots": []}, "baselines": {"names": []},
        },
        tmp_path / "run",
    )  # fmt: skip
    x = np.array([[0.0, 0.0], [0.5, 0.0], [9.0, 9.0], [9.0, 8.0]])
    classifier = KShotClassifier(tmp_path / "run").fit(x, [2, 2, -1, -1])
    assert classifier.classes_.tolist() == [-1, 2]
    assert classifier.predict([[8.0, 8.0], [1.0, 1.0]]).tolist() == [-1, 2]
    assert pickle.loads(pickle.dumps(classifier)).predict(x).tolist() == [2, 2, -1, -1]
