"""Numbers and dates as people write them: the right value where one reading is possible, else a sentence."""

import random
from datetime import UTC, datetime

import numpy as np
import pytest

from kshot.data.tables.columns import describe_raw, read_columns
from kshot.data.tables.moments import extremes, moments
from kshot.data.tables.numerals import Style
from kshot.data.tables.open import open_table


@pytest.fixture
def column(tmp_path):
    def make(values, *, delimiter=";", **others):
        columns = {"id": [f"id {number}" for number in range(len(values))], "x": values, **others}
        rows = [delimiter.join(row) for row in zip(*columns.values())]
        path = tmp_path / "t.csv"
        path.write_text("\n".join([delimiter.join(columns), *rows]))
        return open_table(path)

    return make


def written(value, style):
    """A number as a person of some country writes it, by Python's own formatting."""
    text = f"{abs(value):,.2f}"
    if style.decimal == ",":
        text = text.translate(str.maketrans(",.", ".,"))
    sign = "-" if value < 0 else ""
    return str(style).replace("1,234.5", sign + text).replace("1.234,5", sign + text)


STYLES = [
    "1,234.5",
    "1.234,5",
    "$1,234.5",
    "1.234,5 €",
    "1,234.5%",
    "1.234,5%",
    "CHF 1,234.5",
    "1,234.5 kg",
    "£1,234.5",
]


@pytest.mark.parametrize("text", STYLES)
def test_numbers_written_in_a_style_are_read_back(column, text):
    style = Style.parse(text)
    assert str(style) == text
    draw = random.Random(text)
    values = [round(draw.uniform(-1, 1) * 10 ** draw.randint(0, 6), 2) for _ in range(200)]
    table = column([written(value, style) for value in values])
    assert table.kind("x") == text
    assert np.allclose(table.numbers("x"), values, rtol=0, atol=1e-9)
    assert np.allclose(table.numbers("x", text), values, rtol=0, atol=1e-9)
    assert table.good.all()


@pytest.mark.parametrize(
    ("words", "kind", "values"),
    [
        (["10,849.00", "7.00"], "1,234.5", [10849, 7]),
        (["$1,200", "$7", "8"], "$1,234.5", [1200, 7, 8]),
        (["1.200,50 €", "7 €"], "1.234,5 €", [1200.5, 7]),
        (["12.3%", "5 %", "100%"], "1,234.5%", [12.3, 5, 100]),
        (["(5.0)", "7.5", "−3"], "1,234.5", [-5, 7.5, -3]),
        (["($1,200.10)", "-$5", "$-6"], "$1,234.5", [-1200.1, -5, -6]),
        (["5,0", "7,25"], "1.234,5", [5, 7.25]),
        (["1 234,5", "2\u202f000,25", "7"], "1.234,5", [1234.5, 2000.25, 7]),
        (["1'234.50", "900"], "1,234.5", [1234.5, 900]),
        (["12,34,567.5", "1,00,000"], "1,234.5", [1234567.5, 100000]),
        (["1,234,567", "1,000"], "1,234.5", [1234567, 1000]),
        (["950.25", "1,200", "3"], "1,234.5", [950.25, 1200, 3]),
        (["5 km", "12.5 km"], "1,234.5 km", [5, 12.5]),
        (["1e3", "2.5", "-7"], "number", [1000, 2.5, -7]),
    ],
)
def test_values_that_have_one_reading(column, words, kind, values):
    table = column(words)
    assert table.kind("x") == kind
    assert table.numbers("x").tolist() == pytest.approx(values)
    assert not table.faults


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["5,012", "7,250"], "whose comma may be a decimal comma or group thousands"),
        (["1.200 €", "7.250 €"], "whose point may be a decimal point or group thousands"),
        (["1,5", "1.5", "2,25", "2.25"], "some with a decimal point and some with a decimal comma"),
        (["$5", "7 €", "£3"], r"in several currencies, \$ and £ and €"),
        (["12%", "0.13", "14%"], "some in percent and some not, such as '0.13'"),
    ],
)
def test_values_that_have_two_readings_are_refused(column, words, why):
    with pytest.raises(ValueError, match=rf"column 'x' holds numbers, .*{why}.*kinds: {{x: \"1,234.5\"}}"):
        column(words).kind("x")


def test_another_column_tells_the_decimal_sign(column):
    words = ["5,012", "7,250", "1"]
    assert column(words, y=["1,5", "2,25", "3"]).numbers("x").tolist() == [5.012, 7.25, 1]
    assert column(words, y=["1.5", "2.25", "3"]).numbers("x").tolist() == [5012, 7250, 1]
    with pytest.raises(ValueError, match="whose point may be"):
        column(["5.012", "7.250", "1"], y=["1,5", "2,25", "3"]).kind("x")
    assert column(["5.012", "7.250", "1"], y=["a", "b", "c"]).numbers("x").tolist() == [5.012, 7.25, 1]


@pytest.mark.parametrize(
    "words",
    [["sun", "rain"], ["1.2.3", "1.2.4"], ["10.0.0.1", "10.0.0.2"], ["s12", "s13"], ["555 123 456", "555 987 654"],
     ["1st", "2nd"], ["10:30", "11:45"], ["3 rooms", "1 room"], ["12-14", "15-18"], ["A1", "B2"]],
)  # fmt: skip
def test_words_stay_words(column, words):
    assert column(words).kind("x") == "category"


def test_a_typed_column_keeps_its_plain_numbers_as_words(tmp_path):
    import polars as pl

    pl.DataFrame({"zip": ["01234", "99999"], "price": ["$1,200", "$7"]}).write_parquet(tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert [table.kind(name) for name in ("zip", "price")] == ["category", "$1,234.5"]


def seconds(*days):
    return [datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() for day in days]


@pytest.mark.parametrize(
    ("words", "kind", "days"),
    [
        (["2024-01-05", "05/13/2024", "13.5.2024"], "%Y-%m-%d | %m/%d/%Y | %d.%m.%Y",
         ["2024-01-05", "2024-05-13", "2024-05-13"]),
        (["25/01/2024", "02/03/2024"], "%d/%m/%Y", ["2024-01-25", "2024-03-02"]),
        (["01/25/2024 13:45", "02/03/2024"], "%m/%d/%Y | %m/%d/%Y %H:%M", ["2024-01-25T13:45", "2024-02-03"]),
        (["25.01.24", "02.03.24"], "%d.%m.%y", ["2024-01-25", "2024-03-02"]),
        (["5 Jan 2024", "6 February 2024"], "%d %B %Y", ["2024-01-05", "2024-02-06"]),
        (["Jan 5, 2024", "March 7, 2024"], "%B %d, %Y", ["2024-01-05", "2024-03-07"]),
        (["5-Jan-2024", "2024/01/06"], "%d-%B-%Y | %Y/%m/%d", ["2024-01-05", "2024-01-06"]),
    ],
)  # fmt: skip
def test_dates_in_several_formats(column, words, kind, days):
    table = column(words)
    found = table.kind("x")
    assert set(found.split(" | ")) == set(kind.split(" | "))
    (raw,) = read_columns(table, {"x": found}).values()
    assert raw.values.tolist() == seconds(*days)
    assert not table.faults


@pytest.mark.parametrize(
    ("words", "why"),
    [(["05/06/2024", "07/08/2024"], "whose day and month are ambiguous"),
     (["13/06/2024", "07/18/2024"], "such as '13/06/2024' and '07/18/2024', in which day and month change places")],
)  # fmt: skip
def test_dates_that_have_two_readings_are_refused(column, words, why):
    with pytest.raises(ValueError, match=f"column 'x' holds dates .*{why}"):
        column(words).kind("x")


def test_a_typing_error_among_dates_is_a_fault_of_its_row(column):
    table = column([f"2024-01-{day:02}" for day in range(1, 31)] + ["yesterday"])
    assert table.kind("x") == "date"
    assert np.isnan(table.seconds("x")).nonzero()[0].tolist() == [30]
    assert "line 32, column 'x': 'yesterday' is not an ISO date" in table.faults[0]


def test_what_is_said_of_a_column(column):
    table = column(["$1,200", "", "$7"], y=["a", "b", "a"], z=["25/01/2024", "", ""])
    raw = read_columns(table, {name: table.kind(name) for name in "xyz"})
    said = {name: describe_raw(column) for name, column in raw.items()}
    assert said == {
        "x": "number, money in $, 1 missing",
        "y": "category, 2 different words",
        "z": "date, written %d/%m/%Y, 2 missing",
    }


def test_one_extreme_value_has_no_part_in_the_scale():
    random = np.random.default_rng(0)
    values = random.normal(5, 2, 500)
    mean, std = values.mean(), values.std()
    spoilt = np.append(values, [1e12])
    everywhere = np.ones(501, bool)
    assert extremes(spoilt, everywhere).nonzero()[0].tolist() == [500]
    assert moments(spoilt, everywhere) == pytest.approx((mean, std))


@pytest.mark.parametrize("draw", ["lognormal", "cauchy", "exponential", "rare"])
def test_heavy_tails_are_no_errors(draw):
    for seed in range(50):
        random = np.random.default_rng(seed)
        values = {
            "lognormal": lambda r: np.exp(r.normal(0, 2, 400)),
            "cauchy": lambda r: np.clip(r.standard_cauchy(400), -30, 30),
            "exponential": lambda r: r.exponential(size=400),
            "rare": lambda r: np.eye(1, 400)[0] * 100,  # all 0 but one: there is no other scale
        }[draw](random)
        assert not extremes(values, np.ones(400, bool)).any()
