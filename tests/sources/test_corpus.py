"""Language tasks from running text: who wrote or spoke it is the task."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import kshot
from kshot import types
from kshot.data.text.vocabulary import PADDING, UNKNOWN
from kshot.sources import corpus

ALL = {"ratio": [1, 0, 0]}
IGNORED = -100


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    return folder / archive.stem


def written(source, batch) -> list[str]:
    """The text of each window: its inputs and the last target."""
    windows = []
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist()):
        scored = [target for target in targets if target != IGNORED]
        windows.append(source.vocabulary.decode([inputs[0], *scored]))
    return windows


def joined(windows: list[str]) -> str:
    """Neighbouring windows share a character: the last target of one is the first input of the next."""
    return windows[0] + "".join(window[1:] for window in windows[1:])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=10, max_size=60), min_size=1, max_size=4
    ),
    st.integers(1, 9),
    st.sampled_from(["characters", "bytes"]),
)
def test_windows_predict_each_character_but_the_first_once(tmp_path, texts, length, unit):
    path = tmp_path / "t.parquet"
    texts = [f"-{own}-" for own in texts]  # none is blank
    pl.DataFrame({"text": texts, "who": [f"author {i}" for i in range(len(texts))]}).write_parquet(path)
    source = corpus(
        path, task="who", length=length, shots=1, queries=1, unit=unit, split=ALL, on_too_few="drop", order="given"
    )
    for name, rows in source.groups("train").items():
        inputs, targets = source.examples.take(rows)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (len(rows), length)
        whole = texts[int(name.split()[1])]
        whole = whole if unit == "characters" else whole.encode().decode("latin-1")
        assert len(rows) == -(-(len(whole) - 1) // length)
        assert torch.equal(inputs == PADDING, targets == IGNORED)
        later = inputs[:, 1:] != PADDING
        assert torch.equal(inputs[:, 1:][later], targets[:, :-1][later])
        batch = kshot.Batch(inputs, targets, torch.ones(len(rows)))
        assert joined(written(source, batch)) == whole
        assert int((targets != IGNORED).sum()) == len(whole) - 1


def test_pretraining_reads_on_from_a_window(tmp_path):
    text = "".join(map(chr, range(97, 123))) * 3
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(text)
    options = {"length": 8, "shots": 2, "queries": 2, "split": {"ratio": [1, 0, 0]}}
    short, long = (corpus(tmp_path, pretrain_length=length, **options) for length in (None, 20))
    few, many = (source.pretraining_batch(3, 16) for source in (short, long))
    assert few.inputs.shape == (16, 8)
    assert many.inputs.shape == (16, 20)
    assert torch.equal(few.inputs, many.inputs[:, :8])
    scored = many.targets >= 0
    assert torch.equal(many.inputs[:, 1:][scored[:, 1:]], many.targets[:, :-1][scored[:, 1:]])
    ends = scored.sum(1)
    assert ends.min() < 20 == ends.max(), "a text that ends sooner is padded"
    assert torch.equal(short.task("train", 0).query.inputs, long.task("train", 0).query.inputs)


def test_the_query_follows_the_support(tmp_path):
    text = "".join(chr(0x4E00 + i) for i in range(200))  # all characters differ: a window says where it stands
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name + text)
    source = corpus(tmp_path, length=10, shots=3, queries=[1, 4], split=ALL)
    starts = set()
    for index in range(60):
        task = source.task("train", index)
        real = [batch.rows(batch.weight > 0) for batch in task]
        assert joined([*written(source, real[0]), *written(source, real[1])]) in f"a{text} b{text}"
        starts.add(int(task.support.inputs[0, 0]))
        support = set(task.support.targets.flatten().tolist())
        assert not support & set(real[1].targets.flatten().tolist()), "nothing asked in the query is shown before"
    assert len(starts) > 5
    assert torch.equal(
        source.task("train", 7).query.inputs, types.unstack(source.stack("train", [2, 7]))[1].query.inputs
    )


def test_the_vocabulary_is_of_the_training_tasks(tmp_path):
    for name, text in {"a": "xyz" * 20, "b": "xyw" * 20}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "train").write_text("a.txt")
    (tmp_path / "test").write_text("b.txt")
    files = {part: str(tmp_path / part) for part in ("train", "test")}
    source = corpus(tmp_path, length=6, shots=2, queries=2, split={"files": files})
    assert source.vocabulary.characters == "xyz"
    assert source.describe()["unknown"] == {"train": 0.0, "test": pytest.approx(1 / 3)}
    share = (source.task("test", 0).query.targets == UNKNOWN).float().mean()
    assert float(share) == pytest.approx(1 / 3)
    by_bytes = corpus(tmp_path, length=6, shots=2, queries=2, split={"files": files}, unit="bytes")
    assert by_bytes.describe()["unknown"]["test"] == 0
    assert len(by_bytes.vocabulary) == 258


def test_folders_and_patterns_name_tasks(tmp_path):
    for name in ("ann/1.txt", "ann/2.txt", "bob/1.txt", "bob/deep/2.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"this is {name} " * 9)
    options = {"length": 8, "shots": 1, "queries": 1, "split": ALL}
    assert set(corpus(tmp_path, **options).group_names["train"]) == {
        "ann/1.txt", "ann/2.txt", "bob/1.txt", "bob/deep/2.txt"
    }  # fmt: skip
    assert set(corpus(tmp_path, task="folder", **options).group_names["train"]) == {"ann", "bob", "bob/deep"}
    first = corpus(tmp_path, task="folder", pattern=r"^(\w+)", **options)
    assert set(first.group_names["train"]) == {"ann", "bob"}
    inputs, targets = first.examples.take(first.groups("train")["ann"])
    batch = kshot.Batch(inputs, targets, torch.ones(len(inputs)))
    assert joined(written(first, batch)) == "this is ann/1.txt " * 9 + "\n" + "this is ann/2.txt " * 9


def test_passages_are_given_to_who_speaks(tmp_path):
    play = "Some title\n\nANN:\nHello there.\nMore: of it.\n\nBOB:\nHello Ann.\n\nANN:\nGoodbye.\n"
    path = tmp_path / "play.txt"
    path.write_text(play)
    source = corpus(path, task="passage", pattern=r"^([A-Z]+):$", length=4, shots=1, queries=1, split=ALL)
    spoken = {}
    for name, rows in source.groups("train").items():
        inputs, targets = source.examples.take(rows)
        spoken[name] = joined(written(source, kshot.Batch(inputs, targets, torch.ones(len(inputs)))))
    assert spoken == {"ANN": "Hello there.\nMore: of it.\nGoodbye.", "BOB": "Hello Ann."}
    assert source.describe()["dropped"] == {"characters before the first that the pattern names": len("Some title")}


def test_speakers_of_a_play(shared_data):
    path = shared_data / "tinyshakespeare" / "input.txt"
    source = corpus(path, task="passage", pattern=r"(?:\A|\n\n)(.+):$", on_too_few="drop")
    about = source.describe()
    assert about["groups"]["train"] > 90
    assert about["groups"]["test"] > 10
    assert set(source.vocabulary.characters) <= set(path.read_text())
    inputs, targets = source.examples.take(source.groups("test")["MENENIUS"])
    spoken = joined(written(source, kshot.Batch(inputs, targets, torch.ones(len(inputs)))))
    assert spoken.startswith("What work's, my countrymen, in hand? where go you\nWith bats and clubs?")


@pytest.mark.parametrize(
    ("name", "options", "group"),
    [
        ("inaugural", {"pattern": r"-(\w+)\.txt$", "reading": {"encoding": "latin-1"}}, "Washington"),
        ("udhr2", {"unit": "bytes"}, "deu.txt"),
        ("shakespeare", {"files": "*.xml", "task": "voice", "pattern": r"<SPEAKER>(.+)</SPEAKER>"}, "MACBETH"),
    ],
)
def test_public_corpora(tmp_path, shared_data, name, options, group):
    source = corpus(unpacked(shared_data / "nltk_corpora" / f"{name}.zip", tmp_path), on_too_few="drop", **options)
    assert any(group in names for names in source.group_names.values())
    for split in ("train", "val", "test"):
        task = source.task(split, 0)
        assert task.support.inputs.shape == task.query.targets.shape == (8, 64)


SPEAKERS = {"task": "passage", "pattern": r"<SPEAKER>([^<]+)</SPEAKER>", "files": "[ahm]*.xml"}


def spoken(source) -> dict[str, str]:
    """The whole text of each task."""
    found = {}
    for split in source.group_names:
        for name, rows in source.groups(split).items():
            inputs, targets = source.examples.take(rows)
            found[name] = joined(written(source, kshot.Batch(inputs, targets, torch.ones(len(inputs)))))
    return found


def test_speakers_of_marked_up_plays(tmp_path, shared_data):
    plays = unpacked(shared_data / "nltk_corpora" / "shakespeare.zip", tmp_path)
    options = SPEAKERS | {"markup": "drop", "shots": 1, "queries": 1, "length": 20, "on_too_few": "drop"}
    source = corpus(plays, **options, without=["STAGEDIR", "TITLE", "SUBHEAD"], split=ALL)
    said = spoken(source)
    assert said["hamlet.xml/HAMLET"].startswith("A little more than kin, and less than kind.\nNot so, my lord;")
    assert not any(set("<>&") & set(words.replace("&c", "")) for words in said.values())
    assert "Exeunt" not in "".join(said.values())
    assert "Aside A little more than kin" in spoken(corpus(plays, **options, split=ALL))["hamlet.xml/HAMLET"]

    # What each says is what their lines hold, told by another parser.
    for name in ("hamlet.xml/HAMLET", "macbeth.xml/MACBETH", "merchant.xml/PORTIA"):
        play, who = name.split("/")
        lines = []
        for speech in ElementTree.parse(plays / play).iter("SPEECH"):
            if [speaker.text for speaker in speech.iter("SPEAKER")][-1] == who:
                for line in speech.iter("LINE"):
                    directions = "".join(part.tail or "" for part in line.iter("STAGEDIR"))
                    lines.append(" ".join(((line.text or "") + directions).split()))
        assert said[name] == "\n".join(filter(None, lines))

    # Each play has messengers of its own.
    messengers = [name for name in said if name.endswith("/Messenger")]
    assert len(messengers) == 3
    together = spoken(corpus(plays, **options | {"task": "voice"}, without=["STAGEDIR", "TITLE", "SUBHEAD"], split=ALL))
    assert together["Messenger"] == "\n".join(said[name] for name in messengers)


def test_marked_up_texts_of_files_and_tables(tmp_path):
    page = "<html><style>p {color: red}</style><p>Fish &amp; chips,</p><p>she said.</p></html>"
    options = {"length": 4, "shots": 1, "queries": 1, "split": ALL, "markup": "drop"}
    (tmp_path / "ann.html").write_text(page)
    assert spoken(corpus(tmp_path, files="*.html", **options)) == {"ann.html": "Fish & chips,\nshe said."}
    pl.DataFrame({"who": ["ann", "ann"], "text": [page, "<b>So</b>."]}).write_csv(tmp_path / "posts.csv")
    found = spoken(corpus(tmp_path / "posts.csv", task="who", **options))
    assert found == {"ann": "Fish & chips,\nshe said.\nSo."}


class Bigram(nn.Module):
    """The next symbol from the last one."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols, symbols)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


def test_adapting_to_a_writer_pays(tmp_path):
    letters = "abcdefgh"
    for number in range(30):  # each writer has a turn of phrase of their own
        own = letters[number % 8] + letters[(3 * number + 1) % 8]
        (tmp_path / f"{number}.txt").write_text(own * 100)
    source = corpus(tmp_path, length=16, shots=2, queries=2)
    learner = kshot.maml(Bigram(len(source.vocabulary)), inner_lr=20.0, steps=2, objective=source.objective)
    figures = []  # not audited: texts that go round in circles show their queries in the support
    for steps in (0, 2):
        learner.solver.steps = steps
        found = kshot.evaluate(learner, source, split="test", num_tasks=20, audit=False)
        figures.append(found.metrics["bits_per_character"].mean)
    assert figures[1] < 0.5 * figures[0]
    learner.solver.steps = 2
    before = figures[1]
    kshot.fit(learner, source, steps=20, tasks_per_step=4, outer_lr=0.1, mode="vmap")
    after = kshot.evaluate(learner, source, split="test", num_tasks=20, audit=False)
    assert after.metrics["bits_per_character"].mean < before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "author"}, r"is a folder; its tasks are a file, folder, passage or voice each, and 'author' is none"),
        ({"task": "passage"}, r"needs a pattern that names the speaker"),
        ({"task": "passage", "pattern": "^(SPEAKER):"}, r"the pattern .* names no speaker of any text"),
        ({"task": "voice"}, r"task: voice needs a pattern that names the speaker"),
        ({"markup": "xml"}, r"markup must be one of keep, drop, got 'xml'"),
        ({"without": ["b"]}, r"without names elements of markup that is dropped \(b\): set markup: drop"),
        ({"markup": "drop", "without": ["b"]}, r"without: .* has no element b; it has none"),
        ({"task": "passage", "pattern": "^(x*)"}, r"is found in '', but matches no name there"),
        ({"pattern": "("}, r"pattern '\(' is no regular expression: .*position 0"),
        ({"pattern": "q(.)"}, r"a.txt: the pattern 'q\(.\)' is not found in 'a.txt'"),
        ({"task": "folder"}, r"a.txt lies in no folder that could name its task"),
        ({"files": "*.md"}, r"contain no file that matches '\*.md'"),
        ({"length": 0}, r"length must be at least 1"),
        ({"length": 9, "pretrain_length": 8}, r"pretrain_length must be a window's 9 characters or more, got 8"),
        ({"unit": "words"}, r"unit must be one of characters, bytes, tokens, got 'words'"),
        ({"length": 50}, r"group 'a.txt' in train has 1 examples, but 8 shots \+ 8 queries need 16"),
        ({"split": {"heldout": {"test": ["x"]}}}, r"heldout needs the domain of each group"),
        ({"reading": {"encoding": "klingon"}}, r"there is no encoding 'klingon'"),
        (
            {"reading": {"encoding": "ascii"}},
            r"a.txt is not ascii: 'ascii' codec can't decode byte 0xc3",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, options, message):
    (tmp_path / "a.txt").write_text("first line\n\u00e9 second line\n")
    with pytest.raises(ValueError, match=message):
        corpus(tmp_path, **({"split": ALL} | options))


def test_a_table_needs_to_know_who_wrote(tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text("author,text\nann,hello\nbob,\n,hello\n")
    with pytest.raises(ValueError, match="posts.csv is a table; name the column .* task: author"):
        corpus(path)
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        corpus(tmp_path / "nowhere")
    with pytest.raises(
        ValueError,
        match=r"line 3, column 'text': the value is missing.*\n.*line 4, column 'author'.*\nbad rows in all: 2 of 3",
    ):
        corpus(path, task="author")
    with pytest.raises(ValueError, match="has no column 'writer'"):
        corpus(path, task="writer")


def test_posts_of_an_author_are_one_text_in_their_order(tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text("who,text\n" + "".join(f"{who},{who} says {i}\n" for i in range(9) for who in ("ann", "bob")))
    source = corpus(path, task="who", length=5, shots=2, queries=2, split=ALL)
    inputs, targets = source.examples.take(source.groups("train")["bob"])
    whole = joined(written(source, kshot.Batch(inputs, targets, torch.ones(len(inputs)))))
    assert whole == "\n".join(f"bob says {i}" for i in range(9))


def test_a_column_split_cuts_a_table(tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text(
        "who,text,split\n" + "".join(f"{who},{who * 30},{part}\n" for who, part in [("a", "train"), ("b", "test")])
    )
    source = corpus(path, task="who", length=5, shots=2, queries=2)
    assert source.group_names == {"train": ("a",), "test": ("b",)}
    path.write_text(path.read_text().replace("split", "fold"))
    named = corpus(path, task="who", length=5, shots=2, queries=2, split={"column": "fold"})
    assert named.group_names == source.group_names
    with pytest.raises(ValueError, match="has no column 'split'"):
        corpus(path, task="who", length=5, shots=2, queries=2, split={"column": "split"})


def test_windows_can_be_frozen(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 99)
    source = corpus(tmp_path, length=5, shots=2, queries=[1, 3], split=ALL)
    kshot.tasks.freeze(source, tmp_path / "train.safetensors", split="train", num_tasks=3)
    back = kshot.tasks.episodes(tmp_path / "train.safetensors")
    assert back.objective == source.objective
    leaves = zip(types.tree_leaves(back.task("train", 2)), types.tree_leaves(source.task("train", 2)))
    assert all(torch.equal(a, b) for a, b in leaves)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=80),
    st.sampled_from(["file", "passage"]),
    st.sampled_from(["characters", "bytes"]),
    st.sampled_from(["keep", "drop"]),
)
def test_any_bytes_are_a_source_or_a_sentence(tmp_path, content, task, unit, markup):
    path = tmp_path / "any.txt"
    path.write_bytes(content)
    options = {
        "task": task,
        "unit": unit,
        "markup": markup,
        "length": 3,
        "shots": 1,
        "queries": 1,
        "split": ALL,
        "on_too_few": "drop",
    }
    with suppress(ValueError):  # any other error is none for the user
        source = corpus(path, pattern="^(.+)$", **options)
        assert source.task("train", 0).query.inputs.max() < len(source.vocabulary)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60))
def test_read_text_says_where_bytes_are_wrong(tmp_path_factory, content):
    from kshot.data.text_files import read_text

    path = tmp_path_factory.mktemp("any") / "t.txt"
    path.write_bytes(content)
    try:
        expected = content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        expected = None
        line = content[: error.start].count(b"\n") + 1
        sentence = rf"t.txt, line {line}: byte 0x{content[error.start]:02x} is not UTF-8"
    no_text = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK", b"PAR1", b"SQLite format 3", b"%PDF")
    if b"\0" in content or content.startswith((b"\xff\xfe", b"\xfe\xff", *no_text)):  # UTF-16, or no text
        with suppress(ValueError):
            read_text(path)
    elif expected is None:
        with pytest.raises(ValueError, match=sentence):
            read_text(path)
    else:
        assert read_text(path) == expected
