"""Cutting classes into train, val and test."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot import sources
from kshot.data.library.published_splits import PUBLISHED, read_lists
from kshot.tasks.splitting import by_ratio, cut
from kshot.types import SPLITS

NAMES = [f"class {c}" for c in range(400)]


def home(found) -> dict[str, str]:
    """The split of each name."""
    return {name: split for split, names in found.items() for name in names}


@settings(deadline=None)
@given(st.sets(st.text(max_size=5), min_size=40, max_size=80), st.text(max_size=6), st.integers(0, 99))
def test_a_class_that_comes_or_goes_moves_no_other(names, added, seed):
    names = sorted(names - {added})
    before = by_ratio(names, [0.4, 0.3, 0.3], seed=seed, exact=False)
    after = by_ratio([added, *names[::-1]], [0.4, 0.3, 0.3], seed=seed, exact=False)
    assert {name: home(after)[name] for name in names} == home(before)
    assert sorted(home(before)) == names, "each name once"


def test_ratios_are_met_in_expectation_and_seeds_give_other_cuts():
    cuts = [by_ratio(NAMES, [0.7, 0.2, 0.1], seed=seed) for seed in range(20)]
    for split, share in zip(SPLITS, (0.7, 0.2, 0.1)):
        counts = [len(found[split]) for found in cuts]
        assert abs(sum(counts) / (20 * 400) - share) < 5 * (share * (1 - share) / (20 * 400)) ** 0.5
    assert home(cuts[0]) != home(cuts[1])
    assert cut(NAMES, {"ratio": [0.7, 0.2, 0.1]}) == cuts[0]
    assert cut(NAMES, {"ratio": [0.7, 0.2, 0.1], "seed": 3}) == cuts[3]
    assert list(by_ratio(NAMES, [0.8, 0, 0.2])) == ["train", "test"]
    # The same on all machines and for all time: the hashes of these lie at 0.529, 0.774, 0.815 and 0.928.
    assert by_ratio(["cat", "dog", "owl", "elk"], [0.6, 0.2, 0.2], exact=False) == {
        "train": ["cat"],
        "val": ["owl"],
        "test": ["dog", "elk"],
    }


def test_a_larger_training_share_takes_names_from_its_neighbour_only():
    small, large = (home(by_ratio(NAMES, [share, 0.9 - share, 0.1])) for share in (0.5, 0.6))
    assert all(small[name] == large[name] or (small[name], large[name]) == ("val", "train") for name in NAMES)


@pytest.mark.parametrize("kind", ["class", "group"])
@pytest.mark.parametrize("ratio", [[0.7, 0.15, 0.15], [0.6, 0.2, 0.2], [0.5, 0, 0.5], [0.9, 0.05, 0.05]])
def test_few_names_leave_no_split_without_its_share(kind, ratio):
    for count in range(3, 80):
        for seed in range(5):
            names = [f"{kind} {number}" for number in range(count)]
            found = by_ratio(names, ratio, seed=seed, kind=kind)
            assert sorted(home(found)) == sorted(names)
            least = 2 if kind == "class" and count >= 6 else 1
            for split, share in zip(SPLITS, ratio):
                if share:
                    assert len(found[split]) >= max(least, int(share * count / 2) if count < 40 else least)
            assert home(found) == home(by_ratio(names[::-1], ratio, seed=seed, kind=kind)), "the order does not matter"


def test_exact_shares_are_met_up_to_rounding_and_large_data_keep_their_split():
    for count in (10, 33, 400):
        found = by_ratio(NAMES[:count], [0.7, 0.2, 0.1], exact=True)
        assert all(abs(len(found[s]) - share * count) <= 1 for s, share in zip(SPLITS, (0.7, 0.2, 0.1)))
    assert by_ratio(NAMES, [0.7, 0.15, 0.15]) == by_ratio(NAMES, [0.7, 0.15, 0.15], exact=False)
    with pytest.raises(ValueError, match="3 splits need as many groups, and there are 2"):
        by_ratio(["a", "b"], [0.7, 0.15, 0.15], kind="group")


def test_a_column_says_the_split_of_each_name():
    values = {"a": {"train"}, "b": {"test"}, "c": {"train"}}
    assert cut("abc", {"column": "part"}, values=values) == {"train": ["a", "c"], "test": ["b"]}
    for wrong, sentence in (
        ({"b": {"train", "test"}}, "column 'part': group 'b' has rows in test and in train; a group belongs to one"),
        ({"b": {"dev"}}, "column 'part' must hold train, val or test; group 'b' has 'dev' there"),
        ({"b": {""}}, "group 'b' has '' there"),
        ({"a": {"val"}, "c": {"val"}}, "leaves no group to train on, of 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            cut("abc", {"column": "part"}, values=values | wrong, kind="group")
    with pytest.raises(ValueError, match="needs a table; this data has no column 'part'"):
        cut("abc", {"column": "part"})


def test_files_list_one_name_a_line(tmp_path):
    (tmp_path / "train.txt").write_text("\ufeffcat\r\nold dog \n\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("yak\n")
    split = {"files": {"train": "train.txt", "test": "test.txt"}}
    names = ["yak", "owl", "old dog", "cat"]
    assert cut(names, split, folder=tmp_path) == {"train": ["cat", "old dog"], "test": ["yak"]}
    for content, sentence in (
        (b"yak\ncats\n", r"test.txt, line 2: the data has no class 'cats'; did you mean 'cat'\?"),
        (b"yak\n\ncat\n", r"test.txt, line 3: class 'cat' is listed already in .*train.txt, line 1"),
        (b"yak\nyak\n", "test.txt, line 2: class 'yak' is listed already in .*test.txt, line 1"),
        (b"yak\xff\n", r"test.txt, line 1: byte 0xff is not UTF-8"),
        (b"\n", "test.txt lists no class"),
    ):
        (tmp_path / "test.txt").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            cut(names, split, folder=tmp_path)
    with pytest.raises(ValueError, match="gone.txt cannot be read"):
        cut(names, {"files": {"train": "gone.txt"}}, folder=tmp_path)
    with pytest.raises(ValueError, match="files takes train, val and test; got 'dev'"):
        cut(names, {"files": {"dev": "train.txt"}}, folder=tmp_path)


def test_whole_domains_are_held_out():
    domains = {"cat": "pet", "dog": "pet", "owl": "bird", "yak": "farm", "hen": "farm"}
    found = cut(domains, {"heldout": {"val": ["farm"], "test": ["bird"]}}, domains=domains)
    assert found == {"train": ["cat", "dog"], "val": ["yak", "hen"], "test": ["owl"]}
    for heldout, sentence in (
        ({"test": ["birds"]}, r"the data has no domain 'birds'; did you mean 'bird'\?"),
        ({"test": ["bird"], "val": ["bird"]}, "the domain 'bird' is in test and in val"),
        ({"train": ["bird"]}, "heldout takes val and test"),
        ({"test": "bird"}, "each a list of domains; got test: 'bird'"),
        ({"test": ["bird", "pet", "farm"]}, "leaves no class to train on, of 5"),
    ):
        with pytest.raises(ValueError, match=sentence):
            cut(domains, {"heldout": heldout}, domains=domains)
    with pytest.raises(ValueError, match="needs the domain of each class"):
        cut(domains, {"heldout": {"test": ["bird"]}})


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ({}, "split takes one of ratio, rows, column, files, heldout, list"),
        ({"ratio": [1, 0, 0], "column": "part"}, "split takes one of"),
        ({"ratio": [0.7, 0.3]}, "three shares that sum to 1"),
        ({"ratio": [0.7, 0.3, 0.1]}, "three shares that sum to 1"),
        ({"ratio": [1.2, -0.1, -0.1]}, "three shares"),
        ({"ratio": ["a", 0, 1]}, "three shares"),
        ({"ratio": 0.7}, r"split by ratio is written ratio: \[0.7, 0.15, 0.15\]; got 0.7"),
        ({"files": "train.txt"}, "split by files is written files: {train: train.txt"),
        ({"ratio": [0.7, 0.15, 0.15], "seeds": 1}, "split by ratio has no key 'seeds'"),
        (
            {"ratio": [0.9998, 0.0001, 0.0001], "exact": False},
            "none of the 400 classes falls into val; raise its share",
        ),
        ({"list": "imagenet"}, "there is no list 'imagenet'; known are miniimagenet, cifar-fs"),
    ],
)
def test_a_split_written_wrong_is_told_how(split, sentence):
    with pytest.raises(ValueError, match=sentence):
        cut(NAMES, split)


def lists(folder: Path, **content) -> Path:
    for name, text in content.items():
        (folder / name.replace("_", ".", 1)).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_lists_are_read_in_each_of_their_formats(tmp_path):
    lists(
        tmp_path,
        train_csv="filename,label\n1.jpg,n1\n2.jpg,n1\n3.jpg,n2\n",
        val_json=json.dumps({"images_background": {"Greek": ["alpha", "beta"]}, "images_evaluation": {}}),
        test_txt="n5\n\nn6\n",
    )
    found = read_lists(tmp_path)
    assert {split: list(names) for split, names in found.items()} == {
        "train": ["n1", "n2"], "val": ["Greek/alpha", "Greek/beta"], "test": ["n5", "n6"]
    }  # fmt: skip
    assert found["train"]["n2"].endswith("train.csv, line 4")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"test_json": '["a",'}, "test.json is not valid JSON"),
        ({"test_json": '"a"'}, "test.json: expected lists of names, got 'a'"),
        ({"test_json": "[1, 2]"}, "test.json: expected lists of names"),
        ({"test_csv": "name\na\n"}, "test.csv, line 1: expected a column label, got name"),
        ({"test_csv.gz": gzip.compress(b"label\na\n")[:-9]}, "test.csv.gz cannot be unpacked"),
        ({"test_csv.gz": b"label\na\n"}, "test.csv.gz cannot be unpacked"),
        ({"test_txt": b"\xffx"}, "test.txt, line 1: byte 0xff is not UTF-8"),
        ({"test_txt": "b\na\n"}, "test.txt, line 2: 'a' is in train too"),
        ({}, "holds no test list: expected test with one of .csv, .csv.gz, .json, .txt"),
    ],
)
def test_lists_that_cannot_be_read_are_named_with_their_line(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_lists(lists(tmp_path, train_txt="a\n", val_txt="v\n", **content))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["txt", "csv", "csv.gz", "json"]))
def test_a_list_of_anything_is_read_or_refused_in_a_sentence(tmp_path_factory, content, suffix):
    folder = lists(tmp_path_factory.mktemp("lists"), train_txt="a\n", val_txt="v\n", **{f"test_{suffix}": content})
    try:
        found = read_lists(folder)
    except ValueError as error:
        found, said = None, str(error)
    assert set(found) == set(SPLITS) if found else "test" in said


def test_listed_classes_are_found_by_their_last_part_and_must_all_be_there(tmp_path):
    lists(tmp_path, train_txt="a/cat\n", val_txt="a/dog\n", test_txt="b/owl\n")
    split = {"list": "cub", "folder": "."}
    assert cut(["owl", "dog", "cat", "yak"], split, folder=tmp_path) == {
        "train": ["cat"],
        "val": ["dog"],
        "test": ["owl"],
    }
    assert cut(["b/owl", "a/dog", "a/cat"], split, folder=tmp_path)["test"] == ["b/owl"]
    with pytest.raises(
        ValueError, match=r"val.txt, line 1: the data has no class 'a/dog'.* \(1 of the 1 in val are miss"
    ):
        cut(["x/owl", "y/owl", "a/cat", "c/dog"], split, folder=tmp_path)


FOLDER = Path(os.environ.get("KSHOT_DATA", "/nowhere")) / "fewshot_image_splits"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="KSHOT_DATA holds no fewshot_image_splits")
@pytest.mark.parametrize(
    ("which", "sizes"),
    [
        ("miniimagenet", (64, 16, 20)),
        ("cifar-fs", (64, 16, 20)),
        ("fc100", (12, 4, 4)),
        ("cub", (100, 50, 50)),
        ("omniglot", (1028, 172, 423)),
    ],
)
def test_the_lists_of_the_literature_have_their_published_sizes(which, sizes):
    listed = read_lists(FOLDER / PUBLISHED[which].folder)
    assert tuple(len(listed[split]) for split in SPLITS) == sizes
    names = [name for split in SPLITS for name in listed[split]]
    if PUBLISHED[which].of == "class":
        found = cut([*names, "another"], {"list": which})
        assert {split: list(own) for split, own in listed.items()} == found
        return
    domains = {f"{name} {number}": name for name in names for number in range(5)}
    found = cut(domains, {"list": which}, domains=domains)
    assert tuple(len(found[split]) for split in SPLITS) == tuple(5 * size for size in sizes)
    with pytest.raises(ValueError, match="the list fc100 is of domains"):
        cut(names, {"list": which})


def test_a_hundred_thousand_names_are_cut_at_once():
    names = np.arange(100_000).astype(str).tolist()
    assert abs(len(by_ratio(names, [0.7, 0.15, 0.15])["train"]) - 70_000) < 800


def test_rows_of_each_class_are_split_where_only_these_classes_matter(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "\n".join(["text,label", *(f"{name} {n},{name}" for name in ("pay", "fly", "eat") for n in range(20))])
    )
    source = sources.text(path, ways="all", shots=2, queries=3, width=32, split={"rows": [0.5, 0.25, 0.25]})
    rows = {split: source.classes(split) for split in SPLITS}
    assert {split: {name: len(r) for name, r in of.items()} for split, of in rows.items()} == {
        "train": dict.fromkeys(("eat", "fly", "pay"), 10),
        "val": dict.fromkeys(("eat", "fly", "pay"), 5),
        "test": dict.fromkeys(("eat", "fly", "pay"), 5),
    }
    flat = np.concatenate([r for of in rows.values() for r in of.values()])
    assert sorted(flat.tolist()) == list(range(60)), "each row is in one split"
    assert source.task("test", 0).query.targets.shape == (9, 3)
    assert "same classes in all splits" in source.describe()["same_classes"]
    with pytest.raises(ValueError, match="split by rows is for classes"):
        cut(["a", "b"], {"rows": [0.5, 0.25, 0.25]}, kind="group")
    with pytest.raises(ValueError, match="three shares that sum to 1"):
        sources.text(path, ways="all", split={"rows": [0.5, 0.25]})


def test_only_assigns_all_names_to_one_split():
    assert cut(["a", "b"], {"only": "test"}) == {"test": ["a", "b"]}
    with pytest.raises(ValueError, match="split by only takes train, val or test; got 'tests'"):
        cut(["a", "b"], {"only": "tests"})
