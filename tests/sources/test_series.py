"""Tasks from time series: a support never sees what a query asks for, and forecasts come back in the data's units."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot import objectives
from kshot.sources import series
from kshot.sources.series import _windows
from kshot.types import Batch

SPLIT = {"ratio": [0.6, 0.2, 0.2]}
SIZES = {"context_length": 8, "horizon": 3, "shots": 2, "queries": 2, "split": SPLIT}


def points(meters: int = 30, steps: int = 60) -> pl.DataFrame:
    """Every value says where it stands: meter m at step t is 1000 m + t."""
    meter, step = np.repeat(np.arange(meters), steps), np.tile(np.arange(steps), meters)
    return pl.DataFrame(
        {
            "meter": [f"meter {m}" for m in meter],
            "hour": step,
            "load": 1000.0 * meter + step,
            "warm": np.sin(step / 4),
        }
    )


def open_points(path: Path, frame: pl.DataFrame | None = None, **options):
    (points() if frame is None else frame).sample(fraction=1, shuffle=True, seed=3).write_parquet(path)
    return series(path, **{"time": "hour", "series": "meter", "value": "load"} | SIZES | options)


def in_units(source, leaf: torch.Tensor) -> np.ndarray:
    return leaf.double().numpy() * source.preprocessor.std[0] + source.preprocessor.mean[0]


@pytest.mark.parametrize("stride", [None, 1, 2, 5])
@pytest.mark.parametrize("split", ["train", "test"])
def test_windows_are_runs_of_one_series_and_no_query_horizon_is_in_the_support(tmp_path, stride, split):
    source = open_points(tmp_path / "t.parquet", scale="global", stride=stride)
    for index in range(30):
        task = source.task(split, index)
        windows = [in_units(source, torch.cat([b.inputs[..., 0], b.targets], 1)).round(1) for b in task]
        for batch in windows:
            assert batch.shape == (2, 11)
            assert np.abs(np.diff(batch, axis=1) - 1).max() < 0.2, "consecutive steps"
        meters = {int(value // 1000) for batch in windows for value in batch.ravel()}
        assert len(meters) == 1
        assert f"meter {meters.pop()}" in source.group_names[split]
        support, query = windows
        assert query[:, 8:].min() > support.max() + 0.5, "a query's horizon begins after the whole support"
        if stride in (None, 1):
            assert query[:, 8].min() == pytest.approx(support.max() + 1, abs=0.3), "and no later than it need"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 5))
def test_windows_are_those_of_a_loop(sizes, length, stride):
    expected, counts, start = [], [], 0
    for size in sizes:
        own = list(range(start + size - length, start - 1, -stride))[::-1]
        expected, counts, start = expected + own, [*counts, len(own)], start + size
    found = _windows(np.array(sizes), length, stride)
    assert [part.tolist() for part in found] == [expected, counts]


def test_the_support_alone_sets_the_scale(tmp_path):
    source = open_points(tmp_path / "t.parquet", covariates=["warm"])
    plain = open_points(tmp_path / "t.parquet", covariates=["warm"], scale="global")
    for index in range(10):
        task, raw = source.task("val", index), plain.task("val", index)
        shown = torch.cat([task.support.inputs[..., 0], task.support.targets], 1)
        assert float(shown.mean()) == pytest.approx(0, abs=1e-3)
        assert float(shown.std(correction=0)) == pytest.approx(1, abs=1e-3)
        both = [in_units(plain, torch.cat([b.inputs[..., 0], b.targets], 1)) for b in raw]
        expected = (both[1] - both[0].mean()) / both[0].std()
        query = torch.cat([task.query.inputs[..., 0], task.query.targets], 1).numpy()
        np.testing.assert_allclose(query, expected, atol=0.02)
        torch.testing.assert_close(task.query.inputs[..., 1], raw.query.inputs[..., 1])


def test_training_groups_are_scaled_as_tasks_are(tmp_path):
    source = open_points(tmp_path / "points.parquet")
    groups = source.training_groups(5)
    assert len(groups) == 5
    for batch in groups:
        assert batch.inputs.dtype == batch.targets.dtype == torch.float32
        assert batch.inputs[..., 0].abs().max() < 10  # the values themselves are in the thousands


def test_small_moves_at_a_high_level_are_kept(tmp_path):
    frame = points().with_columns(load=1e9 + pl.col("hour") / 100)
    task = open_points(tmp_path / "t.parquet", frame).task("train", 0)
    steps = task.query.inputs[..., 0].diff(dim=1)
    torch.testing.assert_close(
        steps, torch.full_like(steps, 1 / np.std([*range(11), *range(3, 14)])), rtol=1e-3, atol=0
    )


def test_padding_does_not_move_the_scale(tmp_path):
    source = open_points(tmp_path / "t.parquet", shots=[1, 3])
    padded = [task for task in (source.task("train", i) for i in range(20)) if task.support.weight.sum() == 2]
    assert padded
    for task in padded:
        real = torch.cat([task.support.inputs[:2, :, 0], task.support.targets[:2]], 1)
        assert float(real.mean()) == pytest.approx(0, abs=1e-3)


def test_a_series_that_does_not_move_is_left_finite(tmp_path):
    frame = points().with_columns(load=pl.lit(7.0))
    task = open_points(tmp_path / "t.parquet", frame).task("train", 0)
    assert torch.isfinite(task.support.inputs).all()
    for leaf in (task.support.inputs, task.query.targets):
        torch.testing.assert_close(leaf, torch.zeros_like(leaf), rtol=0, atol=1e-9)


def test_mase_is_the_error_over_that_of_repeating_the_last_season():
    past = torch.tensor([[1.0, 3.0, 2.0, 4.0], [0.0, 1.0, 0.0, 1.0]])[..., None]
    batch = Batch.of(past, torch.tensor([[5.0, 6.0], [1.0, 1.0]]))
    prediction = torch.tensor([[4.0, 8.0], [1.0, 2.0]])
    found = objectives.forecast(season=2, unit=10.0).metrics(prediction, batch)
    # errors 1, 2, 0, 1: mean 1; season's moves |2-1|, |4-3|, 0, 0: mean 0.5; squares 1, 4, 0, 1: mean 1.5
    assert float(found["mase"]) == pytest.approx(2)
    assert float(found["mse"]) == pytest.approx(150)
    half = batch._replace(weight=torch.tensor([1.0, 0.0]))
    assert float(objectives.forecast(season=2).metrics(prediction, half)["mase"]) == pytest.approx(1.5)
    again = objectives.from_name(objectives.name_of(objectives.forecast(2, 10.0)))
    assert again.metrics(prediction, batch) == found


def test_a_file_with_a_series_in_each_row_is_as_a_long_one(tmp_path, monkeypatch):
    frame = points().filter((pl.col("meter") != "meter 3") | (pl.col("hour") < 50))
    rows = frame.pivot("hour", index="meter", values="load")
    rows.write_csv(tmp_path / "rows.csv")
    source = series(tmp_path / "rows.csv", series="meter", **SIZES)
    long = open_points(tmp_path / "long.parquet", frame)
    assert {p: set(n) for p, n in source.group_names.items()} == {p: set(n) for p, n in long.group_names.items()}
    for part, names in source.group_names.items():
        for name in names:
            windows = [each.examples.take(each.groups(part)[name]) for each in (long, source)]
            torch.testing.assert_close(*windows)
    assert source.describe()["time_steps"] == "1 throughout"
    rows.drop("meter").rename(lambda hour: f"hour {hour}").write_csv(tmp_path / "bare.csv")
    assert "row 30" in str(series(tmp_path / "bare.csv", **SIZES).group_names)
    rows[:1].write_csv(tmp_path / "one.csv")
    again = type(source.preprocessor).from_json(json.loads(json.dumps(source.preprocessor.to_json())))
    support = again.support(tmp_path / "one.csv")
    assert len(support.inputs) == 17
    assert again.inputs(tmp_path / "one.csv", support.kept).shape == (1, 8, 1)
    assert again.answers(torch.zeros(1, 3), support.kept)["value"] == [support.kept["center"]] * 3
    with pytest.raises(ValueError, match="must hold one series, a row of values in the order of time; it has 30"):
        again.support(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: pl.concat([rows, rows[:1]]), "'meter 0' is there twice; keep one row for each series"),
        (lambda rows: rows.with_columns(pl.lit("many").alias("7")), "many"),
        (lambda rows: rows.with_columns(pl.lit(None).alias(name) for name in rows.columns[1:]), "holds no value"),
    ],
)
def test_rows_that_are_no_series(tmp_path, change, sentence):
    change(points().pivot("hour", index="meter", values="load")).write_csv(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=sentence):
        series(tmp_path / "rows.csv", series="meter", **SIZES)
    with pytest.raises(ValueError, match="without time, each row is a series"):
        series(tmp_path / "rows.csv", series="meter", value="7", **SIZES)


@pytest.mark.parametrize(
    ("step", "period", "expected"), [("1h", 7, 7), ("1h", 24, 24), ("1mo", 12, 12), ("1d", None, 1)]
)
def test_the_season_is_found(tmp_path, step, period, expected):
    """In the calendar if the values agree, else by autocorrelation; noise and trends have none."""
    random, steps = np.random.default_rng(0), np.arange(120)
    dates = pl.datetime_range(pl.datetime(2001, 1, 1), pl.datetime(2020, 1, 1), step, eager=True)[:120]
    if period is None:
        dates = dates[:120]
    wave = np.zeros(120) if period is None else 3 * np.sin(2 * np.pi * steps / period)
    columns = {f"site {k}": wave + 0.5 * random.normal(size=120).cumsum() + 0.1 * steps for k in range(20)}
    pl.DataFrame({"at": dates.dt.strftime("%Y-%m-%d %H:%M:%S")} | columns).write_csv(tmp_path / "sites.csv")
    options = {"context_length": 30, "horizon": 3, "shots": 2, "queries": 2}
    source = series(tmp_path / "sites.csv", time="at", **options)
    assert source.describe()["season"] == expected
    assert source.objective == objectives.forecast(expected)
    assert series(tmp_path / "sites.csv", time="at", season=5, **options).describe()["season"] == 5


def test_the_level_keeps_ratios(tmp_path):
    frame = points().with_columns(load=pl.col("load") + 10)
    task = open_points(tmp_path / "t.parquet", frame, scale="level").task("train", 0)
    raw = open_points(tmp_path / "t.parquet", frame, scale="global", on_too_few="drop")
    values = [in_units(raw, torch.cat([b.inputs[..., 0], b.targets], 1)) for b in raw.task("train", 0)]
    for batch, units in zip(task, values):
        found = torch.cat([batch.inputs[..., 0], batch.targets], 1)
        np.testing.assert_allclose(found, units / np.abs(values[0]).mean(), rtol=2e-3)
    assert float(task.support.inputs.min()) > 0


def test_times_in_fractions_of_a_year_are_regular(tmp_path):
    frame = points().with_columns(hour=2000 + pl.col("hour") / 12)
    assert open_points(tmp_path / "t.parquet", frame).describe()["time_steps"] == "0.0833333 throughout"


def test_a_wide_file_is_as_a_long_one(tmp_path):
    frame = points()
    wide = frame.pivot("meter", index="hour", values="load")
    wide.write_csv(tmp_path / "wide.csv")
    long = open_points(tmp_path / "long.parquet", frame)
    side = series(tmp_path / "wide.csv", time="hour", **SIZES)
    assert side.group_names == long.group_names or set(side.group_names["train"]) == set(long.group_names["train"])
    name = side.group_names["test"][0]
    windows = [source.examples.take(source.groups("test")[name]) for source in (long, side)]
    torch.testing.assert_close(*windows)


def test_what_was_not_observed_is_left_out_and_the_gap_is_told(tmp_path):
    wide = points(steps=40).pivot("meter", index="hour", values="load")
    wide = wide.with_columns(pl.when(pl.col("hour") < 5).then(None).otherwise(pl.col("meter 1")).alias("meter 1"))
    wide = wide.with_columns(pl.when(pl.col("hour") == 20).then(None).otherwise(pl.col("meter 2")).alias("meter 2"))
    wide.write_csv(tmp_path / "wide.csv")
    source = series(tmp_path / "wide.csv", time="hour", **SIZES)
    told = source.describe()["time_steps"]
    assert told.startswith("1 in 99.9% of steps; 1 others in 1 series")
    assert "line 23, in series 'meter 2'" in told
    regular = open_points(tmp_path / "t.parquet")
    assert regular.describe()["time_steps"] == "1 throughout"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"series": None}, "needs series and value"),
        ({"series": None, "value": None, "covariates": ["warm"]}, "wide file has no covariates"),
        ({"season": 8}, "season must be shorter than the context_length"),
        ({"value": "lode"}, "no column 'lode': did you mean 'load'"),
        ({"context_length": 50}, r"in train has 3 windows of 53 steps \(.*\), but 2 shots . 2 queries need 4"),
        ({"stride": 1, "context_length": 54}, "2 shots . 2 queries . a gap of 2 need 6"),
        ({"time": "meter", "series": "hour"}, "holds words"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_points(tmp_path / "t.parquet", **options)


def test_a_time_that_comes_twice_is_a_bad_row(tmp_path):
    frame = points()
    double = pl.concat([frame, frame[100:102]])
    double.write_csv(tmp_path / "t.csv")
    options = {"time": "hour", "series": "meter", "value": "load", **SIZES}
    with pytest.raises(ValueError, match="line 1802, column 'hour': '40' is there twice in one series"):
        series(tmp_path / "t.csv", **options)
    assert sum(series(tmp_path / "t.csv", **options, bad_rows="drop").dropped.values()) == 2
    wide = points().pivot("meter", index="hour", values="load")
    pl.concat([wide, wide[3:4]]).write_csv(tmp_path / "wide.csv")
    with pytest.raises(ValueError, match="line 62, column 'hour': '3' is there twice"):
        series(tmp_path / "wide.csv", time="hour", **SIZES)


FIELDS = st.sampled_from(["a", "b", "", "1", "2", "3", "2.5", "é", "inf", "NA", "2024-01-01", '"', "1,0", "true"])
FILES = st.lists(st.lists(FIELDS, min_size=3, max_size=4).map(",".join), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, st.sampled_from(["error", "drop"]))
def test_any_file_gives_tasks_or_a_sentence(tmp_path, lines, bad_rows):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["g,x,y", *lines]))
    try:
        source = series(
            path,
            time="x",
            series="g",
            value="y",
            context_length=2,
            horizon=1,
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
name: load
source: {{kind: series, path: load.parquet, series: meter, time: hour, value: load, {options},
          context_length: 8, horizon: 3, shots: 2, queries: 2, split: {{ratio: [0.6, 0.2, 0.2]}}}}
model: {{kind: mlp, hidden: [8]}}
learner: {{kind: maml, inner_lr: 0.01, steps: 2}}
train: {{steps_per_round: 5, tasks_per_step: 4, mode: vmap}}
target: mase <= 0.01
budget: {{rounds: 1}}
evaluate: {{num_val_tasks: 4, num_test_tasks: 4, shots: []}}
baselines: {{names: [support_mean], num_test_tasks: 4}}
"""


@pytest.mark.parametrize("options", ["covariates: [warm]", "scale: global"])
def test_a_run_forecasts_a_new_series_in_its_own_units(tmp_path, monkeypatch, command, options):
    monkeypatch.chdir(tmp_path)

    points().write_parquet("load.parquet")
    Path("run.yaml").write_text(RUN.format(options=options))
    assert "report:" in command("run", "run.yaml", "--out", "run")
    report = json.loads(Path("run/report.json").read_text())
    assert set(report["test"]) == {"loss", "mase", "mse"}
    Path("load.parquet").unlink()
    own = points(1, 20).with_columns(pl.col("load") + 50_000)
    own.drop("meter").write_csv("own.csv")
    assert "adapted to 4 examples" in command("adapt", "run", "--support", "own.csv", "--out", "state")
    rows = list(csv.DictReader(io.StringIO(command("predict", "run", "--state", "state", "--inputs", "own.csv"))))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert all(np.isfinite(float(row["load"])) for row in rows)
    if "warm" in options:  # scaled by the support: a forecast is near the series, wherever that lies
        assert all(abs(float(row["load"]) - 50_010) < 100 for row in rows)
    own[:5].drop("meter").write_csv("short.csv")
    assert "has 5 values of the series; 11 are needed" in command(
        "adapt", "run", "--support", "short.csv", "--out", "s"
    )
    pl.concat([own, own]).drop("meter").write_csv("two.csv")
    assert "is there twice" in command("adapt", "run", "--support", "two.csv", "--out", "s")
