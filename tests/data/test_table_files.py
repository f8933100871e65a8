"""Files of tables, right and wrong: each gives a table or a sentence, and never anything else."""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kshot.data.tables import csv
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading

CSV = "store,price,open,day\na,1.5,true,2024-01-02\nb,,false,2024-02-29\n"


@pytest.fixture
def write(tmp_path):
    def make(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def test_columns_are_what_they_hold(write):
    table = open_table(write(CSV))
    assert [table.kind(name) for name in table.frame.columns] == ["category", "number", "boolean", "date"]
    assert table.labels("store").to_list() == ["a", "b"]
    assert np.array_equal(table.numbers("price"), [1.5, np.nan], equal_nan=True)
    assert table.booleans("open").tolist() == [1.0, 0.0]
    assert table.seconds("day").tolist() == [np.datetime64(d, "s").astype(float) for d in ("2024-01-02", "2024-02-29")]
    assert table.settle("error").all()


@pytest.mark.parametrize("delimiter", list(csv.DELIMITERS))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_delimiter_and_encoding_are_found(write, delimiter, encoding):
    text = CSV.replace(",", delimiter).replace("a", "á")
    table = open_table(write(text.encode(encoding)))
    assert table.frame.columns == ["store".replace("a", "á"), "price", "open", "dáy"]
    assert table.frame["store"].to_list() == ["á", "b"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_blank_lines_and_lines_within_quotes_are_counted(write, end):
    text = end.join(["a,b", "1,x", "", '2,"two', 'lines, ""quoted"""', "3,z", "4", ""])
    table = open_table(write(text))
    assert table.labels("a").to_list() == ["1", "2", "3"]
    assert table.labels("b")[1].splitlines() == ["two", 'lines, "quoted"']
    assert [table.place(row).split("line ")[1] for row in range(3)] == ["2", "4", "6"]
    assert table.faults == [f"{table.path}, line 7: 1 value where the header names 2"]
    assert table.settle("drop").sum() == 3
    assert table.dropped["rows"] == 1


def test_the_same_table_in_every_format_has_the_same_columns(write, tmp_path):
    frame = pl.DataFrame(
        {"id": [7, 8, None], "x": [0.5, None, 2.0], "flag": [True, None, False], "word": ["a", None, "ü"]}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_ndjson(tmp_path / "t.ndjson")
    frame.write_csv(tmp_path / "t.csv")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    for name in ("t.parquet", "t.ndjson", "t.csv", "t.tsv"):
        table = open_table(tmp_path / name)
        assert [table.kind(column) for column in frame.columns] == ["number", "number", "boolean", "category"]
        assert table.labels("id").to_list() == ["7", "8", None]
        assert table.labels("word").to_list() == ["a", None, "ü"]
        assert np.array_equal(table.numbers("x"), [0.5, np.nan, 2.0], equal_nan=True)
        assert np.array_equal(table.booleans("flag"), [1.0, np.nan, 0.0], equal_nan=True)


def test_json_and_compressed_texts(write, tmp_path):
    rows = [{"store": "a", "price": 1.5, "open": True}, {"store": "b", "price": None, "open": False, "more": 1}]
    for name, content in (("rows.json", rows), ("columns.json", {"store": ["a", "b"], "price": [1.5, None]})):
        table = open_table(write(json.dumps(content), name))
        assert [table.kind(column) for column in ("store", "price")] == ["category", "number"]
        assert np.array_equal(table.numbers("price"), [1.5, np.nan], equal_nan=True)
        assert table.place(1).endswith("row 2")
    table = open_table(write(gzip.compress(CSV.encode()), "t.csv.gz"))
    assert table.frame.equals(open_table(write(CSV)).frame)
    packed = write(gzip.compress(CSV.replace(",", "\t").encode()), "t.tsv.gz")
    assert open_table(packed).frame.equals(open_table(write(CSV)).frame)
    for name, content, sentence in (
        ("x.json", "[1, 2]", "must hold a list of objects"),
        ("y.json", '{"a": [1], "b": [1, 2]}', "its columns have different lengths"),
        ("z.csv.gz", "a,b", "cannot be unpacked"),
        ("p.parquet.gz", "a,b", "unpack it; only texts"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_table(write(content, name))


def test_zstd_and_excel_are_read_where_their_packages_are(write, tmp_path):
    missing = [name for name in ("zstandard", "fastexcel") if find_spec(name) is None]
    frame = open_table(write(CSV)).frame
    if "zstandard" in missing:
        with pytest.raises(ValueError, match=r"zstd needs the package zstandard: pip install 'kshot\[files\]'"):
            open_table(write(b"..", "t.csv.zst"))
    else:
        import zstandard

        assert open_table(write(zstandard.compress(CSV.encode()), "t.csv.zst")).frame.equals(frame)
    if "fastexcel" in missing:
        with pytest.raises(ValueError, match=r"Excel files need the package fastexcel: pip install 'kshot\[files\]'"):
            open_table(write(b"..", "t.xlsx"))
        return
    with pytest.raises(ValueError, match="cannot be read"):
        open_table(write(b"..", "bad.xlsx"))
    written = pl.DataFrame({"store": ["a", "b"], "price": [1.5, None], "share": ["12.5%", "3%"]})
    written.write_excel(tmp_path / "t.xlsx")
    table = open_table(tmp_path / "t.xlsx")
    assert [table.kind(name) for name in ("store", "price", "share")] == ["category", "number", "1,234.5%"]
    assert np.array_equal(table.numbers("price"), [1.5, np.nan], equal_nan=True)


def test_a_whole_number_is_the_same_word_however_it_is_stored(tmp_path):
    for number, values in enumerate(([1, 2], [1.0, 2.0], ["1", " 2"])):
        pl.DataFrame({"id": values}).write_parquet(tmp_path / f"{number}.parquet")
        assert open_table(tmp_path / f"{number}.parquet").labels("id").to_list() == ["1", "2"]


@pytest.mark.parametrize(
    ("decimal", "words", "numbers"),
    [
        (None, ["1.5", "-2e3", " 7 "], [1.5, -2000, 7]),
        (",", ["1,5", "1.234,5", "-12.345.678", "1 234,5", "3"], [1.5, 1234.5, -12345678, 1234.5, 3]),
        (".", ["1.5", "1,234.5", "-12,345,678", "1'234", "3"], [1.5, 1234.5, -12345678, 1234, 3]),
    ],
)
def test_decimal_signs_and_groups_of_thousands(write, decimal, words, numbers):
    table = open_table(write("x;y\n" + "".join(f"{word};0\n" for word in words)), Reading(decimal=decimal))
    assert table.kind("x") == "number"
    assert table.numbers("x").tolist() == numbers
    assert table.settle("error").all()


def test_dates_are_read_as_they_are_written(write):
    words = ["2024-05-31T13:45:00Z", "2024-05-31 13:45:00", "2024-05-31T15:45:00.000+02:00", "2024-05-31 13:45"]
    table = open_table(write("t,d\n" + "".join(f"{word},31/05/2024\n" for word in words)))
    assert table.kind("t") == "date"
    assert set(table.seconds("t").tolist()) == {float(np.datetime64("2024-05-31T13:45", "s").astype(int))}
    assert set(table.seconds("d", "%d/%m/%Y").tolist()) == {float(np.datetime64("2024-05-31", "s").astype(int))}
    assert table.kind("d") == "%d/%m/%Y"
    unclear = open_table(write("d\n05/06/2024\n07/08/2024\n"))
    with pytest.raises(ValueError, match='day and month are ambiguous.*kinds: {d: "%d/%m/%Y"}'):
        unclear.kind("d")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,b\n", "has a header but no rows"),
        (b"a,a\n1,2\n", "columns 1 and 2 are both named 'a'"),
        (b"a,,c\n1,2,3\n", "column 2 has no name"),
        (b"1,2\n3,4\n", r"line 1: the header holds numbers only \(1,2\)"),
        (b"caf\xe9,x\n1,2\n", r"line 1: byte 0xe9 is not UTF-8 \(in latin-1 it is 'é'\)"),
        (b"a,b\n1,2\ncaf\xe9,x\n", "line 3: byte 0xe9"),
        (b"a,b\n1,\x00\n", "line 2: contains a zero byte"),
        (b"\xff\xfea", "is not utf-16"),
        (b"PK\x03\x04..", "Excel workbook"),
        (b"\x1f\x8b..", "compressed by gzip"),
        (b'a,"b\n1,2\n', "line 1: unbalanced quotes in the header"),
    ],
)  # fmt: skip
def test_files_that_are_no_tables(write, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_table(write(content))


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "sales.csv").write_text(CSV)
    for name, sentence in (
        ("sale.csv", "there is no file .*did you mean sales.csv"),
        ("sales.xlsx", "there is no file"),
        ("", "is a folder"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_table(tmp_path / name)
    (tmp_path / "sales.doc").write_text("")
    with pytest.raises(ValueError, match="suffix '.doc' is not known"):
        open_table(tmp_path / "sales.doc")


def test_a_missing_column_gets_the_nearest_name(write):
    for content, name in ((CSV, "t.csv"), ('{"store": 1}\n', "t.jsonl")):
        with pytest.raises(ValueError, match="no column 'shore': did you mean 'store'"):
            open_table(write(content, name), columns=["shore"])
    with pytest.raises(ValueError, match="looks like several separated by a bar: set reading.delimiter"):
        open_table(write("a|b\n1|2\n"), Reading(delimiter=","), columns=["a"])


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        ("a,b\n1,2\n3\n4,5,6\n", ["line 3: 1 value where the header names 2", "line 4: 3 values where"]),
        ('a,b\n1,2\n3,5" disk\n', ["line 3: unbalanced quotes"]),
        ('a,b\n1,"2\n3,4\n', ["line 2: unbalanced quotes"]),
    ],
)
def test_lines_that_are_no_rows_are_listed_and_left_out_only_where_allowed(write, content, sentences):
    table = open_table(write(content))
    assert all(expected in told for expected, told in zip(sentences, table.faults, strict=True))
    with pytest.raises(ValueError, match="bad_rows: drop"):
        table.settle("error")
    assert table.settle("drop").sum() == len(table) == content.count("\n") - 1 - len(sentences)


def test_values_that_are_no_numbers_are_listed_with_line_and_column(write):
    rows = "".join(f"{n},{n}.5\n" for n in range(40))
    table = open_table(write(f'a,b\n{rows}x,1\n2,inf\n3,"1,5"\n'))
    assert table.kind("a") == table.kind("b") == "number"
    assert np.isnan(table.numbers("a")).nonzero()[0].tolist() == [40]
    assert np.isnan(table.numbers("b")).nonzero()[0].tolist() == [41, 42]
    told = "\n".join(table.faults)
    assert "line 42, column 'a': 'x' is not a number" in told
    assert "line 43, column 'b': inf is not finite" in told
    assert "line 44, column 'b': '1,5' is not a number; correct it" in told
    with pytest.raises(ValueError, match="bad rows in all: 3 of 43"):
        table.settle("error")
    assert np.flatnonzero(~table.settle("drop")).tolist() == [40, 41, 42]


def test_ndjson_lines_that_are_no_objects(write):
    table = open_table(write('{"a": 1, "b": "x"}\n\n{"a": \n[1]\n{"a": 2.5}\n', "t.ndjson"))
    assert np.array_equal(table.numbers("a"), [1, 2.5])
    assert table.labels("b").to_list() == ["x", None]
    assert [told.split(": ")[0].split("line ")[1] for told in table.faults] == ["3", "4"]
    assert table.place(1).endswith("line 5")
    mixed = open_table(write('{"a": 1}\n{"a": "x"}\n{"a": true}\n', "m.ndjson"))
    assert mixed.kind("a") == "category"
    assert mixed.labels("a").to_list()[:2] == ["1", "x"]


def test_nested_columns_are_named(write):
    table = open_table(write('{"a": [1, 2]}\n', "t.ndjson"))
    for call in (table.kind, table.numbers, table.labels):
        with pytest.raises(ValueError, match="column 'a' holds List"):
            call("a")


def use(path: Path) -> None:
    """All that a source asks of a table; what is said where it cannot be had names the file."""
    try:
        ask(path)
    except ValueError as error:
        sentence = str(error)
    else:
        sentence = str(path)
    assert str(path) in sentence


def ask(path: Path) -> None:
    table = open_table(path)
    for name in table.frame.columns:
        kind = table.kind(name)
        readers = {"number": table.numbers, "boolean": table.booleans, "date": table.seconds, "category": table.labels}
        written = table.seconds if "%d" in kind or "%Y" in kind else table.numbers  # a style, such as "1.234,5 €"
        values = readers.get(kind, written)(name)
        assert len(values) == len(table)
        if kind != "category":
            assert not np.isinf(values).any()
    keep = table.settle("drop")
    assert keep.any()
    assert all(str(path) in told for told in table.faults)


PLAIN = ["1", "1.5", "-2", "1,5", "1e999", "2024-01-02", "03/04/2020", "true", "", "NA", "NaN", "inf", "x", "é"]
ODD = ['"', '""', '"a,b"', "\t", ";", "|", " ", "\r", "[1]", "{", "}", '{"a":1}']
WORDS = st.sampled_from([*PLAIN, *ODD])
LINES = st.lists(st.lists(WORDS, max_size=4).map(",".join), max_size=6).map("\n".join).map(str.encode)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), LINES), st.sampled_from(["t.csv", "t.tsv", "t.ndjson", "t.parquet"]))
@example(b"\x01\n,0", "t.tsv")  # a number with a decimal comma
def test_any_bytes_give_a_table_or_a_sentence(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    use(tmp_path / name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=3)), max_size=4))
def test_a_damaged_parquet_file_gives_a_table_or_a_sentence(tmp_path, damage):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": range(50), "b": ["x", "y"] * 25}).write_parquet(path)
    content = bytearray(path.read_bytes())
    for at, piece in damage:
        content[at % len(content) : at % len(content) + len(piece)] = piece
    path.write_bytes(content)
    use(path)


KEYS = st.sampled_from("ab")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=2) | JSON, min_size=1, max_size=4))
def test_any_json_lines_give_a_table_or_a_sentence(tmp_path, rows):
    path = tmp_path / "t.ndjson"
    path.write_text("\n".join(map(json.dumps, rows)))
    use(path)


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), st.integers(1, 40))
def test_what_pythons_csv_module_writes_is_read_back(tmp_path, rows, chunk):
    """The records are found alike whatever the size of the pieces that the file is looked at in."""
    import csv as stdlib_csv

    path = tmp_path / "t.csv"
    rows = [(left.replace("\r", ""), right.replace("\r", "") + "|") for left, right in rows]
    with path.open("w", newline="") as file:
        stdlib_csv.writer(file, quoting=stdlib_csv.QUOTE_ALL, lineterminator="\n").writerows([("a", "b"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv, "CHUNK", chunk)
        table = open_table(path, Reading(delimiter=","))
    assert not table.faults
    assert table.frame.rows() == rows
    assert [table.place(row) for row in range(len(rows))] == [
        f"{path}, line {2 + sum(cell.count(chr(10)) + 0 for other in rows[:row] for cell in other) + row}"
        for row in range(len(rows))
    ]
