"""Tasks from Hugging Face datasets: folders that `datasets` itself wrote, see tests/hf_datasets/README.md."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.sources import corpus, from_hf, images, text

WRITTEN = Path(__file__).parents[1] / "hf_datasets"
NAMES = ("greet", "leave", "thank", "ask")
ALL = {"ratio": [1, 0, 0]}
OPTIONS = {"ways": 2, "shots": 1, "queries": 1, "split": ALL}


@pytest.fixture
def copy(tmp_path):
    """A data set that may be damaged."""

    def make(name: str) -> Path:
        return shutil.copytree(WRITTEN / name, tmp_path / name)

    return make


def sentences(seed: int, count: int) -> list[str]:
    return [f"{NAMES[i % 4]} number {i} {seed}" for i in range(count)]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dict", {}, [*sentences(0, 8), *sentences(1, 8), *sentences(2, 8)]),
        ("dict", {"parts": ["validation"]}, sentences(1, 8)),
        ("dict/test", {}, sentences(2, 8)),
        ("sharded", {}, sentences(3, 10)),
        ("hub", {}, [*sentences(2, 8), *sentences(0, 8)]),
        ("hub", {"parts": ["train"]}, sentences(0, 8)),
    ],
)
def test_what_datasets_wrote_is_read_whole_in_order_and_by_its_names(name, options, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it would fail
    source = from_hf(WRITTEN / name, text, **OPTIONS, **options)
    assert source.texts == expected
    assert source.class_names == {"train": tuple(sorted(NAMES))}
    for label, rows in source.classes("train").items():
        assert all(source.texts[row].startswith(label) for row in rows)


def test_images_keep_their_pixels_and_their_class_names():
    for _ in range(2):  # made, then found in the cache
        source = from_hf(WRITTEN / "images", images, **OPTIONS, size=4, colour="grey")
        assert source.class_names == {"train": ("a", "b")}
        grey = {
            label: sorted((source.examples.take(rows)[:, 0, 0, 0] * 255).round().int().tolist())
            for label, rows in source.classes("train").items()
        }
        assert grey == {"a": [0, 40, 80], "b": [20, 60, 100]}


def test_parts_can_be_the_splits(copy):
    folder = copy("dict")
    with pytest.raises(ValueError, match="class 'ask' has rows in test and in train and in val"):
        from_hf(folder, text, **OPTIONS | {"split": {"column": "part"}})
    frame = pl.DataFrame({"text": ["a 1", "a 2", "b 1", "b 2"], "label": ["a", "a", "b", "b"]})
    made = folder.parent / "parted" / "data"
    made.mkdir(parents=True)
    frame.write_parquet(made / "train-00000-of-00001.parquet")
    frame.with_columns(label=pl.col("label") + "!").write_parquet(made / "validation-00000-of-00001.parquet")
    source = from_hf(made.parent, text, **OPTIONS | {"split": {"column": "part"}})
    assert source.class_names == {"train": ("a", "b"), "val": ("a!", "b!")}
    pooled = from_hf(made.parent, text, **OPTIONS)
    assert pooled.class_names == {"train": ("a", "a!", "b", "b!")}


def test_columns_get_the_names_that_are_looked_for(tmp_path):
    frame = pl.DataFrame(
        {
            "sentence": [f"s {i}" for i in range(8)],
            "fine": list("abcdabcd"),
            "label": list("xyxyxyxy"),
            "count": [1] * 8,
        }
    )
    frame.write_parquet(tmp_path / "train.parquet")
    source = from_hf(tmp_path, text, columns={"text": "sentence", "label": "fine"}, **OPTIONS)
    assert source.class_names["train"] == ("a", "b", "c", "d")
    by_options = from_hf(tmp_path, text, text="sentence", label="fine", **OPTIONS)
    assert by_options.texts == source.texts
    with pytest.raises(ValueError, match=r"train.parquet has no column 'kind'"):
        from_hf(tmp_path, text, columns={"label": "kind"}, **OPTIONS)


def test_a_corpus_of_authors(tmp_path):
    frame = pl.DataFrame({"author": ["ann", "bob"] * 9, "text": [f"post number {i}" for i in range(18)]})
    frame.write_ipc(tmp_path / "posts-train.arrow")  # the other form of Arrow files
    source = from_hf(tmp_path, corpus, task="author", length=8, shots=2, queries=2, split=ALL)
    assert source.group_names == {"train": ("ann", "bob")}


def test_a_changed_data_set_is_read_anew(tmp_path):
    frame = pl.DataFrame({"text": [f"t {i}" for i in range(6)], "label": list("aaabbb")})
    frame.write_parquet(tmp_path / "train.parquet")
    assert len(from_hf(tmp_path, text, **OPTIONS).texts) == 6
    pl.concat([frame, frame]).write_parquet(tmp_path / "train.parquet")
    assert len(from_hf(tmp_path, text, **OPTIONS).texts) == 12


def test_labels_that_are_held_back_are_missing(copy):
    folder = copy("hub")
    path = folder / "data" / "test-00000-of-00001.parquet"
    about = {"huggingface": json.dumps({"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}})}
    pl.DataFrame({"text": ["a", "b"], "label": [-1, 0]}).write_parquet(path, metadata=about)
    with pytest.raises(ValueError, match=rf"{folder}, row 1, column 'label': the value is missing"):
        from_hf(folder, text, **OPTIONS)
    assert from_hf(folder, text, **OPTIONS, bad_rows="drop").describe()["dropped"] == {"bad rows": 1}
    pl.DataFrame({"text": ["a", "b"], "label": [4, 0]}).write_parquet(path, metadata=about)
    with pytest.raises(ValueError, match=r"column 'label' holds 4, but has 4 names"):
        from_hf(folder, text, **OPTIONS)


def damage(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("dict", lambda f: damage(f, "dataset_dict.json", "{"), r"dataset_dict.json is not valid JSON"),
        ("dict", lambda f: damage(f, "dataset_dict.json", "[]"), r"must hold a JSON object, got '\[\]'"),
        ("dict", lambda f: damage(f, "dataset_dict.json", "{}"), r"does not list the parts"),
        ("dict", lambda f: damage(f, "dataset_dict.json", '{"splits": ["../.."]}'), r"is incomplete: .* names '../..'"),
        ("dict", lambda f: shutil.rmtree(f / "test"), r"is incomplete: its description names 'test'"),
        ("sharded", lambda f: damage(f, "state.json", '{"_data_files": 3}'), r"does not list the files"),
        ("sharded", lambda f: damage(f, "state.json", '{"_data_files": [{}]}'), r"is incomplete: .* names None"),
        (
            "sharded",
            lambda f: damage(f, "state.json", '{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}'),
            r"was saved by an old version of datasets",
        ),
        (
            "sharded",
            lambda f: (f / "data-00001-of-00002.arrow").unlink(),
            r"names 'data-00001-of-00002.arrow', which it",
        ),
        (
            "sharded",
            lambda f: damage(f, "data-00001-of-00002.arrow", "no arrow"),
            r"00001-of-00002.arrow cannot be read",
        ),
        ("hub", lambda f: damage(f / "data", "train-00000-of-00001.parquet", "x"), r"of-00001.parquet cannot be read"),
        (
            "hub",
            lambda f: shutil.copytree(f / "data", f / "german"),
            r"contains several data sets: , german; give the folder",
        ),
        ("hub", lambda f: shutil.rmtree(f / "data"), r"contains no data set: neither what save_to_disk writes"),
        (
            "hub",
            lambda f: pl.DataFrame({"text": ["a"]}).write_parquet(f / "data" / "test-00000-of-00001.parquet"),
            r"not all files have the column 'label'; choose parts",
        ),
    ],
)
def test_what_is_damaged_is_said(copy, name, spoil, message):
    folder = copy(name)
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        from_hf(folder, text, **OPTIONS)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (text, {"parts": ["val"]}, r"has no part 'val'; it has train, validation, test"),
        (text, {"label": "intent"}, r"hf_datasets/dict has no column 'intent'"),
        (images, {}, r"hf_datasets/dict has no column 'image' but text, label; name it by columns"),
        (images, {"columns": {"image": "text"}}, r"column 'image' holds String, not images"),
    ],
)
def test_what_is_asked_wrongly_is_said(make, options, message):
    with pytest.raises(ValueError, match=message):
        from_hf(WRITTEN / "dict", make, **OPTIONS, **options)
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        from_hf(WRITTEN / "nowhere", make)


def test_images_that_were_not_saved_along_are_asked_for(tmp_path):
    cells = [{"bytes": None, "path": "cat.png"}]
    pl.DataFrame(
        {"image": cells, "label": ["a"]}, schema_overrides={"image": pl.Struct({"bytes": pl.Binary, "path": pl.String})}
    ).write_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        ValueError, match=r"row 1 names 'cat.png' but contains no image; save the data set with its images"
    ):
        from_hf(tmp_path, images, **OPTIONS)


def test_plain_bytes_are_images_too_and_bad_ones_may_be_dropped(tmp_path):
    from PIL import Image

    def png(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (6, 6), grey).save(file, "PNG")
        return file.getvalue()

    cells = [png(10 * i) for i in range(6)] + [b"", b"no image"]
    pl.DataFrame({"image": cells, "label": list("abababab")}).write_parquet(tmp_path / "train.parquet")
    source = from_hf(tmp_path, images, **OPTIONS, size=4, bad_images="drop")
    assert {name: len(rows) for name, rows in source.classes("train").items()} == {"a": 3, "b": 3}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200),
    st.sampled_from(["state.json", "dataset_info.json", "data-00000-of-00002.arrow"]),
    st.data(),
)
def test_any_damage_is_a_source_or_a_sentence(copy, tmp_path, content, name, data):
    shutil.rmtree(tmp_path / "sharded", ignore_errors=True)
    folder = copy("sharded")
    whole = (folder / name).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    (folder / name).write_bytes(whole[:at] + content + whole[at + len(content) :])
    with suppress(ValueError):  # any other error is none for the user
        assert from_hf(folder, text, **OPTIONS, bad_rows="drop").texts
