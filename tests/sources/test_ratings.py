"""Tasks from ratings: who and what val and test hold that training has not seen, and what is known when."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kshot
from kshot.evaluation.intervals import BOUNDS, interval
from kshot.evaluation.per_task import read_tasks, write_tasks
from kshot.models import rating_mlp
from kshot.sources import ratings

SPLIT = {"ratio": [0.6, 0.2, 0.2]}


def log(users: int = 60, items: int = 120, each: int = 30) -> pl.DataFrame:
    """Ratings in a random order; each says who, what and when: 1,000,000 u + 1,000 i + t."""
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(users), each)
    item = np.concatenate([random.permutation(items)[:each] for _ in range(users)])
    when = np.tile(np.arange(each), users)
    rating = 1e6 * user + 1e3 * item + when
    frame = pl.DataFrame({"user": user, "item": [f"film {i}" for i in item], "rating": rating, "day": when})
    return frame.sample(fraction=1, shuffle=True, seed=1)


@pytest.fixture
def rated(tmp_path) -> Path:
    log().write_parquet(tmp_path / "log.parquet")
    items = pl.DataFrame({"item": [f"film {i}" for i in range(120)], "year": range(1900, 2020)})
    items.with_columns(genre=pl.Series(["drama", "comedy", "crime"] * 40)).write_csv(tmp_path / "items.csv")
    pl.DataFrame({"user": range(60), "age": np.arange(60) + 0.5}).write_csv(tmp_path / "users.csv")
    return tmp_path


def told(source, task) -> list[np.ndarray]:
    """Who, what and when of a task's support and query ratings, each (n, 3)."""
    found = []
    for batch in task:
        rating = batch.targets[:, 0].double().numpy() * source.preprocessor.std + source.preprocessor.mean
        rating = rating.round(0).astype(np.int64)
        found.append(np.stack([rating // 10**6, rating // 1000 % 1000, rating % 1000], 1))
    return found


def open_log(folder: Path, **options):
    source = ratings(folder / "log.parquet", **{"shots": 4, "queries": 3, "split": SPLIT} | options)
    # float32 targets would blur what a rating says: keep them whole
    raw = source.preprocessor
    source.examples.targets = ((_exact(folder, source) - raw.mean) / raw.std).astype(np.float64)
    return source


def _exact(folder: Path, source) -> np.ndarray:
    """The ratings in the source's own order, as float64."""
    frame = pl.read_parquet(folder / "log.parquet")
    if source.ordered["test"]:
        frame = frame.sort("day", maintain_order=True)
    order = frame.select("user").unique(maintain_order=True).with_row_index("place")
    return frame.join(order, on="user", maintain_order="left").sort("place", maintain_order=True)["rating"].to_numpy()


COLD = ["users", "items", "both", "none"]


@pytest.mark.parametrize("cold", COLD)
@pytest.mark.parametrize("time", [None, "day"])
def test_what_is_held_out_is_never_seen_in_training(rated, cold, time):
    source = open_log(rated, cold=cold, time=time, on_too_few="drop")
    seen = {"user": set(), "item": set(), "pair": set()}
    for split in ("train", "val", "test"):
        users, items, pairs = set(), set(), set()
        for index in range(150):
            task = source.task(split, index)
            support, query = told(source, task)
            assert support.shape == (4, 3)
            assert query.shape == (3, 3)
            assert len({*support[:, 0], *query[:, 0]}) == 1, "one user"
            assert str(query[0, 0]) in source.user_names[split]
            assert len({*support[:, 1], *query[:, 1]}) == 7, "seven films"
            if time:
                assert support[:, 2].max() < query[:, 2].min(), "the support is older"
            users |= set(query[:, 0])
            items |= set(query[:, 1])
            pairs |= {tuple(row[:2]) for row in query}
            if split == "train":
                seen["item"] |= set(support[:, 1])
                seen["pair"] |= {tuple(row[:2]) for row in support}
            elif cold in ("items", "both"):
                assert not set(query[:, 1]) & seen["item"], "no film of a query was trained on"
                assert (task.query.inputs["item"] == 0).all()
                assert (task.support.inputs["item"] > 0).all()
        if split != "train":
            assert not pairs & seen["pair"]
            if cold in ("users", "both"):
                assert not users & seen["user"]
            else:
                assert users & seen["user"]
        seen["user"] |= users
        seen["item"] |= items
        seen["pair"] |= pairs


def test_with_time_a_task_is_the_latest_before_and_the_next(rated):
    source = open_log(rated, cold="users", time="day")
    starts = set()
    for index in range(200):
        support, query = told(source, source.task("train", index))
        days = [*support[:, 2], *query[:, 2]]
        assert np.diff(days).tolist() == [1] * 6
        starts.add(days[0])
    assert min(starts) == 0
    assert max(starts) == 23, "every run of seven of thirty is drawn"


@pytest.mark.parametrize("start", ["any", "first"])
def test_every_other_training_task_keeps_to_the_time(rated, start):
    both, given, any_ = (
        open_log(rated, time="day", start=start, train_order=order) for order in ("both", "given", "random")
    )
    indices = [4, 7, 1, 2]
    stacked = both.stack("train", indices)
    in_time = []
    for place, index in enumerate(indices):
        alone, other = both.task("train", index), (any_ if index % 2 else given).task("train", index)
        for batch, same, each in zip(stacked, alone, other):
            assert torch.equal(batch.targets[place], same.targets)
            assert torch.equal(same.targets, each.targets)
        support, query = told(both, alone)
        in_time.append(support[:, 2].max() < query[:, 2].min())
    assert in_time[0]
    assert in_time[3]
    assert torch.equal(both.task("val", 3).query.targets, any_.task("val", 3).query.targets)
    assert both.describe()["train_order"] == "both"
    with pytest.raises(ValueError, match="train_order must be one of given, random, both, got 'mixed'"):
        open_log(rated, time="day", train_order="mixed")


def test_without_a_cut_a_query_is_of_its_own_part_of_each_users_time(rated):
    source = open_log(rated, cold="none", time="day")
    for split, days in (("train", (0, 18)), ("val", (18, 24)), ("test", (24, 30))):
        found = [told(source, source.task(split, index)) for index in range(100)]
        query = np.concatenate([query for _, query in found])
        assert days[0] <= query[:, 2].min()
        assert query[:, 2].max() < days[1]
        assert all(support[-1, 2] < days[0] for support, _ in found) or split == "train"


def test_when_a_user_came_is_told_in_tenths_of_training_users(tmp_path):
    rows = [f"u{u},i{(u + k) % 9},{1 + (u + k) % 5},{100 * u + k}" for u in range(40) for k in range(6)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,rating,time", *reversed(rows)]))
    pl.DataFrame({"user": [f"u{u}" for u in range(40)], "age": np.arange(40.0)}).write_csv(tmp_path / "users.csv")
    options = {"time": "time", "shots": 2, "queries": 2, "split": SPLIT, "users": tmp_path / "users.csv"}
    source = ratings(tmp_path / "log.csv", signup_time=True, **options)
    came = {name: 100.0 * int(name[1:]) for names in source.user_names.values() for name in names}
    edges = np.quantile([came[name] for name in source.user_names["train"]], np.linspace(0, 1, 11))
    (age,) = source.preprocessor.user_columns.columns
    for split in ("train", "test"):
        for index in range(20):
            for batch in source.task(split, index):
                told = batch.inputs["user_features"].double().numpy()
                first = 100 * (told[:, 0] * age.std + age.mean).round()
                assert told.shape == (2, 11)
                for tenth in range(10):
                    share = (first - edges[tenth]) / (edges[tenth + 1] - edges[tenth])
                    np.testing.assert_allclose(told[:, 1 + tenth], share.clip(0, 1), atol=1e-5)
    assert source.preprocessor.signup_time.encode(np.array([np.inf, 1e12])).tolist() == [[1.0] * 10] * 2
    (tmp_path / "me.csv").write_text("item,rating,age,time\ni1,3,20,550\ni2,4,20,500\n")
    (tmp_path / "next.csv").write_text("item,age\ni3,20\n")
    given = source.preprocessor.support(tmp_path / "me.csv")
    expected = source.preprocessor.signup_time.encode(np.array([500.0]))[0].tolist()
    asked = source.preprocessor.inputs(tmp_path / "next.csv", json.loads(json.dumps(given.kept)))
    assert given.inputs["user_features"][:, 1:].tolist() == [expected] * 2
    assert asked["user_features"][0, 1:].tolist() == expected, "who they are is kept with their state"
    (tmp_path / "me.csv").write_text("item,rating,age\ni1,3,20\n")
    assert source.preprocessor.support(tmp_path / "me.csv").inputs["user_features"][0, 1:].tolist() == [1.0] * 10
    del options["time"]
    with pytest.raises(ValueError, match="signup_time: true needs a time column"):
        ratings(tmp_path / "log.csv", signup_time=True, **options)


def test_features_stand_beside_the_ratings_they_belong_to(rated):
    source = open_log(rated, items=rated / "items.csv", users=rated / "users.csv")
    (year,) = [column for column in source.preprocessor.item_columns.columns if column.name == "year"]
    (age,) = source.preprocessor.user_columns.columns
    place = source.preprocessor.item_columns.features.index("year")
    crime = source.preprocessor.item_columns.features.index("genre=crime")
    for index in range(20):
        task = source.task("test", index)
        for batch, rows in zip(task, told(source, task)):
            years = batch.inputs["item_features"][:, place] * year.std + year.mean
            assert years.round().tolist() == (1900 + rows[:, 1]).tolist()
            assert batch.inputs["item_features"][:, crime].tolist() == (rows[:, 1] % 3 == 2).astype(float).tolist()
            ages = batch.inputs["user_features"][:, 0] * age.std + age.mean
            np.testing.assert_allclose(ages, rows[:, 0] + 0.5, atol=1e-3)
            names = ["unknown", *source.preprocessor.items]
            items = [names[number] for number in batch.inputs["item"].tolist()]
            assert all(item in ("unknown", f"film {film}") for item, film in zip(items, rows[:, 1]))


def test_statistics_are_those_of_the_training_ratings(rated):
    source = open_log(rated)
    train = log().filter(pl.col("user").cast(pl.String).is_in(source.user_names["train"]))
    assert (source.preprocessor.mean, source.preprocessor.std) == pytest.approx(
        (train["rating"].mean(), train["rating"].std(ddof=0))
    )
    assert set(source.preprocessor.items) == set(train["item"])


def test_by_default_half_of_the_ratings_of_a_typical_user_are_shots(tmp_path):
    for typical, shots in ((7, 3), (16, 8), (50, 10)):
        user = np.repeat(np.arange(31), [typical - 2, typical, 2 * typical] * 10 + [typical])
        item = np.concatenate([np.arange(count) for count in np.bincount(user)])
        frame = pl.DataFrame({"user": user, "item": item, "rating": (user + item) % 5})
        assert ratings(frame, queries=1, on_too_few="drop", split=SPLIT).shots["test"] == (shots, shots)


def test_stacks_are_tasks_and_ranges_end_in_padding(rated):
    for options in ({}, {"time": "day"}, {"cold": "items", "on_too_few": "drop"}):
        source = open_log(rated, **{"shots": [1, 4], "queries": [2, 3]} | options)
        stack = source.stack("val", [3, 5])
        for place, index in enumerate((3, 5)):
            task = source.task("val", index)
            assert torch.equal(stack.query.targets[place], task.query.targets)
            assert torch.equal(stack.support.inputs["item"][place], task.support.inputs["item"])
        sizes = {
            (int(t.support.weight.sum()), int(t.query.weight.sum()))
            for t in (source.task("train", i) for i in range(80))
        }
        assert sizes == {(s, q) for s in range(1, 5) for q in (2, 3)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"item": "film"}, "no column 'film'"),
        ({"cold": "films"}, "cold must be one of users, items, both, none"),
        ({"cold": "both", "split": {"column": "day"}}, "cold: both is cut by ratio"),
        ({"shots": 40}, "has 30 ratings to support and 30 to query, too few for 40 shots . 3 queries"),
        ({"time": "item"}, "time column 'item' holds words"),
        ({"rating": "item"}, "column 'item': 'film .*' is not a number"),
    ],
)
def test_options_that_do_not_fit(rated, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ratings(rated / "log.parquet", **{"shots": 4, "queries": 3, "split": SPLIT} | options)


def test_wrong_rows_are_named(rated):
    frame = log()
    pl.concat([frame, frame[7:8]]).write_csv(rated / "log.csv")
    with pytest.raises(ValueError, match="line 1802, column 'item': 'film .*' is rated a second time by the same user"):
        ratings(rated / "log.csv", split=SPLIT)
    assert sum(ratings(rated / "log.csv", split=SPLIT, bad_rows="drop").dropped.values()) == 1
    pl.read_csv(rated / "items.csv")[1:].write_csv(rated / "less.csv")
    with pytest.raises(ValueError, match=r"column 'item': 'film 0' has no row in .*less.csv"):
        ratings(rated / "log.parquet", items=rated / "less.csv", split=SPLIT)
    items = pl.read_csv(rated / "items.csv")
    pl.concat([items, items[:1]]).write_csv(rated / "twice.csv")
    with pytest.raises(ValueError, match=r"twice.csv, line 2, column 'item': 'film 0' has more than one row"):
        ratings(rated / "log.parquet", items=rated / "twice.csv", split=SPLIT)


@pytest.mark.parametrize("start", ["any", "first"])
def test_intervals_are_over_users(rated, start, tmp_path):
    source = open_log(rated, time="day", start=start)
    tasks, users = 3 * len(source.user_names["test"]), source.user_names["test"]
    for split in ("train", "test"):
        chosen = source.units(split, range(tasks))
        rows = [told(source, source.task(split, index))[0][0, 0] for index in range(tasks)]
        assert [source.user_names[split][place] for place in chosen] == [str(user) for user in rows]
    source = ratings(rated / "log.parquet", time="day", start=start, shots=4, queries=3, split=SPLIT)
    learner = kshot.learners.SupportMean(source.objective)
    found = kshot.evaluate(learner, kshot.tasks.watched(source), num_tasks=tasks, audit=False)
    assert 1 < len(set(found.units.numbers.tolist())) <= len(users)
    over_users, over_tasks = (interval(found.per_task["mae"], of, bounds=BOUNDS["mae"]) for of in (found.units, None))
    assert found.metrics["mae"] == over_users != over_tasks
    write_tasks(tmp_path / "tasks.csv", found, {"mean": found}, "mae")
    mine, others = read_tasks(tmp_path / "tasks.csv")
    for each in (mine, others["mean"]):
        assert [each.units.of_task(task) for task in range(tasks)] == [
            found.units.of_task(task) for task in range(tasks)
        ]
        assert each.units.unit == "user"
        assert each.per_task["mae"] == found.per_task["mae"]


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_learner_of_ratings_learns(rated, mode):
    """Who likes what follows from a taste a user: from four ratings the taste is known."""
    random = np.random.default_rng(0)
    taste, year = random.choice([-1.0, 1.0], 60), (np.arange(120) - 60) / 35
    frame = log().with_columns(item_number=pl.col("item").str.slice(5).cast(pl.Int64))
    score = 3 + taste[frame["user"].to_numpy()] * year[frame["item_number"].to_numpy()]
    frame.with_columns(rating=pl.Series(score)).drop("item_number").write_parquet(rated / "log.parquet")
    options = {"items": rated / "items.csv", "split": SPLIT, "shots": 6, "queries": 6}
    source = ratings(rated / "log.parquet", **options)
    features = source.task("train", 0).support.inputs["item_features"].shape[1]
    torch.manual_seed(0)
    model = rating_mlp(len(source.preprocessor.items), features, hidden=(16,), embedding=2)
    learner = kshot.maml(model, inner_lr=0.3, steps=1, objective=source.objective)
    before = kshot.evaluate(learner, source, split="val", num_tasks=40, audit=False).metrics["mse"].mean
    kshot.fit(learner, source, steps=250 if mode == "vmap" else 3, tasks_per_step=8, outer_lr=0.01, mode=mode)
    after = kshot.evaluate(learner, source, split="val", num_tasks=40, audit=False).metrics["mse"].mean
    assert after < (0.5 if mode == "vmap" else 1.0) * before


FIELDS = st.sampled_from(["a", "b", "", "1", "2", "3", "2.5", "é", "inf", "NA", "2024-01-01", '"', "1,0", "true"])
FILES = st.lists(st.lists(FIELDS, min_size=3, max_size=4).map(",".join), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, st.sampled_from(["error", "drop"]))
def test_any_file_gives_tasks_or_a_sentence(tmp_path, lines, bad_rows):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["g,x,y", *lines]))
    try:
        source = ratings(
            path,
            user="g",
            item="x",
            rating="y",
            shots=1,
            queries=1,
            on_too_few="drop",
            split={"ratio": [1, 0, 0]},
            bad_rows=bad_rows,
        )
    except ValueError as error:
        sentence = str(error)
    else:
        task = source.task("train", 0)
        assert torch.isfinite(task.support.targets).all()
        assert torch.isfinite(task.query.targets).all()
        sentence = "fine"
    assert sentence


RUN = """\
name: films
source: {kind: ratings, path: log.parquet, items: items.csv, users: users.csv, time: day, shots: 4, queries: 5,
         split: {ratio: [0.6, 0.2, 0.2]}}
model: {kind: rating_mlp, embedding: 4, hidden: [8]}
learner: {kind: maml, inner_lr: 0.05, adaptable: "head.*"}
train: {steps_per_round: 5, tasks_per_step: 4, mode: vmap}
target: mse <= 0
budget: {rounds: 1}
evaluate: {num_val_tasks: 4, num_test_tasks: 4, shots: []}
baselines: {names: [scratch, support_mean], steps: 2, inner_lrs: [0.1], num_test_tasks: 4}
"""


def test_a_run_predicts_ratings_of_a_new_user(rated, monkeypatch, command):
    monkeypatch.chdir(rated)

    Path("run.yaml").write_text(RUN)
    assert "report:" in command("run", "run.yaml", "--out", "run")
    assert {"loss", "mse", "mae", "rmse", "ndcg_5"} < set(json.loads(Path("run/report.json").read_text())["test"])
    assert "does not fit these inputs" in command("run", "run.yaml", "--out", "b", "--set", "model={kind: mlp}")
    for name in ("log.parquet", "items.csv", "users.csv"):
        Path(name).unlink()
    Path("own.csv").write_text("item,year,genre,age,rating\nfilm 3,1903,drama,30,20000000\nfilm new,2020,farce,30,\n")
    assert "line 3, column 'rating': the value is missing" in command(
        "adapt", "run", "--support", "own.csv", "--out", "s"
    )
    Path("own.csv").write_text("item,year,genre,age,rating\nfilm 3,1903,drama,30,20000000\nfilm 4,1904,crime,30,2004\n")
    assert "adapted to 2 examples" in command("adapt", "run", "--support", "own.csv", "--out", "state")
    Path("new.csv").write_text("item,year,genre,age\nfilm new,2020,farce,30\nfilm 5,,,30\n")
    rows = list(csv.DictReader(io.StringIO(command("predict", "run", "--state", "state", "--inputs", "new.csv"))))
    assert list(rows[0]) == ["row", "rating"]
    assert all(np.isfinite(float(row["rating"])) for row in rows)


def test_two_million_ratings_take_little_memory(tmp_path):
    """Linear in the ratings: ten times as many fit in 4 GB."""
    random = np.random.default_rng(0)
    users, each = 20_000, 100
    frame = {"user": np.repeat(np.arange(users), each), "item": (np.arange(users * each) * 7919) % 10_007}
    frame |= {"rating": random.integers(1, 6, users * each), "time": random.permutation(users * each)}
    pl.DataFrame(frame).write_parquet(tmp_path / "log.parquet")
    code = (
        "import resource, sys; from kshot.sources import ratings\n"
        "import polars; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source = ratings(sys.argv[1], time='time', shots=10, queries=10)\n"
        "source.stack('train', range(64))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "log.parquet"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 380, "MB beside the libraries"
