"""Tables in memory and results of queries are the same tables as files with the same content."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
import yaml

from kshot.app.in_memory import as_text
from kshot.data.tables.frames import is_path, keep, of_memory
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading
from kshot.sources import ratings, series, table, text
from kshot.types import tree_leaves

COLUMNS = {
    "shop": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] * 12,
    "visitors": [None if i % 11 == 0 else i % 17 for i in range(120)],
    "open": [i % 3 == 0 for i in range(120)],
    "day": [dt.date(2026, 1, 1) + dt.timedelta(days=i) for i in range(120)],
    "kind": ["east" if i % 2 else "west" for i in range(120)],
    "sales": [0.5 * i + i % 7 for i in range(120)],
}


def pandas_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: list(values) for name, values in COLUMNS.items()})
    return frame.assign(day=pandas.to_datetime(frame["day"]), kind=frame["kind"].astype("category"))


def pandas_with_missing_values_of_its_own():
    frame = pandas_frame()
    return frame.assign(visitors=frame["visitors"].astype("Int64"), open=frame["open"].astype("boolean"))


def pandas_of_arrow():
    pytest.importorskip("pyarrow")
    return pandas_frame().convert_dtypes(dtype_backend="pyarrow")


def arrow_table():
    return pytest.importorskip("pyarrow").table(COLUMNS)


FORMS = {
    "dict": lambda: COLUMNS,
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars, lazy": lambda: pl.LazyFrame(COLUMNS),
    "pandas": pandas_frame,
    "pandas, nullable": pandas_with_missing_values_of_its_own,
    "pandas, arrow": pandas_of_arrow,
    "pyarrow": arrow_table,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_in_memory_gives_the_tasks_of_the_same_file(form, tmp_path):
    pl.DataFrame(COLUMNS).write_parquet(tmp_path / "shops.parquet")
    options = {"group": "shop", "target": "sales", "shots": 4, "queries": 6}
    expected = table(tmp_path / "shops.parquet", **options)
    found = table(FORMS[form](), **options)
    assert found.understood == expected.understood
    for index in range(3):
        for one, other in zip(tree_leaves(found.task("train", index)), tree_leaves(expected.task("train", index))):
            assert one.equal(other)


def test_arrays_are_tables(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 3))
    rows[7, 1] = np.nan
    frame = open_table(rows).frame
    assert frame.columns == ["x0", "x1", "x2"]
    assert frame["x1"].null_count() == 1
    named = np.array([(1, "a"), (2, "b")], [("x", "i8"), ("y", "U1")])
    assert open_table(named).frame.to_dict(as_series=False) == {"x": [1, 2], "y": ["a", "b"]}


def test_a_data_set_of_hugging_face_has_the_names_of_its_labels():
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    found = of_memory(datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features))
    assert found.frame["label"].to_list() == ["yes", "no"]
    with pytest.raises(ValueError, match="give one, as in data"):
        of_memory(datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1]})}))


def test_texts_series_and_ratings_are_read_from_memory():
    words = {"text": [f"{word} {i}" for word in ("hi", "bye") for i in range(9)], "label": ["a"] * 9 + ["b"] * 9}
    options = {"ways": 2, "shots": 1, "queries": 3, "split": {"ratio": [1, 0, 0]}, "width": 64}
    assert text(pl.DataFrame(words), **options).task("train", 0).query.targets.shape == (6, 2)
    hours = {"meter": np.repeat(range(9), 60), "hour": np.tile(range(60), 9), "load": np.arange(540.0) % 24}
    columns = {"series": "meter", "time": "hour", "value": "load"}
    source = series(pl.DataFrame(hours), **columns, context_length=12, horizon=4, shots=2, queries=2)
    assert source.task("train", 0).support.inputs.shape == (2, 12, 1)
    stars = {"user": np.repeat(range(30), 20), "item": np.tile(range(20), 30), "rating": np.arange(600) % 5 + 1}
    assert ratings(pl.DataFrame(stars), shots=5, queries=5).task("train", 0).support.weight.shape == (5,)


def test_errors_name_the_kind_of_table_and_the_row():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1.0, np.inf], "y": [1, 2]}, index=pandas.Index(["a", "b"], name="shop"))
    opened = open_table(frame)
    opened.numbers("x")
    with pytest.raises(ValueError, match=r"pandas DataFrame with the index 'shop', row 2, column 'x': inf is not fin"):
        opened.settle("error")
    with pytest.raises(ValueError, match="pandas DataFrame with the index 'shop' has no column 'shop'"):
        open_table(frame, columns=["shop"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "got builtins.int"),
        ({"x": [1, 2], "y": [1]}, "different lengths"),
        (np.zeros(3), "two axes"),
        (np.zeros((0, 2)), "has no rows"),
        ({}, "got builtins.dict"),
    ],
)
def test_what_is_no_table_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        open_table(data)


def test_columns_of_several_levels_or_of_one_name_are_refused():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="several levels"):
        of_memory(pandas.DataFrame({("a", "b"): [1]}))
    with pytest.raises(ValueError, match="two columns are named 'a'"):
        of_memory(pandas.DataFrame([[1, 2]], columns=["a", "a"]))


def test_values_of_several_types_are_words_and_numbers_stay_numbers():
    frame = of_memory({"mixed": [1, "a", None], "numbers": [1, 2.5, None], "whole": [1, None, 3]}).frame
    assert frame["mixed"].to_list() == ["1", "a", None]
    assert frame["numbers"].to_list() == [1.0, 2.5, None]
    assert frame.schema["whole"].is_integer()


def test_a_kept_table_is_found_by_its_content():
    name = keep({"x": [1, 2, 3]})
    assert name == keep(pl.DataFrame({"x": [1, 2, 3]}))
    assert name != keep({"x": [1, 2, 4]})
    assert open_table(name).frame["x"].to_list() == [1, 2, 3]
    with pytest.raises(ValueError, match="give the same table first"):
        open_table("memory:0123456789abcdef")


@pytest.fixture
def database(tmp_path):
    from sqlalchemy import create_engine, text

    url = f"sqlite:///{tmp_path / 'shop.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("create table sales (shop text, visitors integer, sales real)"))
        for i in range(120):
            row = {"shop": f"shop {i % 10}", "visitors": None if i % 11 == 0 else i % 17, "sales": 0.5 * i}
            connection.execute(text("insert into sales values (:shop, :visitors, :sales)"), row)
    engine.dispose()
    return url


def test_a_query_is_a_table(database, monkeypatch):
    query = "select shop, visitors, sales from sales where sales >= 5"
    opened = open_table(database, Reading(query=query))
    assert opened.frame.height == 110
    assert opened.numbers("sales").min() == 5
    assert np.isnan(opened.numbers("visitors")).sum() == 10
    assert opened.reading.query is None  # a file of new rows needs none
    monkeypatch.setenv("SALES", database)
    options = {"group": "shop", "target": "sales", "shots": 4, "queries": 4, "reading": {"query": query}}
    assert table("$SALES", **options).task("train", 0).support.inputs.shape[0] == 4


def test_a_query_that_cannot_be_answered_is_an_error_in_words(database, tmp_path):
    with pytest.raises(ValueError, match="give the rows to read by a query"):
        open_table(database)
    with pytest.raises(ValueError, match="no such table: stores"):
        open_table(database, Reading(query="select * from stores"))
    with pytest.raises(ValueError, match="there is no file"):
        open_table(f"sqlite:///{tmp_path}/other.db", Reading(query="select 1"))
    assert not (tmp_path / "other.db").exists()
    with pytest.raises(ValueError, match="two columns are named 'x'"):
        open_table(database, Reading(query="select 1 as x, 2 as x"))
    with pytest.raises(ValueError, match="the environment variable is not set"):
        open_table("$KSHOT_NO_SUCH_VARIABLE", Reading(query="select 1"))


def test_a_password_is_neither_written_down_nor_shown(monkeypatch):
    url = "postgresql://me:secret@localhost/shop"
    with pytest.raises(ValueError, match="put the URL into an environment variable") as caught:
        open_table(url, Reading(query="select 1"))
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("SALES", url)
    with pytest.raises(ValueError, match="postgresql database shop") as caught:
        open_table("$SALES", Reading(query="select 1"))  # no driver, or no server
    assert "secret" not in str(caught.value)


def test_paths_are_told_from_other_data(tmp_path):
    assert all(map(is_path, ["sales.csv", tmp_path, "C:\\data\\sales.csv"]))
    assert not any(map(is_path, ["sqlite:///x.db", "$SALES", "memory:0", {"x": [1]}, np.eye(2)]))


@pytest.mark.parametrize(
    "path", ["$SALES", "postgresql://host/sales", "sales.csv", ["train.safetensors", "val.safetensors"]]
)
def test_what_a_run_file_can_hold_stays_as_it_is(path):
    assert yaml.safe_load(as_text({"source": {"kind": "table", "path": path}}))["source"]["path"] == path
