"""Tasks from texts with labels."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kshot
from kshot import types
from kshot.app import cli
from kshot.checking.check import check
from kshot.data import ArrayDataset
from kshot.data.text.features import SparseExamples, hashed_ngrams
from kshot.data.text.vocabulary import PADDING, UNKNOWN, Vocabulary
from kshot.evaluation.shots import FewerShots
from kshot.sources import text
from kshot.sources.preprocessors import preprocessor_from_json

WORDS = {"play": "music", "stop": "music", "louder": "music", "balance": "bank", "pay": "bank", "freeze": "bank"}
ROWS = [(f"please {word} it {number}", word, WORDS[word]) for number in range(8) for word in WORDS]
ALL = {"ratio": [1, 0, 0]}


def row_numbers(texts) -> ArrayDataset:
    """A featuriser that gives each text its own number, so that tests see which texts a task took."""
    return ArrayDataset(np.arange(len(texts))[:, None])


def write(path: Path, rows=ROWS) -> Path:
    frame = pl.DataFrame(rows, schema=["text", "label", "domain"], orient="row")
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".ndjson":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


def equal(a: types.Task, b: types.Task) -> bool:
    return all(torch.equal(x, y) for x, y in zip(types.tree_leaves(a), types.tree_leaves(b)))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "ndjson", "parquet", "json"])
def test_a_task_takes_texts_of_its_classes_whatever_the_format(tmp_path, suffix):
    path = tmp_path / f"intents.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps({"all": [{"text": t, "label": n, "domain": d} for t, n, d in ROWS]}))
    else:
        write(path)
    source = text(path, ways=3, shots=2, queries=3, split=ALL, features=row_numbers)
    assert source.texts == [row[0] for row in ROWS]
    for index in range(20):
        task = source.task("train", index)
        label_of: dict[str, int] = {}
        taken = []
        for batch in task:
            for row, label in zip(batch.inputs[:, 0].tolist(), batch.targets.argmax(1).tolist()):
                taken.append(row)
                assert label_of.setdefault(ROWS[row][1], label) == label
        assert len(label_of) == len(set(label_of.values())) == 3
        assert len(set(taken)) == len(taken) == 3 * 5
    assert equal(source.task("train", 4), types.unstack(source.stack("train", [9, 4]))[1])


def test_a_folder_of_folders_is_read_as_classes_and_domains(tmp_path):
    for number, (words, name, domain) in enumerate(ROWS):
        (tmp_path / "intents" / domain / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "intents" / domain / name / f"{number}.txt").write_text(words)
    (tmp_path / "intents" / ".hidden.txt").write_text("no text")
    (tmp_path / "intents" / "notes.md").write_text("no text")
    split = {"heldout": {"test": ["bank"]}}
    source = text(tmp_path / "intents", ways=2, shots=1, queries=2, split=split, within="domain", features=row_numbers)
    assert source.class_names == {
        "train": ("music/louder", "music/play", "music/stop"),
        "test": ("bank/balance", "bank/freeze", "bank/pay"),
    }
    assert sorted(source.texts) == sorted(row[0] for row in ROWS)


def test_split_folders_are_the_splits(tmp_path):
    for part, name in [("train", "a"), ("train", "b"), ("validation", "c"), ("validation", "d")]:
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / part / name / f"{number}.txt").write_text(f"{name} {number}")
    source = text(tmp_path, ways=2, queries=1)
    assert source.class_names == {"train": ("a", "b"), "val": ("c", "d")}
    (tmp_path / "loose.txt").write_text("x")
    with pytest.raises(ValueError, match=r"loose.txt is in no class folder; .*CLASS/1.txt"):
        text(tmp_path, ways=2, queries=1)


@pytest.mark.parametrize(
    "content", [{"train": [["a b", "x"]] * 3 + [["c", "y"]] * 3}, [["a b", "x"]] * 3 + [["c", "y"]] * 3]
)
def test_json_pairs(tmp_path, content):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(content))
    source = text(path, ways=2, queries=2, split=ALL)
    assert {name: len(rows) for name, rows in source.classes("train").items()} == {"x": 3, "y": 3}


def test_domains_held_out_and_tasks_within_one(tmp_path):
    path = write(tmp_path / "intents.csv")
    source = text(
        path, ways=2, shots=1, queries=2, split={"heldout": {"val": ["bank"]}}, within="domain", features=row_numbers
    )
    assert {part: {WORDS[name] for name in names} for part, names in source.class_names.items()} == {
        "train": {"music"},
        "val": {"bank"},
    }
    both = text(path, ways=2, shots=1, queries=2, split=ALL, within="domain", features=row_numbers)
    seen = set()
    for index in range(30):
        domains = {ROWS[row][2] for row in both.task("train", index).query.inputs[:, 0].tolist()}
        assert len(domains) == 1
        seen |= domains
    assert seen == {"music", "bank"}


def test_domains_from_a_file_of_their_own(tmp_path):
    path = write(tmp_path / "intents.csv", [*ROWS, ("what is this", "other", "none")])
    listed = tmp_path / "domains.json"
    listed.write_text(json.dumps({"music": ["play", "stop", "louder"], "bank": ["balance", "pay", "freeze"]}))
    options = {"domain": str(listed), "ways": 3, "queries": 2, "split": {"heldout": {"test": ["bank"]}}}
    source = text(path, **options)
    assert source.class_names["test"] == ("balance", "freeze", "pay")
    assert source.describe()["dropped"] == {f"texts of classes that {listed} does not list": 1}
    for content, message in [
        ({"music": ["jazz"]}, r"lists none of the classes of the data, such as 'balance', but jazz"),
        ({"music": ["play"], "bank": ["play"]}, r"class 'play' is in the domains 'music' and 'bank'"),
        (["play"], r"must hold the classes of each domain"),
        ({"music": "play"}, r"must hold the classes of each domain"),
    ]:
        listed.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            text(path, **options)
    listed.write_text("{")
    with pytest.raises(ValueError, match=r"domains.json is not valid JSON: .* line 1"):
        text(path, **options)


def test_clinc_as_it_is_published(shared_data):
    folder = shared_data / "clinc150"
    source = text(
        folder / "data_full.json",
        domain=str(folder / "domains.json"),
        within="domain",
        split={"heldout": {"val": ["travel", "home"], "test": ["banking", "work"]}},
        shots=5,
        width=2048,
    )
    about = source.describe()
    assert about["classes"] == {"train": 90, "val": 30, "test": 30}
    assert list(about["dropped"].values()) == [1200]  # out of scope, in no domain
    assert all(len(rows) == 150 for split in about["classes"] for rows in source.classes(split).values())
    score = kshot.evaluate(
        kshot.learners.nearest_centroid(source.objective), source, num_tasks=40, audit=False
    ).metrics["accuracy"]
    assert score.mean > 0.6  # intents of one domain share many words


# What the texts become


def ngrams(words: str, low: int, high: int) -> Counter:
    tokens = words.lower().split()
    return Counter(" ".join(tokens[i : i + n]) for n in range(low, high + 1) for i in range(len(tokens) - n + 1))


word_lists = st.lists(st.sampled_from(["to", "be", "or", "not", "that", "is", "I"]), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(st.lists(word_lists, min_size=2, max_size=5), st.sampled_from([(1, 1), (1, 2), (2, 3)]))
def test_hashed_ngrams_have_the_angles_of_bags_of_ngrams(lists, sizes):
    texts = [" ".join(words) for words in lists]
    dense = hashed_ngrams(texts, of="words", ngrams=sizes, width=2**20).take(np.arange(len(texts)))
    bags = [ngrams(words, *sizes) for words in texts]
    for a, x in zip(bags, dense):
        for b, y in zip(bags, dense):
            norm = (sum(v * v for v in a.values()) * sum(v * v for v in b.values())) ** 0.5
            expected = sum(a[gram] * b[gram] for gram in a) / norm if norm else 0.0
            assert float(x @ y) == pytest.approx(expected, abs=1e-5)


def test_rows_of_sparse_examples_are_gathered_as_numpy_would():
    from scipy.sparse import csr_matrix

    dense = np.random.default_rng(0).random((7, 5)).astype(np.float32) * (np.random.default_rng(1).random((7, 5)) > 0.6)
    examples = SparseExamples(csr_matrix(dense))
    rows = np.array([[6, 0, 0], [3, 2, 6]])
    assert np.array_equal(examples.take(rows).numpy(), dense[rows])
    assert examples.take(np.zeros((2, 0), np.int64)).shape == (2, 0, 5)


def test_features_are_kept_in_the_cache(tmp_path, monkeypatch):
    from sklearn.feature_extraction.text import HashingVectorizer

    path = write(tmp_path / "intents.csv")
    first = text(path, ways=2, queries=2, split=ALL, width=77)
    monkeypatch.setattr(HashingVectorizer, "transform", lambda *_: pytest.fail("they were made again"))
    again = text(path, ways=2, queries=2, split=ALL, width=77)
    assert equal(first.task("train", 3), again.task("train", 3))
    monkeypatch.undo()
    other = text(path, ways=2, queries=2, split=ALL, width=77, features="characters")
    assert not equal(first.task("train", 3), other.task("train", 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(), max_size=4), st.text(), st.lists(st.integers(0, 3), max_size=3))
def test_a_vocabulary_knows_its_characters_and_no_others(texts, other, cut):
    vocabulary = Vocabulary.fit(texts)
    known = set("".join(texts))
    assert len(vocabulary) == len(known) + 2
    for own in texts:
        ids = vocabulary.encode(own)
        assert vocabulary.decode(ids) == own
        assert len(ids) == len(own)
        assert (ids > UNKNOWN).all()
    for character, number in zip(other, vocabulary.encode(other).tolist()):
        assert (number == UNKNOWN) == (character not in known)
        assert PADDING < number < len(vocabulary)


def test_ids_know_the_characters_of_training_classes_alone(tmp_path):
    rows = [(words, name, "d") for name in "xyz" for words in (f"ab{name}", f"ba{name * 9}", f"a{name}b")]
    path = write(tmp_path / "t.csv", rows)
    (tmp_path / "train").write_text("x\ny\n")
    (tmp_path / "test").write_text("z\n")
    files = {"train": tmp_path / "train", "test": tmp_path / "test"}
    with pytest.raises(ValueError, match="the test split has 1 class, fewer than the 2 ways"):
        text(path, ways=2, queries=1, split={"files": files})
    rows += [(words.replace("z", "w"), "w", "d") for words, name, _ in rows if name == "z"]
    write(path, rows)
    (tmp_path / "test").write_text("z\nw\n")
    source = text(path, ways=2, queries=2, split={"files": files}, features="ids", width=4)
    assert source.describe()["symbols"] == len("abxy") + 2
    vocabulary = Vocabulary("abxy")
    seen = {tuple(row) for index in range(9) for row in source.task("test", index).query.inputs.tolist()}
    a, b = vocabulary.encode("ab").tolist()
    assert seen == {(a, b, UNKNOWN, PADDING), (b, a, UNKNOWN, UNKNOWN), (a, UNKNOWN, b, PADDING)}


# In a run

RUN = """\
name: intents
source: {kind: text, path: intents.csv, ways: 3, shots: 2, queries: 3, split: {heldout: {val: [b], test: [c]}}, OPTIONS}
model: {kind: mlp, hidden: [64]}
learner: {kind: protonet}
train: {steps_per_round: 2, tasks_per_step: 2}
target: accuracy >= 0.1
budget: {rounds: 1}
evaluate: {num_val_tasks: 3, num_test_tasks: 3, shots: []}
baselines: {names: [centroid], num_val_tasks: 2}
"""


def command(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["kshot", *map(str, words)])
    cli.main()


@pytest.fixture
def intents(tmp_path, monkeypatch):
    """A folder with texts of nine classes in three domains, which is the current one."""
    rows = [
        (f"{word} number {i}", word, domain)
        for domain in "abc"
        for word in (f"{domain}x", f"{domain}y", f"{domain}z")
        for i in range(6)
    ]
    write(tmp_path / "intents.csv", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_adapts_to_texts_of_ones_own(intents, monkeypatch, capsys):
    (intents / "run.yaml").write_text(RUN.replace("OPTIONS", "features: characters, width: 512"))
    with pytest.raises(SystemExit, match="0"):
        command(monkeypatch, "run", "run.yaml", "--out", "run")
    (intents / "mine.csv").write_text(
        "text,label\nhow much is it,price\nwhat does it cost,price\nwhere are you,place\n"
    )
    (intents / "new.json").write_text('[{"text": "how much does it cost"}, {"text": "where is it"}]')
    for words in (
        ["adapt", "run", "--support", "mine.csv", "--out", "s"],
        ["predict", "run", "--state", "s", "--inputs", "new.json"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            command(monkeypatch, *words)
    told = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in told] == ["price", "place"]
    assert all(float(row["p(price)"]) + float(row["p(place)"]) == pytest.approx(1, abs=1e-4) for row in told)


def test_what_a_run_keeps_reads_texts_as_the_run_did(intents):
    for features in ("words", "characters", "ids"):
        source = text("intents.csv", features=features, width=32, queries=2, ways=3, split=ALL)
        kept = preprocessor_from_json(json.loads(json.dumps(source.preprocessor.to_json())))
        assert torch.equal(kept.inputs(intents / "intents.csv", {}), source.examples.take(np.arange(len(source.texts))))
        assert kept.support(intents / "intents.csv").targets == pl.read_csv("intents.csv")["label"].to_list()
        assert kept.describe().items() <= source.describe().items()


def test_texts_to_predict_for_are_not_put_into_the_cache(intents, cache):
    kept = text("intents.csv", width=33, queries=2, ways=3, split=ALL).preprocessor
    before = set(cache.iterdir())
    kept.inputs(intents / "intents.csv", {})
    write(intents / "secret.csv", [("a secret", "x", "a")])
    kept.support(intents / "secret.csv")
    assert set(cache.iterdir()) == before


def test_symbols_are_not_for_the_models_of_run_files(intents, monkeypatch, capsys):
    (intents / "run.yaml").write_text(RUN.replace("OPTIONS", "features: ids"))
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, "run", "run.yaml", "--out", "run")
    assert "which no model of kshot takes" in capsys.readouterr().err


# What goes wrong


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("", "play", "m")], {}, r"intents.csv, line 50, column 'text': the value is missing; a text needs"),
        ([(" \t ", "play", "m")], {}, r"line 50, column 'text': the value is missing"),
        ([("x", "", "m")], {}, r"line 50, column 'label': the value is missing; a text needs the name of its class"),
        ([("x", "play", "")], {"within": "domain"}, r"line 50, column 'domain': the value is missing"),
        ([("x", "play", "bank")], {"within": "domain"}, r"class 'play' has texts in the domains bank and music"),
        ([], {"label": "kind"}, r"has no column 'kind'; it has 'text', 'label', 'domain'"),
        ([], {"text": "texts"}, r"has no column 'texts': did you mean 'text'\?"),
        ([], {"domain": "area"}, r"has no column 'area'"),
        ([], {"split": {"column": "part"}}, r"has no column 'part'"),
        ([], {"features": "letters"}, r"features must be one of words, .*, tokens, got 'letters'"),
        ([], {"ngrams": (2, 1)}, r"ngrams are the smallest and the largest n, .* got \[2, 1\]"),
        ([], {"features": "ids", "ngrams": (1, 2)}, r"got \[1, 2\] with features: ids"),
        ([], {"width": 0}, r"width must be at least 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, rows, options, message):
    path = write(tmp_path / "intents.csv", [*ROWS, *rows])
    with pytest.raises(ValueError, match=message):
        text(path, **({"ways": 2, "queries": 2, "split": ALL} | options))


def test_bad_rows_are_dropped_where_that_is_allowed(tmp_path):
    path = write(tmp_path / "intents.csv", [*ROWS, ("", "play", "music"), ("x", "", "music")])
    source = text(path, ways=2, queries=2, split=ALL, bad_rows="drop")
    assert source.describe()["dropped"] == {"bad rows": 2}
    assert len(source.texts) == len(ROWS)


def test_domains_that_nobody_asks_for_need_not_fit(tmp_path):
    path = write(tmp_path / "intents.csv", [*ROWS, ("x", "play", ""), ("x", "play", "bank")])
    assert len(text(path, ways=2, queries=2, split=ALL).texts) == len(ROWS) + 2


def test_within_needs_domains(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"a{i},{name}\n" for i in range(9) for name in "xyz"))
    with pytest.raises(ValueError, match=r"within: domain needs the domain of each class, and there is no 'domain'"):
        text(path, ways=2, queries=2, split=ALL, within="domain")


def test_a_byte_that_is_not_utf8_is_named_with_its_line(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}")
    (tmp_path / "b" / "9.txt").write_bytes("\ufefffine\nna".encode() + b"\xefve\n")
    with pytest.raises(ValueError, match=r"9.txt, line 2: byte 0xef is not UTF-8 .*reading.encoding"):
        text(tmp_path, ways=2, queries=1, split=ALL)
    dropped = text(tmp_path, ways=2, queries=1, split=ALL, bad_rows="drop")
    assert dropped.describe()["dropped"] == {"bad rows": 1}
    (tmp_path / "b" / "9.txt").write_bytes(b"fine\nna\xefve\n")
    kept = text(tmp_path, ways=2, queries=1, split=ALL, reading={"encoding": "latin-1"})
    assert kept.texts[-1] == "fine\nnaïve\n"
    csv_file = tmp_path / "t.csv"
    csv_file.write_bytes(b"text,label\nfine,a\nna\xefve,b\n")
    with pytest.raises(ValueError, match=r"t.csv.*line 3"):
        text(csv_file)


def test_twins_and_disputed_texts_are_told_and_kept(tmp_path, caplog):
    rows = [*ROWS, *((f"now {i}", name, "music") for i in range(3) for name in ("Play", "pl  ay", "stop"))]
    with caplog.at_level(logging.WARNING):
        source = text(write(tmp_path / "t.csv", rows), ways=2, queries=2, split=ALL)
    twins, disputed = (record.getMessage() for record in caplog.records)
    assert "'Play' and 'pl  ay' and 'play'" in twins
    assert "'now 0' is 'Play' and 'pl  ay' and 'stop'; 'now 1' is" in disputed
    assert {"Play", "pl  ay", "play"} < set(source.class_names["train"])


@pytest.mark.parametrize("features", ["words", "characters", "ids"])
def test_texts_of_a_hundred_thousand_characters(tmp_path, features):
    rows = [(f"{name} " * 50_000 + str(i), name, "d") for i in range(3) for name in "ab"]
    path = write(tmp_path / "long.parquet", [*rows, ("x" * 100_000, "a", "d"), ("é" * 100_000, "b", "d")])
    started = time.process_time()
    task = text(path, ways=2, queries=2, split=ALL, features=features, width=64).task("train", 0)
    assert torch.isfinite(task.query.inputs.float()).all()
    assert time.process_time() - started < 5


def test_a_label_column_that_holds_the_texts_does_not_fill_the_memory(tmp_path):
    path = write(
        tmp_path / "swapped.parquet", [("a", "x" * 100_000, "d")] * 2 + [(f"b{i}", "y", "d") for i in range(99)]
    )
    with pytest.raises(ValueError, match="has 2 examples, but"):
        text(path, ways=2, queries=2, split=ALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"is not valid JSON"),
        ("[" * 100_000, r"has lists or objects more than 100 deep"),
        ("3", r"must hold lists of \[text, label\] or of objects"),
        ('{"train": {"a": 1}}', r"must hold lists .* got .* under 'train'"),
        ('[["a", "x", "y"]]', r"t.json, \[0\]: expected \[text, label\] or an object"),
        ('{"train": [["a", "x"], 7]}', r"t.json, train\[1\]: expected \[text, label\] or an object, got '7'"),
        ('[["\\ud83d", "x"]]', r"t.json, \[0\]: .* is half of a character"),
        ('{"train": [["a", "x"], ["", "x"]]}', r"t.json, train\[1\], text: the value is missing"),
        ("[]", r"has no rows"),
        ("{}", r"has no rows"),
        ("", r"is not valid JSON"),
    ],
)
def test_json_of_another_form(tmp_path, content, message):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        text(path, ways=2, queries=1, split=ALL)


slow_start = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "label", "train"]), inner),
    max_leaves=12,
)


@slow_start
@given(json_values | st.lists(st.tuples(st.text(max_size=4), st.sampled_from("ab")), max_size=9))
def test_any_json_is_a_source_or_a_sentence(tmp_path, content):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(content))
    only_a_source_or_a_sentence(path)


@slow_start
@given(st.binary(max_size=60), st.sampled_from(["json", "csv", "ndjson", "parquet", "tsv"]))
def test_any_bytes_are_a_source_or_a_sentence(tmp_path, content, suffix):
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    only_a_source_or_a_sentence(path)


def only_a_source_or_a_sentence(path: Path) -> None:
    with suppress(ValueError):  # any other error is none for the user
        source = text(path, ways=2, queries=1, split=ALL, width=8, bad_rows="drop")
        assert torch.isfinite(source.task("train", 0).query.inputs).all()


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00\x1c\x1d\x1e\x1f"), min_size=1, max_size=12)


@slow_start
@given(st.lists(st.tuples(cells, st.sampled_from(["a", "b", "c"])), min_size=12, max_size=30))
def test_texts_come_through_a_csv_as_they_were_written(tmp_path, rows):
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    path = tmp_path / "rows.csv"
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    kept = [(words, name) for words, name in rows if words.strip()]
    try:
        source = text(path, ways=2, queries=1, split=ALL, bad_rows="drop", on_too_few="drop", features=row_numbers)
    except ValueError:
        assert sum(count >= 2 for count in Counter(name for _, name in kept).values()) < 2
        return
    ended = [words.replace("\r\n", "\n") for words, _ in kept]
    assert [words.replace("\r\n", "\n") for words in source.texts] == ended


def test_the_hash_of_episodes_is_of_the_texts_and_not_of_their_features(tmp_path):
    def evaluated(texts="play it {}", wrap=lambda source: source, **options):
        rows = [[texts.format(n) + word, word] for n in range(9) for word in ("on", "off", "next", "order")]
        path = tmp_path / "texts.json"
        path.write_text(json.dumps(rows))
        sizes = {
            "ways": 2,
            "shots": 2,
            "queries": 3,
            "split": {"ratio": [0.5, 0, 0.5], "exact": True},
        }
        source = wrap(kshot.sources.text(path, **sizes | options))
        return kshot.evaluate(kshot.learners.nearest_centroid(), source, num_tasks=5), source

    words, _ = evaluated(features="words")
    for wrap in (lambda source: source, kshot.tasks.watched):
        other, same = evaluated(wrap=wrap, features="characters", width=64)
        assert other.episodes_sha256 == words.episodes_sha256
        assert other.episodes == words.episodes
        assert other.trusted
        assert same.preprocessor.features == "characters"
        kshot.evaluate(kshot.learners.nearest_centroid(), same, num_tasks=5, episodes_sha256=words.episodes_sha256)
    assert kshot.evaluation.paired_difference(words, other, "accuracy").num_tasks == 5
    for changed in ({"texts": "play it, {}"}, {"ways": 2, "shots": 1}):
        assert evaluated(features="words", **changed)[0].episodes_sha256 != words.episodes_sha256
    fewer = [evaluated(wrap=lambda source: FewerShots(source, 1), features=f)[0] for f in ("words", "characters")]
    assert fewer[0].episodes_sha256 == fewer[1].episodes_sha256 != words.episodes_sha256


def test_what_is_odd_in_a_folder_of_texts_is_read_skipped_or_named(tmp_path, caplog):
    root = tmp_path / "mails"
    for name in ("on", "off", "later"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            (root / name / f"{number}.txt").write_text(f"{name} {number}", encoding="utf-8-sig" if number else "utf-16")
        (root / name / "._1.txt").write_bytes(b"\0\5\x16\7\0")
    (root / "on" / "UPPER.TXT").write_text("on upper")
    (root / "__MACOSX" / "on").mkdir(parents=True)
    (root / "__MACOSX" / "on" / "1.txt").write_bytes(b"\0")
    for name in ("notes.docx", "a.docx", "README", "Thumbs.db"):
        (root / "off" / name).write_bytes(b"PK")
    (root / "drafts").mkdir()
    odd = {"empty": b"", "blank": b" \n", "binary": b"a\0b", "latin": "café".encode("latin-1"), "pdf": b"%PDF-1.7"}
    for name, content in odd.items():
        (root / "later" / f"{name}.txt").write_bytes(content)
    options = {"ways": 2, "shots": 1, "queries": 1, "split": ALL}
    with pytest.raises(ValueError, match="bad rows in all: 5 of 18") as caught:
        text(root, **options)
    for name in odd:
        assert f"{name}.txt" in str(caught.value)
    source = text(root, **options, bad_rows="drop")
    assert sorted(source.texts) == sorted(
        [*(f"{name} {n}" for name in ("on", "off", "later") for n in range(4)), "on upper"]
    )
    assert source.describe()["dropped"] == {"bad rows": 5}
    others, folders, left_out = source.notes
    assert "files that are not read as texts: 2 .docx, 1 without a suffix" in others
    assert "1 folders hold no texts, and are no classes: drafts" in folders
    assert "5 texts are left out" in left_out
    assert all(f"{name}.txt" in left_out for name in odd)
    assert set(source.notes) <= {record.getMessage() for record in caplog.records}
    assert all(note in str(check(source).findings) for note in source.notes)
