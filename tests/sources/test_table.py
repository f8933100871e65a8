"""Tasks from tables: what stands in the rows is what a task shows, and nothing of val and test is fitted to."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.app import cli
from kshot.app.trained import load
from kshot.data.tables.columns import ONE_HOT, Columns, read_columns
from kshot.data.tables.open import open_table
from kshot.sources import table
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.tasks import ClassTasks
from kshot.training.checkpoint import load_state

SPLIT = {"ratio": [0.6, 0.2, 0.2]}


def shops(count: int = 30, days: int = 12) -> pl.DataFrame:
    """A row a day of each shop: sales rise by 10 for each point of its advertising, on a level of its own."""
    random = np.random.default_rng(0)
    shop = np.repeat(np.arange(count), days)
    advertising = random.normal(5, 2, len(shop)).round(3)
    return pl.DataFrame(
        {
            "shop": [f"shop {s}" for s in shop],
            "advertising": advertising,
            "kind": np.array(["bakery", "kiosk", "café"])[shop % 3],
            "open": shop % 2 == 0,
            "day": pl.Series(np.tile(np.arange(days), count).astype("int32") + 19_000).cast(pl.Date),
            "sales": 1000 + 100 * shop + 10 * advertising,
            "visitors": 3.0 * shop,
            "busy": np.where(advertising > 5, "yes", "no"),
        }
    )


@pytest.fixture
def shop_file(tmp_path) -> Path:
    shops().write_csv(tmp_path / "shops.csv")
    return tmp_path / "shops.csv"


def open_shops(path: Path, **options):
    return table(path, **{"group": "shop", "target": "sales", "split": SPLIT, "shots": 4, "queries": 3} | options)


def inputs_of(source) -> set[str]:
    return {column.name for column in source.preprocessor.columns.columns}


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_numbers_the_rows_is_left_out_unless_it_is_listed(first):
    frame = shops().with_row_index("rownames", first)
    source = open_shops(frame)
    assert "rownames" not in inputs_of(source)
    assert [note for note in source.notes if "'rownames' numbers the rows: it is left out" in note]
    for kept in ({"inputs": ["rownames", "visitors"]}, {"kinds": {"rownames": "number"}}, {"time": "rownames"}):
        assert "rownames" in inputs_of(open_shops(frame, **kept))
    for same in (
        frame[5:],
        frame.sample(fraction=1.0, shuffle=True, seed=0),
        frame.rename({"rownames": "Unnamed: 0"})[::-1],
    ):
        assert open_shops(same).preprocessor.columns.columns == open_shops(same[:, 1:]).preprocessor.columns.columns
    for others in (frame.with_columns(rownames=pl.col("rownames") // 2), frame.with_columns(rownames=0.5)):
        assert "rownames" in inputs_of(open_shops(others))


def test_numbers_of_rows_of_which_some_were_left_out_are_recognised_without_their_name():
    frame = shops().with_row_index("n")
    some = frame.filter(pl.int_range(pl.len()).shuffle(0) < 0.7 * pl.len())
    assert "n" not in inputs_of(open_shops(some, on_too_few="drop"))
    for others in (
        frame.with_columns(pl.col("n").shuffle(0)),
        frame[24:],
        frame.with_columns(pl.col("n") * 2),
        frame.with_columns(n=pl.int_range(pl.len()).over("shop")),
    ):
        assert "n" in inputs_of(open_shops(others))


def test_a_file_of_pandas_with_its_index_is_as_one_without(tmp_path):
    rows = shops().to_pandas()
    rows.to_csv(tmp_path / "with.csv")
    rows.sample(frac=1.0, random_state=0).to_csv(tmp_path / "shuffled.csv")
    for name in ("with", "shuffled"):
        source = open_shops(tmp_path / f"{name}.csv")
        assert inputs_of(source) == inputs_of(open_shops(shops()))
        assert [note for note in source.notes if "'index' numbers the rows: it is left out" in note]


def test_a_target_of_two_numbers_is_perhaps_of_two_classes():
    frame = shops().with_columns(sold=(pl.col("sales") > 2500).cast(int))

    def notes_on(**options):
        return [note for note in open_shops(frame, **options).notes if "it has two values, 0 and 1" in note]

    assert len(notes_on(target="sold")) == 1
    for known in (
        {"target": "sold", "target_type": "regression"},
        {"target": "sold", "target_type": "classification"},
        {},
    ):
        assert not notes_on(**known)


@pytest.mark.parametrize(("days", "shots"), [(12, 6), (5, 2), (2, 1), (40, 10)])
def test_by_default_half_of_the_rows_of_a_typical_group_are_shots(days, shots):
    frame = pl.concat([shops(days=days), shops(count=1, days=200).with_columns(shop=pl.lit("large"))])
    assert table(frame, group="shop", target="sales", split=SPLIT, queries=1).shots.plain() == shots


def test_a_task_is_the_rows_of_one_group(tmp_path):
    frame = shops().with_row_index("number")
    frame.write_csv(tmp_path / "t.csv")
    source = open_shops(tmp_path / "t.csv", target="number")
    features, (mean,), (std,) = source.preprocessor.columns.features, source.preprocessor.mean, source.preprocessor.std
    for split in ("train", "val", "test"):
        for task in (source.task(split, index) for index in range(20)):
            inputs, targets = (torch.cat(leaves) for leaves in zip(task.support[:2], task.query[:2]))
            numbers = (targets[:, 0].double().numpy() * std + mean).round().astype(int)
            rows = frame[numbers]
            assert rows["number"].n_unique() == 7, "all rows are different"
            assert rows["shop"].n_unique() == 1
            assert rows["shop"][0] in source.group_names[split]
            assert inputs[:, features.index("kind=kiosk")].tolist() == (rows["kind"] == "kiosk").cast(float).to_list()
            assert (inputs[:, features.index("open")] > 0).tolist() == rows["open"].to_list()


def test_statistics_are_those_of_the_training_groups(shop_file):
    source = open_shops(shop_file, ignore=["busy"])
    train = shops().filter(pl.col("shop").is_in(source.group_names["train"]))
    (advertising,) = [column for column in source.preprocessor.columns.columns if column.name == "advertising"]
    assert (advertising.mean, advertising.std) == pytest.approx(
        (train["advertising"].mean(), train["advertising"].std(ddof=0))
    )
    assert (source.preprocessor.mean[0], source.preprocessor.std[0]) == pytest.approx(
        (train["sales"].mean(), train["sales"].std(ddof=0))
    )


def test_the_groups_of_the_splits_are_apart_and_keep_their_place_when_more_come(tmp_path):
    shops(30).write_parquet(tmp_path / "30.parquet")
    shops(60).write_parquet(tmp_path / "60.parquet")
    few, many = (open_shops(tmp_path / name).group_names for name in ("30.parquet", "60.parquet"))
    assert sum(len(names) for names in few.values()) == 30 == len(set().union(*map(set, few.values())))
    assert all(set(few[split]) <= set(many[split]) for split in few)


def test_with_a_time_the_support_comes_first(tmp_path):
    frame = shops().sample(fraction=1, shuffle=True, seed=1)
    frame.write_parquet(tmp_path / "t.parquet")
    source = open_shops(tmp_path / "t.parquet", time="day", inputs=["day"])
    for index in range(30):
        task = source.task("train", index)
        assert task.support.inputs[:, 0].max() < task.query.inputs[:, 0].min()
        assert (task.support.inputs[:, 0].diff() > 0).all()


def test_metrics_are_told_in_the_targets_own_units(shop_file):
    source = open_shops(shop_file)
    task, (std,) = source.task("test", 3), source.preprocessor.std
    prediction = torch.zeros_like(task.query.targets)
    error = task.query.targets * std
    metrics = source.objective.metrics(prediction, task.query)
    assert float(metrics["mse"]) == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert float(metrics["mae"]) == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert float(source.objective.loss(prediction, task.query)) == pytest.approx(
        float(metrics["mse"]) / std**2, rel=1e-5
    )


def test_several_targets_have_figures_each(shop_file):
    source = open_shops(shop_file, target=["sales", "visitors"])
    task = source.task("train", 0)
    assert task.support.targets.shape == (4, 2)
    metrics = source.objective.metrics(torch.zeros(3, 2), task.query)
    assert list(metrics) == ["mse_sales", "mae_sales", "mse_visitors", "mae_visitors"]
    stds = torch.tensor(source.preprocessor.std)
    assert float(metrics["mae_visitors"]) == pytest.approx(float(task.query.targets[:, 1].abs().mean() * stds[1]))


def test_a_target_of_words_has_the_same_classes_in_all_tasks(shop_file):
    source = open_shops(shop_file, target="busy", inputs=["advertising"])
    assert source.preprocessor.classes == ("no", "yes")
    (column,) = source.preprocessor.columns.columns
    for index in range(10):
        batch = source.task("test", index).query
        advertising = batch.inputs[:, 0] * column.std + column.mean
        assert (batch.targets[:, 1] == (advertising > 5)).all()
        assert (batch.targets.sum(1) == 1).all()


def test_classes_of_a_column_are_told_apart(tmp_path):
    rows = [(f"species {c}", c + 0.01 * i, "north" if c < 40 else "south") for c in range(80) for i in range(8)]
    pl.DataFrame(rows, schema=["species", "length", "land"], orient="row").write_csv(tmp_path / "t.csv")
    options = {"classes": "species", "ways": 3, "shots": 2, "queries": 3, "split": SPLIT, "domain": "land"}
    source = table(tmp_path / "t.csv", **options)
    assert isinstance(source, ClassTasks)
    (column,) = source.preprocessor.columns.columns
    for index in range(20):
        task = source.task("train", index)
        length = torch.cat([task.support.inputs, task.query.inputs])[:, 0] * column.std + column.mean
        species = (length + 1e-4).floor()
        labels = torch.cat([task.support.targets, task.query.targets]).argmax(1)
        assert len({(s, label) for s, label in zip(species.tolist(), labels.tolist())}) == 3
        assert len({s < 40 for s in species.tolist()}) == 1, "the classes of a task are of one domain"
    held = table(tmp_path / "t.csv", **options | {"split": {"heldout": {"test": ["south"]}}})
    assert held.class_names["test"] == tuple(f"species {c}" for c in range(40, 80))


def test_splits_by_a_column(tmp_path):
    frame = shops().with_columns(part=pl.Series(np.repeat(["train", "val", "test"], 120)))
    frame.write_ndjson(tmp_path / "t.ndjson")
    names = open_shops(tmp_path / "t.ndjson", split={"column": "part"}).group_names
    assert names["val"] == tuple(f"shop {s}" for s in range(10, 20))
    frame.with_columns(part=pl.Series(["val"] + ["train"] * 359)).write_ndjson(tmp_path / "t.ndjson")
    with pytest.raises(ValueError, match="'shop 0' has rows in train and in val"):
        open_shops(tmp_path / "t.ndjson", split={"column": "part"})


# encoding of columns ------------------------------------------------------------------------------------------------


def encoded(
    tmp_path, columns: dict, train: list[bool], new: dict | None = None, **kinds: str
) -> dict[str, list[float]]:
    """The features of a table fitted on its training rows; those of the rows of another file with `new`."""
    pl.DataFrame(columns).write_parquet(tmp_path / "fit.parquet")
    found = open_table(tmp_path / "fit.parquet")
    raw = read_columns(found, {name: kinds.get(name) or found.kind(name) for name in columns})
    fitted = Columns.from_json(json.loads(json.dumps(Columns.fit(raw, np.array(train)).to_json())))
    if new is not None:
        pl.DataFrame(new).write_csv(tmp_path / "new.csv")
        raw = read_columns(open_table(tmp_path / "new.csv"), fitted.kinds)
    values = fitted.spread(fitted.encode(dict(raw)))
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    return dict(zip(fitted.features, values.T.tolist(), strict=True))


def test_a_missing_number_is_the_training_mean_and_says_so(tmp_path):
    found = encoded(tmp_path, {"x": [1.0, 3.0, None, 9.0]}, [True, True, True, False])
    assert found == {"x": [-1, 1, 0, 7], "x is missing": [0, 0, 1, 0]}
    assert encoded(tmp_path, {"x": [1.0, 3.0]}, [True, True], {"x": [None, 5.0]}) == {"x": [0, 3]}


def test_a_number_far_out_is_cut(tmp_path):
    found = encoded(tmp_path, {"x": [1.0, 3.0, 5200.0, -5200.0, 21.0]}, [True, True, False, False, False])
    assert found == {"x": [-1, 1, 10, -10, 10]}


def test_words_are_one_hot_and_those_never_seen_have_a_place(tmp_path):
    words = ["a", "b", "a", "b", "once", None]
    found = encoded(tmp_path, {"w": words}, [True] * 6, {"w": ["b", "a", "new", "", "once"]})
    assert found == {
        "w=a": [0, 1, 0, 0, 0],
        "w=b": [1, 0, 0, 0, 0],
        "w is unknown": [0, 0, 1, 0, 1],
        "w is missing": [0, 0, 0, 1, 0],
    }


def test_many_words_have_codes_that_are_apart(tmp_path):
    words = [f"street {n}" for n in range(400)] * 2
    found = encoded(tmp_path, {"w": words}, [True] * 800, {"w": [*words[:400], "new"]})
    codes = np.array(list(found.values())).T
    assert codes.shape == (401, ONE_HOT + 1)
    assert np.square(codes).sum(1) == pytest.approx(np.ones(401), abs=1e-5), "as long as a one-hot vector"
    inner = codes[:400] @ codes[:400].T
    assert inner[~np.eye(400, dtype=bool)].max() < 1 - 1e-5, "no two words share a code"
    assert abs(inner[~np.eye(400, dtype=bool)].mean()) < 0.01, "apart as one-hot vectors are, in expectation"
    assert codes[400].tolist() == [0.0] * ONE_HOT + [1.0]


def test_dates_are_linear_and_cyclic(tmp_path):
    days = [f"2023-{month:02}-01" for month in range(1, 13)]
    found = encoded(tmp_path, {"d": days}, [True] * 12, {"d": ["2023-06-16", "2024-06-16", ""]})
    assert list(found) == [
        "d", "d sin of year", "d cos of year", "d sin of week", "d cos of week",
    ]  # fmt: skip
    assert found["d"][1] - found["d"][0] == pytest.approx(
        366 / np.std([(np.datetime64(d) - np.datetime64(days[0])).astype(int) for d in days]), rel=1e-4
    )
    assert found["d cos of year"][0] == pytest.approx(found["d cos of year"][1], abs=0.02), "the same day of the year"
    assert found["d cos of year"][0] < -0.95, "the middle of the year"
    hours = encoded(tmp_path, {"t": ["2024-01-01 00:00:00", "2024-01-01 06:00:00", "2024-01-08 06:00:00"]}, [True] * 3)
    assert hours["t sin of day"] == pytest.approx([0, 1, 1], abs=1e-5)
    assert hours["t sin of week"][1] == pytest.approx(hours["t sin of week"][2], abs=1e-5)
    assert hours["t cos of week"][0] == pytest.approx(1, abs=1e-5), "Monday, midnight"


def test_columns_that_tell_nothing_are_left_out_and_the_report_says_why(tmp_path):
    frame = shops().with_columns(
        same=pl.lit(1.0), note=pl.Series([f"note {n}" for n in range(360)]), empty=pl.lit(None, pl.Float64),
        said=pl.Series([f"customer {n} was not at home" for n in range(360)]),
    )  # fmt: skip
    frame.write_parquet(tmp_path / "t.parquet")
    source = open_shops(tmp_path / "t.parquet")
    told = source.describe()["inputs"]
    assert told["same"] == "left out: the same in every training row"
    assert told["note"].startswith("left out: nearly every row has a different word")
    assert told["said"].startswith("left out: nearly every row has a different text")
    assert "kinds: {said: text}" in told["said"]
    assert told["empty"] == "left out: no training row has a value"
    assert told["kind"] == "category: 3 words, one-hot, and a feature for unknown ones"
    assert told["advertising"].startswith("number: (x − ")
    assert source.task("val", 0).support.inputs.shape[1] == len(source.preprocessor.columns.features)


# wrong tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"group": None, "target": None}, "needs either group .* classes .* or a target alone"),
        ({"target": None}, "needs a target"),
        ({"target": "sale"}, "no column 'sale': did you mean 'sales'"),
        ({"group": "Shop"}, "no column 'Shop': did you mean 'shop'"),
        ({"inputs": ["advertizing"]}, "no column 'advertizing': did you mean 'advertising'"),
        ({"ignore": ["hour"]}, "no column 'hour'"),
        ({"kinds": {"kind": "words"}}, "kinds: 'words' of 'kind' is unknown"),
        ({"kinds": {"kind": "number"}}, "line 2, column 'kind': 'bakery' is not a number"),
        ({"target": "day"}, "holds dates"),
        ({"target": ["busy", "kind"]}, "one target is classified at a time"),
        ({"time": "kind"}, "time column 'kind' holds words"),
        ({"shots": 10}, "group 'shop .' in train has 12 examples, but 10 shots . 3 queries need 13"),
        ({"inputs": ["visitors"], "target": "sales", "kinds": {"visitors": "date"}}, "is not an ISO date"),
        ({"split": {"ratios": [1]}}, "split takes one of"),
        ({"reading": {"delimiter": ";"}}, "looks like several separated by a comma"),
    ],
)
def test_options_that_do_not_fit_the_table(shop_file, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_shops(shop_file, **options)


def test_bad_rows_are_dropped_where_that_is_allowed_and_told(shop_file):
    lines = shop_file.read_text().splitlines()
    lines[5] = lines[5].replace(",bakery,", ",").replace("shop 0", "")
    lines[9] = "shop 0,many,bakery,true,2022-01-09,1000,0,yes"
    lines[11] = "shop 0,5,bakery,true,2022-01-11,,0,yes"
    shop_file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="bad rows in all: 3 of 360") as caught:
        open_shops(shop_file)
    for told in ("line 6: 7 values where the header names 8", "line 10, column 'advertising': 'many' is not a number",
                 "line 12, column 'sales': the value is missing"):  # fmt: skip
        assert told in str(caught.value)
    source = open_shops(shop_file, bad_rows="drop")
    (reason,) = source.describe()["dropped"]
    assert "line 6" in reason
    assert source.dropped[reason] == 3
    assert sum(len(rows) for split in source.group_names for rows in source.groups(split).values()) == 357


def test_groups_of_one_row_are_dropped_where_that_is_allowed(tmp_path):
    many = pl.DataFrame(
        {"shop": [f"lonely {n}" for n in range(5000)], "advertising": [1.0] * 5000, "sales": [2.0] * 5000}
    )
    pl.concat([shops().select("shop", "advertising", "sales"), many]).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has 1 examples, but 4 shots"):
        open_shops(tmp_path / "t.parquet")
    source = open_shops(tmp_path / "t.parquet", on_too_few="drop")
    assert sum(map(len, source.group_names.values())) == 30
    assert sum(source.dropped.values()) == 5000


FIELDS = st.sampled_from(["shop 1", "shop 2", "", "1", "2.5", "x", "é", "inf", "NA", "2024-01-01", '"', "1,0", "true"])
FILES = st.lists(st.lists(FIELDS, min_size=3, max_size=4).map(",".join), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, st.sampled_from(["error", "drop"]), st.sampled_from([None, "x"]))
def test_any_table_gives_tasks_or_a_sentence(tmp_path, lines, bad_rows, time):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["g,x,y", *lines]))
    split = {"ratio": [1, 0, 0]}
    try:
        source = table(
            path,
            group="g",
            target="y",
            shots=1,
            queries=1,
            on_too_few="drop",
            split=split,
            bad_rows=bad_rows,
            time=time,
        )
    except ValueError as error:
        sentence = str(error)
    else:
        task = source.task("train", 0)
        assert torch.isfinite(task.support.inputs).all()
        assert torch.isfinite(task.query.targets).all()
        sentence = "fine"
    assert sentence


# the real data ------------------------------------------------------------------------------------------------------


def test_schools_are_tasks(shared_data, tmp_path):
    """139 schools, 15,362 pupils, 28 features: the mean of 12 pupils of a school beats the mean of all schools."""
    from scipy.io import loadmat

    content = loadmat(shared_data / "school" / "school.mat")
    frames = [
        pl.DataFrame(x, schema=[f"x{i}" for i in range(28)]).with_columns(
            school=pl.lit(number), score=pl.Series(y[:, 0].astype(float))
        )
        for number, (x, y) in enumerate(zip(content["X"].ravel(), content["Y"].ravel()))
    ]
    pl.concat(frames).write_csv(tmp_path / "school.csv")
    source = table(tmp_path / "school.csv", group="school", target="score", shots=12, queries=10)
    assert sum(map(len, source.group_names.values())) == 139
    assert sum(len(rows) for split in source.group_names for rows in source.groups(split).values()) == 15_362
    assert len(source.describe()["inputs"]) == source.task("val", 0).support.inputs.shape[1] == 28
    tasks = source.stack("test", range(200))
    own = tasks.support.targets.mean(1, keepdim=True)
    assert (own - tasks.query.targets).square().mean() < tasks.query.targets.square().mean()


# on the command line ------------------------------------------------------------------------------------------------

RUN = """\
name: shops
source: {{kind: table, path: {path}, {source}, split: {{ratio: [0.6, 0.2, 0.2]}}, shots: 4, queries: 3}}
model: {{kind: mlp, hidden: [8]}}
learner: {{kind: {learner}}}
train: {{steps_per_round: 5, tasks_per_step: 4, mode: vmap, outer_lr: 0.01}}
target: {target}
budget: {{rounds: 1}}
evaluate: {{num_val_tasks: 4, num_test_tasks: 6, shots: []}}
baselines: {{names: [{baselines}], steps: 2, inner_lrs: [0.1], num_test_tasks: 4}}
"""
MAML = "maml, inner_lr: 0.05, steps: 2"


@pytest.fixture
def kshot(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["kshot", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            found = capsys.readouterr()
            return found.err if stop.code == 2 else found.out
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("source", "learner", "target", "baselines", "columns"),
    [
        ("group: shop, target: sales", MAML, "mse <= 1", "support_mean", ["sales"]),
        ("group: shop, target: [sales, visitors]", MAML, "mae_sales <= 1", "scratch", ["sales", "visitors"]),
        ("group: shop, target: busy", MAML, "accuracy >= 1", "scratch", ["busy", "p(no)", "p(yes)"]),
        ("classes: shop, ways: 3", "protonet", "accuracy >= 1", "centroid", ["label", "p(new a)", "p(new b)"]),
    ],
)
def test_a_run_opens_again_without_its_data(kshot, shop_file, tmp_path, source, learner, target, baselines, columns):
    run = RUN.format(path=shop_file, source=source, learner=learner, target=target, baselines=baselines)
    (tmp_path / "run.yaml").write_text(run)
    assert "report:" in kshot("run", "run.yaml", "--out", "run")
    report = json.loads(Path("run/report.json").read_text())
    assert report["test"][target.split()[0]]["num_tasks"] == 6
    assert report["protocol"]["inputs"]["kind"].startswith("category")
    assert "test tasks" in kshot("evaluate", "run", "--tasks", 4)
    shop_file.unlink()
    own = shops(2, 6).with_columns(shop=pl.Series(["new a"] * 6 + ["new b"] * 6), kind=pl.lit("zoo"))
    if source.startswith("group"):  # a support set is of one group
        own = own.with_columns(shop=pl.lit("new a"))
    own.write_csv("support.csv")
    own.drop(
        *{"shop", "sales", "visitors", "busy"} - set(json.loads(Path("run/encoding.json").read_text())["columns"][0])
    ).write_csv("new.csv")
    assert "adapted to 12 examples" in kshot("adapt", "run", "--support", "support.csv", "--out", "state")
    new = own.with_columns(pl.lit(None, pl.Float64).alias("advertising"))
    new.write_parquet("new.parquet")
    rows = list(csv.DictReader(io.StringIO(kshot("predict", "run", "--state", "state", "--inputs", "new.parquet"))))
    assert list(rows[0]) == ["row", *columns]
    assert len(rows) == 12
    if source.endswith("sales"):
        state, _ = load_state(Path("state"))
        preprocessor = preprocessor_from_json(json.loads(Path("run/encoding.json").read_text()))
        learner = load("run").learner.eval()
        with torch.no_grad():
            scaled = learner.predict(state, preprocessor.inputs(Path("new.parquet"), {}))
        expected = scaled[:, 0].double().numpy() * preprocessor.std[0] + preprocessor.mean[0]
        assert [float(row["sales"]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-4)
        assert 500 < np.mean(expected) < 6000, "told in units of sales"
    if columns[0] == "label":
        assert {row["label"] for row in rows} <= {"new a", "new b"}
    new.drop("kind").write_csv("wrong.csv")
    assert "has no column 'kind'" in kshot("predict", "run", "--state", "state", "--inputs", "wrong.csv")
    own.with_columns(advertising=pl.lit("much")).write_csv("wrong.csv")
    assert "line 2, column 'advertising': 'much' is not a number" in kshot(
        "adapt", "run", "--support", "wrong.csv", "--out", "s"
    )
