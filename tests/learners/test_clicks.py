"""Clicks: what a practitioner would use, item factors without the user's own clicks, and the similarity learned."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

import kshot
from kshot import Batch, Task, objectives
from kshot.app.recommend import User
from kshot.data.tables.table import Table
from kshot.evaluation.baselines import of_fields
from kshot.learners.baselines import clicks
from kshot.learners.baselines import ratings as recommenders
from kshot.objectives import ranking
from kshot.sources.ratings.factors import (
    ALPHA,
    FOLDS,
    IMPLICIT,
    L2,
    RIDGE_SHARE,
    ItemFactors,
    confident_ridge,
    spectrum_of,
)
from kshot.testing import check_learner, check_source

CLICKS = objectives.levels([0, 1], 0.5, 0.5, like=1)


def tastes(users: int = 60, items: int = 40, each: int = 12, seed: int = 0) -> pl.DataFrame:
    """Users of two tastes, each with half of the items."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        odds = np.where(np.arange(items) % 2 == user % 2, 8.0, 1.0) / (1 + np.arange(items) / 10)
        rows += [(f"u{user}", f"i{item}") for item in random.choice(items, each, replace=False, p=odds / odds.sum())]
    return pl.DataFrame(rows, schema=["user", "item"], orient="row")


def source_of(frame: pl.DataFrame, **options):
    options = {"shots": 4, "queries": 4, "negatives": 2, "rating": None} | options
    return kshot.sources.ratings(Table(Path("log"), frame), **options)


def log_of(dense: np.ndarray) -> recommenders.Ratings:
    users, items = dense.nonzero()
    return recommenders.Ratings(users, items + 1, np.ones(len(users)), dense.shape[1])


def scored(learner, clicked: list[int], items: list[int], unclicked: tuple[int, ...] = ()) -> np.ndarray:
    """The scores before the tie-break and calibration, of items numbered from 1."""
    rows = torch.tensor([*clicked, *unclicked])
    targets = torch.eye(2)[[1] * len(clicked) + [0] * len(unclicked)]
    state = learner.adapt(Batch({"item": rows}, targets, torch.ones(len(rows))))
    return learner.score(state, torch.tensor(items)).double().numpy()


DENSE = (np.random.default_rng(0).random((30, 12)) < 0.3).astype(float)
DENSE[:, -1] = 0  # nobody clicked the last item
ALL = list(range(1, 13))


@pytest.mark.parametrize("l2", [0.5, 20.0])
def test_ease_is_the_closed_form_of_its_paper(l2):
    inverse = np.linalg.inv(DENSE.T @ DENSE + l2 * np.eye(12))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    user = np.zeros(12)
    user[[0, 3, 4]] = 1
    learner = clicks.ease(log_of(DENSE), CLICKS, l2=l2)
    np.testing.assert_allclose(scored(learner, [1, 4, 5], ALL, unclicked=(2, 0)), user @ weights, atol=1e-4)


def test_the_cosine_is_scikit_learn_s_and_is_shrunk():
    cosine = cosine_similarity(DENSE.T)
    np.fill_diagonal(cosine, 0)
    learner = clicks.item_cosine(log_of(DENSE), CLICKS, shrink=0.0)
    np.testing.assert_allclose(scored(learner, [1, 4], ALL), cosine[:, [0, 3]].mean(1), atol=1e-6)
    shrunk = clicks.item_cosine(log_of(DENSE), CLICKS, shrink=5.0)
    both, counts = DENSE[:, 1] @ DENSE[:, 0], DENSE.sum(0)
    assert scored(shrunk, [1], [2])[0] == pytest.approx(both / (np.sqrt(counts[0] * counts[1]) + 5), abs=1e-6)


def test_factors_of_implicit_als_are_those_of_the_library_implicit():
    # implicit 0.7.3, implicit.cpu._als._least_squares, confidence 4 and regularization 0.7
    rows = csr_matrix(np.array([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 1, 1, 1]], np.float32))
    items = np.array([[0.5, -0.2], [0.3, 0.8], [-0.6, 0.1], [0.9, 0.4], [-0.1, -0.7]])
    expected = [
        [0.949379484714136, -0.267079750013354],
        [-0.6519654841802494, 1.0738255033557047],
        [1.0921306554213421, -0.23062444905058013],
        [0.21976737389677947, -0.2875679466947221],
    ]
    np.testing.assert_allclose(confident_ridge(rows, items, 3.0, 0.7), expected, atol=1e-6)
    learner = clicks.ImplicitAls(CLICKS, np.concatenate([np.zeros((1, 2)), items]), np.ones(6), alpha=3.0, l2=0.7)
    np.testing.assert_allclose(scored(learner, [1, 2, 5], [1, 2, 3]), items[:3] @ expected[0], atol=1e-6)


def test_implicit_als_minimises_its_loss():
    log = log_of(DENSE)
    learner = clicks.implicit_als(log, CLICKS, factors=3, alpha=2.0, l2=1.0, rounds=300)
    items = learner.factors.numpy()[1:]
    users = confident_ridge(csr_matrix(DENSE), items, 2.0, 1.0)
    error = (1 + 2 * DENSE) * (users @ items.T - DENSE)
    np.testing.assert_allclose(error.T @ users + items, 0, atol=2e-3)  # the gradient for the items


def test_a_decomposition_of_more_users_and_items_than_are_exact(monkeypatch):
    exact = spectrum_of(csr_matrix(DENSE), 12)
    monkeypatch.setitem(spectrum_of.__globals__, "MOST_EXACT", 2)
    near = spectrum_of(csr_matrix(DENSE), 5)
    np.testing.assert_allclose(near[1], exact[1][:5], rtol=0.02)
    gram = DENSE.T @ DENSE
    best = np.linalg.eigh(gram)[0]
    left = np.linalg.norm(gram - (near[0] * near[1]) @ near[0].T)
    assert left <= 1.05 * np.sqrt(np.square(best[:-5]).sum())


@pytest.mark.parametrize("kind", list(clicks.GRIDS))
def test_every_baseline_is_finite_for_whatever_a_user_clicked(kind):
    for dense in (DENSE, np.ones((3, 12)), DENSE[:1] * 0 + np.eye(12)[0]):
        fit, grid = clicks.GRIDS[kind]
        learner = fit(log_of(dense), CLICKS, **grid[0])
        for items, targets in (([0], [0]), ([0, 3], [1, 1]), ([12, 12], [1, 0]), (ALL, [1] * 12)):
            support = Batch({"item": torch.tensor(items)}, torch.eye(2)[targets], torch.ones(len(items)))
            found = learner.predict(learner.adapt(support), {"item": torch.tensor([0, *ALL])})
            assert found.isfinite().all()
            more = Batch(
                {"item": torch.tensor([*items, 5])}, torch.eye(2)[[*targets, 1]], torch.tensor([1.0] * len(items) + [0])
            )
            torch.testing.assert_close(learner.predict(learner.adapt(more), {"item": torch.tensor([0, *ALL])}), found)


def test_clicks_have_their_own_baselines_which_know_tastes_and_are_calibrated():
    source = source_of(tastes())
    assert list(of_fields(source)) == list(clicks.GRIDS)
    losses, auc = {}, {}
    for kind, candidates in clicks.baselines(source).items():
        results = [kshot.evaluate(each, source, num_tasks=60, audit=False).metrics for each in candidates()]
        losses[kind] = min(result["log_loss"].mean for result in results)
        auc[kind] = max(result["auc"].mean for result in results)
    entropy = -(np.log(1 / 3) + 2 * np.log(2 / 3)) / 3
    assert losses["popularity"] < entropy + 0.05, "of one click in three, with few users to calibrate on"
    for kind in ("item_cosine", "implicit_als", "ease"):
        assert auc[kind] > auc["popularity"] + 0.1
        assert losses[kind] < entropy - 0.03
    rated = tastes().with_columns(rating=pl.lit(3.0) + pl.int_range(pl.len()) % 3)
    rated = source_of(rated, rating="rating")
    assert clicks.baselines(rated) == {}
    assert list(of_fields(rated)) == list(recommenders.GRIDS)
    assert recommenders.baselines(source) == {}


def test_factors_for_a_training_user_do_not_know_that_user():
    frame = tastes(users=20)
    source = source_of(frame, item_factors=30)
    factors, examples = source.examples.item_factors, source.examples
    assert isinstance(factors, ItemFactors)
    log = source.training_log()
    owners, items = source.owners, examples.items
    dense = np.zeros((owners.max() + 1, len(source.preprocessor.items) + 1))
    dense[log.users, log.items] = 1
    folds = {int(owners[row]): int(factors.fold_of[row]) for row in range(len(items))}
    assert {folds[user] for user in np.unique(log.users)} == set(range(FOLDS))
    for user, fold in folds.items():
        known = dense[[other for other in range(len(dense)) if folds[other] != fold or fold == FOLDS]]
        gram = known.T @ known
        expected = gram @ np.linalg.inv(gram + RIDGE_SHARE * known.sum() * np.eye(len(gram)))
        table = factors.tables[fold]
        of_ease = table[:, 1:-IMPLICIT]
        np.testing.assert_allclose(of_ease @ of_ease.T, expected, atol=1e-5)
        np.testing.assert_allclose(table[:, 0], np.log1p(known.sum(0)) / np.log1p(known.sum(0)).max(), atol=1e-6)
        assert (fold == FOLDS) == (user not in log.users)
    task = source.task("test", 0)
    np.testing.assert_array_equal(task.query.inputs["item_factors"], factors.tables[FOLDS][task.query.inputs["item"]])
    check_source(source, num_tasks=3)


def test_clicks_on_items_that_nobody_clicked_in_training_are_left_out():
    frame = pl.concat(
        [tastes(), pl.DataFrame({"user": [f"u{k}" for k in range(60)], "item": [f"x{k}" for k in range(60)]})]
    )
    source = source_of(frame)
    for split in ("val", "test"):
        for index in range(20):
            assert all((batch.inputs["item"] > 0).all() for batch in source.task(split, index))
    assert sum("without a training click" in reason for reason in source.dropped) == 1


@pytest.mark.parametrize("levels", [3, 1000])
def test_auc_is_scikit_learn_s(levels):
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, clicked = random.integers(levels, size=17) / 7, random.integers(0, 2, 17)
        found = ranking.auc(torch.from_numpy(scores), torch.from_numpy(clicked).double())
        assert float(found) == pytest.approx(roc_auc_score(clicked, scores))
    assert float(ranking.auc(torch.zeros(3), torch.ones(3))) == 0.5


def click_task(ways: int, shots: int, seed: int, dtype: torch.dtype) -> Task:
    """Items near one direction or another: a user clicks those near one."""
    random = torch.Generator().manual_seed(seed)
    taste = torch.nn.functional.normalize(torch.randn(4, generator=random, dtype=dtype), dim=0)

    def batch(count: int) -> Batch:
        clicked = torch.arange(count) % 2
        factors = torch.randn(count, 4, generator=random, dtype=dtype) * 0.2 + 0.5 * clicked[:, None] * taste
        popularity = torch.rand(count, 1, generator=random, dtype=dtype)
        return Batch({"item_factors": torch.cat([popularity, factors], 1)}, torch.eye(2, dtype=dtype)[clicked], torch.ones(count, dtype=dtype))  # fmt: skip  # noqa: E501

    return Task(batch(2 * shots * ways), batch(3 * ways))


def test_the_similarity_learner_keeps_the_contract():
    check_learner(
        lambda ways: kshot.learners.item_similarity(5, objective=CLICKS, implicit=2, hidden=4), make_task=click_task
    )


def assert_same_ranking(learner, baseline, source):
    for index in range(5):
        task = source.task("test", index)
        ours = learner.predict(learner.adapt(task.support), task.query.inputs)[:, 1]
        theirs = baseline.score(baseline.adapt(task.support), task.query.inputs["item"])
        assert torch.equal(ours.argsort(), theirs.argsort())


def test_similarity_begins_as_ease():
    source = source_of(tastes(), item_factors=40)
    learner = kshot.learners.item_similarity(73, objective=source.objective, similarities=1)
    torch.nn.init.constant_(learner.log_noise, 12.0)
    log = recommenders.Ratings(*source.training_log(), num_items=len(source.preprocessor.items))
    ease = clicks.ease(log, source.objective, l2=RIDGE_SHARE * len(log.items))
    assert_same_ranking(learner, ease, source)


def test_the_second_similarity_begins_as_implicit_als():
    source = source_of(tastes(), item_factors=40)
    learner = kshot.learners.item_similarity(73, objective=source.objective)
    with torch.no_grad():
        learner.log_filter[1, :40] = -60.0
        learner.log_noise[1] = -np.log(ALPHA)
        learner.linear.weight.copy_(torch.tensor([[0.0, 1.0, 0.0]]))
    log = recommenders.Ratings(*source.training_log(), num_items=len(source.preprocessor.items))
    als = clicks.implicit_als(log, source.objective, factors=IMPLICIT, alpha=ALPHA, l2=L2)
    assert_same_ranking(learner, als, source)


def test_what_the_similarity_learner_needs_is_named():
    with pytest.raises(ValueError, match="give the source item_factors"):
        kshot.learners.item_similarity(0, objective=CLICKS)
    with pytest.raises(ValueError, match="item_similarity is for clicks"):
        kshot.learners.item_similarity(5, objective=objectives.mse)


RUN = """\
name: shop
source: {kind: ratings, path: log.csv, rating: null, items: titles.csv, title: title, users: people.csv, shots: 4,
         queries: 4, negatives: 1, item_factors: 20}
learner: {kind: item_similarity, hidden: 4}
train: {steps_per_round: 20, tasks_per_step: 8, mode: vmap, outer_lr: 0.01}
target: auc >= 0.99
budget: {rounds: 1}
evaluate: {num_val_tasks: 8, num_test_tasks: 8, shots: []}
baselines: {names: [popularity, ease], num_val_tasks: 4, num_test_tasks: 8}
"""


def test_a_shop_with_titles_recommends_to_somebody_of_unknown_age(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    frame = tastes()
    frame.write_csv("log.csv")
    pl.DataFrame({"item": [f"i{k}" for k in range(40)], "title": [f"Thing {k}" for k in range(40)]}).write_csv(
        "titles.csv"
    )
    people = {"user": [f"u{k}" for k in range(60)], "age": [20 + k for k in range(60)], "city": ["Ulm", "Bern"] * 30}
    pl.DataFrame(people).write_csv("people.csv")
    Path("run.yaml").write_text(RUN)
    assert "report:" in command("run", "run.yaml", "--out", "run")
    assert set(json.loads(Path("run/report.json").read_text())["baselines"]) == {"popularity", "ease"}
    opened = kshot.load(Path("run"))
    Path("me.csv").write_text("item\nThing 1\ni3\nThing 5\n")
    told = json.loads(command("recommend", "run", "--user", "me.csv", "--top", "6", "--ask", "0", "--json"))
    found = [each["title"] for each in told["recommended"]]
    assert len(found) == 6
    assert not {"Thing 1", "Thing 3", "Thing 5"} & set(found)
    user = User(opened, Path("me.csv"))
    torch.testing.assert_close(user.expected(), User(opened, {"i1": 1.0, "Thing 3": 1.0, "i5": 1.0}).expected())
    odd = [int(title.split()[1]) % 2 for title in found]
    assert sum(odd) >= 5, "of the user's taste"
    chance = user.expected().logit()
    lift = chance - User(opened).expected().logit()
    torch.testing.assert_close(user.ranking(0.0), chance)
    torch.testing.assert_close(user.ranking(3.0), chance + 3 * lift)
    Path("twice.csv").write_text("item\nThing 1\ni1\n")
    assert "is there twice" in command("recommend", "run", "--user", "twice.csv")
