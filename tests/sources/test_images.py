"""Tasks from folders and tables of images: whole, odd and broken."""

from __future__ import annotations

import errno
import inspect
import io
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from kshot.data.images import cache
from kshot.data.images.augment import Augment
from kshot.data.images.cache import DecodedImages
from kshot.data.images.decode import SUFFIXES, BadImage
from kshot.data.images.index import ImageFile, Listing, list_folder, list_table
from kshot.sources import images
from kshot.tasks import ClassTasks
from kshot.types import SPLITS

SMALL = {"ways": 2, "shots": 1, "queries": 2, "size": 6, "colour": "grey"}


def draw(path: Path, number: int, size=(8, 6)) -> Path:
    """A grey image of one shade, which tells its number; its left half is darker by one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0]), number, np.uint8)
    pixels[:, : size[0] // 2] -= 1
    Image.fromarray(pixels).save(path)
    return path


def make(root: Path, classes: list[str], count: int = 4) -> Path:
    """A folder a class; image k of class c has the shade 20 c + 4 k + 5."""
    for c, name in enumerate(classes):
        for k in range(count):
            draw(root / name / f"{k}.png", 20 * c + 4 * k + 5)
    return root


NINE = [f"class{c}" for c in range(9)]
LISTS = {"train": NINE[:4], "val": NINE[4:6], "test": NINE[6:]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, names in LISTS.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
    return make(tmp_path / "pictures", NINE)


@pytest.fixture
def by_files(tmp_path: Path) -> dict:
    return {"split": {"files": {split: str(tmp_path / f"{split}.txt") for split in SPLITS}}}


def shades(inputs: torch.Tensor) -> list[int]:
    return (inputs[..., -1, -1] * 255).round().long().flatten().tolist()


# whole ---------------------------------------------------------------------------------------------------------------


def test_a_folder_a_class_becomes_tasks(folder, by_files):
    source = images(folder, **SMALL, **by_files)
    assert {split: list(names) for split, names in source.class_names.items()} == LISTS
    for split, names in LISTS.items():
        task = source.task(split, 3)
        assert task.support.inputs.shape == (2, 1, 6, 6)
        seen = [NINE[shade // 20] for shade in shades(torch.cat([task.support.inputs, task.query.inputs]))]
        assert set(seen) <= set(names)
        for batch in task:
            labels = batch.targets.argmax(1).tolist()
            of = {NINE[shade // 20]: label for shade, label in zip(shades(batch.inputs), labels)}
            assert len(set(of.values())) == len(of) == 2
    assert source.describe()["image_size"] == [1, 6, 6]
    assert source.describe()["source"] == "images of pictures"


def test_a_cut_by_ratio_is_whole_and_disjoint(tmp_path):
    source = images(make(tmp_path / "p", [f"c{c}" for c in range(12)], 3), **SMALL, split={"ratio": [0.5, 0.25, 0.25]})
    names = [name for split in SPLITS for name in source.class_names[split]]
    assert sorted(names) == sorted(f"c{c}" for c in range(12))


def test_split_folders_and_domains_are_read_from_the_path(tmp_path):
    for number, path in enumerate(["train/Greek/a", "train/Greek/b", "train/Thai/c", "valid/Lao/d", "test/e"]):
        make(tmp_path / "p" / path, ["."], 1 + number)
    found = list_folder(tmp_path / "p")
    assert {name: len(rows) for name, rows in found.classes.items()} == {
        "e": 5, "Greek/a": 1, "Greek/b": 2, "Thai/c": 3, "Lao/d": 4,
    }  # fmt: skip
    assert found.domains == {"Greek/a": "Greek", "Greek/b": "Greek", "Thai/c": "Thai", "Lao/d": "Lao", "e": ""}
    parts = {"Greek/a": {"train"}, "Greek/b": {"train"}, "Thai/c": {"train"}, "Lao/d": {"val"}, "e": {"test"}}
    assert found.values == {"split": parts}


def test_a_class_in_two_split_folders_is_an_error_and_can_be_cut_anew(tmp_path):
    for part in ("train", "val"):
        make(tmp_path / part, NINE, 2)
    with pytest.raises(ValueError, match=r"class 'class0' is in the folders of train and val.*split: \{ratio"):
        images(tmp_path, **SMALL)
    source = images(tmp_path, **SMALL, split={"ratio": [0.34, 0.33, 0.33], "seed": 1})
    assert sorted(name for names in source.class_names.values() for name in names) == NINE
    assert {len(rows) for split in SPLITS for rows in source.classes(split).values()} == {4}


def test_all_classes_of_a_task_come_from_one_domain(tmp_path):
    make(tmp_path / "p", [f"{domain}/{c}" for domain in "xyz" for c in range(3)], 3)
    held = {"heldout": {"val": ["y"], "test": ["z"]}}
    source = images(tmp_path / "p", **SMALL, split={"ratio": [1, 0, 0]}, within="domain")
    stack = source.stack("train", range(40))
    domains = {frozenset(shade // 60 for shade in shades(inputs)) for inputs in stack.support.inputs}
    assert domains == {frozenset({0}), frozenset({1}), frozenset({2})}
    assert images(tmp_path / "p", **SMALL, split=held).class_names["val"] == ("y/0", "y/1", "y/2")
    make(tmp_path / "p", ["lone"], 3)
    with pytest.raises(ValueError, match=r"class 'lone' has no domain \(1 of 10 have none\)"):
        images(tmp_path / "p", **SMALL, split={"ratio": [1, 0, 0]}, within="domain")


def test_a_table_says_the_same_as_the_folder(folder, by_files, tmp_path):
    split_of = {name: split for split, names in LISTS.items() for name in names}
    rows = [f"{name}/{k}.png,{name},{split_of[name]}" for name in NINE for k in range(4)]
    table = folder / "table.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    tabs = folder / "table.tsv"
    tabs.write_text(table.read_text().replace(",", "\t").replace("split", "part", 1))
    of_folder = images(folder.rename(tmp_path / "moved"), **SMALL, **by_files)
    for path, split in (("table.csv", None), ("table.tsv", {"column": "part"})):
        source = images(tmp_path / "moved" / path, **SMALL, split=split)
        assert source.class_names == of_folder.class_names
        assert torch.equal(source.task("test", 7).query.inputs, of_folder.task("test", 7).query.inputs)


def test_images_on_the_way_are_varied_in_training_tasks_only(folder, by_files):
    options = SMALL | {"size": 8}
    plain = images(folder, **options, **by_files)
    varied = images(folder, **options, **by_files, augment={"flip": True, "shift": 2, "jitter": 0.3})
    for split in ("val", "test"):
        assert torch.equal(plain.stack(split, range(5)).query.inputs, varied.stack(split, range(5)).query.inputs)
    stack, same = varied.stack("train", range(5)), plain.stack("train", range(5))
    assert torch.equal(stack.support.targets, same.support.targets)
    assert not torch.equal(stack.support.inputs, same.support.inputs)
    assert torch.equal(stack.query.inputs[3], varied.task("train", 3).query.inputs), "pure in the index"
    assert torch.equal(stack.query.inputs, images(folder, **options, **by_files, augment={"flip": True, "shift": 2, "jitter": 0.3}).stack("train", range(5)).query.inputs)  # fmt: skip # noqa: E501
    batches = [varied.pretraining_batch(step, 9).inputs for step in (0, 0, 1)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_turned_classes_stand_in_training_alone(folder, by_files):
    source = images(folder, **SMALL, **by_files, turned_classes=True)
    assert {split: len(names) for split, names in source.class_names.items()} == {"train": 16, "val": 2, "test": 3}
    upright = source.examples.take(source.classes("train")["class1/rot000"])
    for turns in range(4):
        turned = source.examples.take(source.classes("train")[f"class1/rot{90 * turns:03}"])
        assert torch.equal(turned, upright.rot90(turns, (-2, -1)))
    assert source.task("train", 0).support.inputs.shape == (2, 1, 6, 6)


def test_shifts_flips_and_colours_are_what_they_say():
    images = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4) / 120
    seen = set()
    for seed in range(60):
        moved = Augment(flip=True, shift=1)(images, np.random.default_rng(seed))
        for before, after in zip(images, moved):
            padded = torch.nn.functional.pad(before[None], (1, 1, 1, 1), mode="replicate")[0]
            fits = [
                (flip, down, right)
                for flip in (False, True)
                for down in range(3)
                for right in range(3)
                if torch.equal(after.flip(-1) if flip else after, padded[:, down : down + 5, right : right + 4])
            ]
            assert fits
            seen |= set(fits)
    assert len(seen) == 18, "every shift and both sides come"
    flat = torch.full((50, 3, 2, 2), 0.5)
    shades = Augment(jitter=0.4)(flat, np.random.default_rng(0)).mean((1, 2, 3))
    assert 0.3 - 1e-6 <= shades.min() < 0.33, "grey changes in brightness alone, by 1 ± 0.4"
    assert 0.67 < shades.max() <= 0.7 + 1e-6
    assert torch.equal(Augment()(images, np.random.default_rng(0)), images)


def test_a_warp_is_the_affine_map_that_it_says():
    images = torch.rand(40, 2, 9, 13, generator=torch.Generator().manual_seed(0))
    warped = Augment(rotate=30, scale=0.2, shear=0.3)(images, np.random.default_rng(1))
    angle, wide, high, slant = np.random.default_rng(1).uniform(-1, 1, (4, 40))
    middle = np.array([4.0, 6.0])
    for n in range(40):
        a = np.deg2rad(30 * angle[n])
        turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        matrix = turn @ [[1 + 0.2 * wide[n], 0.3 * slant[n]], [0, 1 + 0.2 * high[n]]]
        down_right = matrix[::-1, ::-1]  # scipy counts rows first
        for channel in range(2):
            expected = ndimage.affine_transform(
                images[n, channel].numpy(), down_right, middle - down_right @ middle, order=1, mode="nearest"
            )
            assert np.allclose(warped[n, channel], expected, atol=1e-4)
    assert not torch.equal(warped, images)
    still = Augment(rotate=1e-4)(images, np.random.default_rng(0))
    assert torch.allclose(still, images, atol=1e-3), "a warp of nothing moves nothing"


def test_conversions_are_noted(folder, by_files, caplog):
    caplog.set_level(logging.INFO, "kshot")
    images(folder, **SMALL | {"colour": "rgb"}, **by_files)
    assert "12 of 12 images looked at" in caplog.text
    assert "are grey, and converted to rgb; colour: grey would need less computation" in caplog.text


# the cache -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The files that are decoded."""
    names: list[str] = []
    real = cache.decode

    def decode(content, place, **options):
        names.append(Path(place).name)
        return real(content, place, **options)

    monkeypatch.setattr(cache, "decode", decode)
    return names


def opened(folder: Path, **options) -> DecodedImages:
    found = list_folder(folder)
    return DecodedImages(found.files, found.root, **{"size": 6, "colour": "grey"} | options)


ROWS = np.array([[0, 5, 5], [35, 1, 0]])
SHADES = [5, 29, 29, 177, 9, 5]


def test_each_image_is_decoded_once_and_only_when_it_is_drawn(folder, own_cache, counted):
    first = opened(folder)
    assert counted == []
    assert shades(first.take(ROWS)) == SHADES
    assert len(counted) == 4
    assert shades(first.take(ROWS)) == shades(opened(folder).take(ROWS)) == SHADES
    assert len(counted) == 4, "neither again, nor in another process"
    (cache,) = own_cache.glob("images-*")
    assert sorted(path.name for path in cache.iterdir()) == ["about.json", "checksums", "pixels"]
    opened(folder, size=5).take(ROWS)
    assert len(counted) == 8
    assert len(list(own_cache.glob("images-*"))) == 2


def test_what_was_left_half_written_or_damaged_is_decoded_again(folder, own_cache, counted):
    opened(folder).take(ROWS)
    (pixels,) = own_cache.glob("*/pixels")
    content = bytearray(pixels.read_bytes())
    content[5 * 36 + 3] ^= 1
    pixels.write_bytes(content)
    assert shades(opened(folder).take(ROWS)) == SHADES
    assert len(counted) == 5
    pixels.write_bytes(content[:100])
    assert shades(opened(folder).take(ROWS)) == SHADES
    assert len(counted) == 9
    assert len(list(own_cache.glob("images-*"))) == 1, "what was damaged is gone"


def test_a_cache_emptied_meanwhile_is_made_again(folder, own_cache):
    source = opened(folder)
    source.take(ROWS)
    shutil.rmtree(own_cache)
    more = np.array([0, 5, 7, 8])
    assert shades(source.take(more)) == [5, 29, 37, 45]
    assert shades(source.take(ROWS)) == SHADES


def test_a_cache_replaced_under_a_reader_gives_no_black_images(folder, own_cache, counted):
    first = opened(folder)
    shutil.rmtree(own_cache)
    second = opened(folder)
    assert shades(first.take(ROWS)) == SHADES
    assert shades(second.take(ROWS)) == SHADES
    assert len(counted) == 4, "they share what the first decoded"
    shutil.rmtree(own_cache)
    third = opened(folder)
    assert shades(first.take(ROWS)) == shades(third.take(ROWS)) == shades(second.take(ROWS)) == SHADES
    assert not list(own_cache.glob("images-*/damaged"))


def test_a_changed_image_is_decoded_anew_and_never_mixed_in(folder, own_cache):
    source = opened(folder)
    source.take(ROWS)
    draw(folder / NINE[1] / "1.png", 99, (10, 10))
    assert shades(opened(folder).take(ROWS))[1] == 99
    draw(folder / NINE[2] / "0.png", 98, (10, 10))
    with pytest.raises(ValueError, match=r"class2/0\.png was modified after it was listed; open the source again"):
        source.take(np.array([8]))
    (folder / NINE[2] / "1.png").unlink()
    with pytest.raises(ValueError, match=r"class2/1\.png cannot be read: No such file"):
        source.take(np.array([9]))


FILL = """
import sys, numpy as np
from pathlib import Path
from kshot.data.images.cache import DecodedImages
from kshot.data.images.index import list_folder
found = list_folder(Path(sys.argv[1]))
images = DecodedImages(found.files, found.root, size=6, colour="grey")
for row in np.random.default_rng(int(sys.argv[2])).permutation(len(images)):
    images.take(np.array([row]))
"""


def test_two_processes_fill_one_cache_at_once(folder, own_cache, counted):
    command = [sys.executable, "-W", "error", "-c", FILL, str(folder)]
    running = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True) for seed in (1, 2)]
    assert [process.communicate()[1] for process in running] == ["", ""]
    assert len(list(own_cache.glob("images-*"))) == 1
    rows = np.arange(36)
    assert shades(opened(folder).take(rows)) == [20 * (row // 4) + 4 * (row % 4) + 5 for row in rows]
    assert counted == [], "they left it whole"


def test_a_disk_that_is_full_is_a_sentence(folder, own_cache, monkeypatch):
    source = opened(folder)

    def full(file, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kshot.data.images.cache._write_all", full)
    with pytest.raises(
        ValueError, match=r"cannot write decoded images to .*No space left.*make room, or set KSHOT_CACHE"
    ):
        source.take(ROWS)
    monkeypatch.undo()
    assert shades(source.take(ROWS)) == SHADES


# bad images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(folder) -> Path:
    """One file is text, one is empty, one was cut short; all other images are whole."""
    (folder / NINE[0] / "3.png").write_text("no image")
    (folder / NINE[1] / "0.png").write_bytes(b"")
    cut = folder / NINE[6] / "2.png"
    cut.write_bytes(cut.read_bytes()[:45])
    return folder


def test_a_bad_image_is_named_when_it_is_drawn(spoilt, by_files):
    source = images(spoilt, **SMALL, **by_files)
    source.stack("val", range(20))
    with pytest.raises(BadImage, match=r"class[01]/[03]\.png is .*left out by bad_images: drop"):
        source.stack("train", range(200))
    with pytest.raises(BadImage, match=r"class6/2\.png is damaged"):
        source.stack("test", range(200))
    with pytest.raises(BadImage, match=r"class6/2\.png is damaged"):
        source.stack("test", range(200))


def test_bad_images_are_dropped_counted_and_listed_where_that_is_allowed(spoilt, by_files, caplog):
    told = []
    source = images(spoilt, **SMALL, **by_files, bad_images="drop", progress=lambda *numbers: told.append(numbers))
    assert told[-1] == (36, 36)
    assert source.describe()["dropped"] == {"images that cannot be used": 3}
    assert sorted(source.examples.bad) == [3, 4, 26]
    assert all(name in caplog.text for name in ("class0/3.png", "class1/0.png", "class6/2.png"))
    assert {len(rows) for split in SPLITS for rows in source.classes(split).values()} == {3, 4}
    for split in SPLITS:
        source.stack(split, range(100))
    again = images(spoilt, **SMALL, **by_files, bad_images="drop")
    assert torch.equal(again.task("train", 5).query.inputs, source.task("train", 5).query.inputs)


# bad folders ---------------------------------------------------------------------------------------------------------


def test_odd_names_are_no_obstacle(tmp_path):
    names = ["zwölf Boxkämpfer", "猫", "two\nlines", "a'b\"c", " blank ", "%s {x}"]
    root = make(tmp_path / "p", names, 3)
    raw = os.fsencode(root) + b"/\xff\xfe"
    os.mkdir(raw)
    shutil.copyfile(root / "猫" / "0.png", raw + b"/\xff.png")
    found = list_folder(root)
    assert set(found.classes) == {*names, "\\udcff\\udcfe"}
    source = images(root, **SMALL, split={"ratio": [1, 0, 0]}, on_too_few="drop")
    assert set(source.class_names["train"]) == set(names)
    source.stack("train", range(20))
    (root / "two\nlines" / "0.png").write_bytes(b"")
    with pytest.raises(BadImage, match=r"two\\nlines/0\.png' is empty"):
        images(root, **SMALL, split={"ratio": [1, 0, 0]}, on_too_few="drop").stack("train", range(50))


def test_what_is_no_image_is_passed_over_or_counted(folder):
    for name in (".hidden.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (folder / NINE[0] / name).write_bytes(b"x")
    make(folder / ".cache", NINE)
    make(folder / "__MACOSX", NINE)
    (folder / NINE[0] / "notes.txt").write_text("mine")
    (folder / "LICENSE").write_text("mine")
    os.mkfifo(folder / NINE[0] / "pipe.png")
    found = list_folder(folder)
    assert list(found.classes) == NINE
    assert {len(rows) for rows in found.classes.values()} == {4}
    assert found.skipped == {".txt": 1, "": 1, ".png": 1}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda p: shutil.rmtree(p), r"there is no folder"),
        (lambda p: [shutil.rmtree(p / name) for name in NINE], r"holds no images in folders; it needs a folder"),
        (lambda p: [shutil.rmtree(p / n) for n in NINE] and draw(p / "a.png", 9), r"holds no images in folders"),
        (lambda p: [shutil.rmtree(p / n) for n in NINE] and [(p / "a").mkdir(), (p / "a" / "b.psd").write_text("")], r"it holds 1 \.psd"),  # noqa: E501
        (lambda p: draw(p / "stray.png", 9), r"holds images, such as stray\.png, beside folders, such as class0"),
        (lambda p: draw(p / NINE[3] / "more" / "a.png", 9), r"class3/ holds images, such as 0\.png, beside folders, such as more"),  # noqa: E501
        (lambda p: draw(p / "single" / "a.png", 9), r"class 'single' in train has 1 examples.*on_too_few: drop"),
        (lambda p: (p / NINE[0] / "loop").symlink_to(p), r"are the same by a link, or lead in a circle"),
        (lambda p: (p / "loop").symlink_to(p / "loop"), r"the link .*loop leads nowhere \(Too many levels"),
        (lambda p: (p / "gone").symlink_to(p / "nothing"), r"the link .*gone leads nowhere \(No such file"),
        (lambda p: (p / "twin").symlink_to(p / NINE[2]), r"class2 and .*twin are the same by a link"),
        (lambda p: (p / NINE[1] / "a.png").symlink_to(p / NINE[0] / "0.png"), r"0\.png and .*class1/a\.png are"),
        (lambda p: (p / "out").symlink_to(make(p.parent / "far", ["x"]) / "x"), r"leads out of .*to .*far/x; .*follow_links: true"),  # noqa: E501
        (lambda p: (p / NINE[0] / "o.png").symlink_to(draw(p.parent / "o.png", 7)), r"class0/o\.png leads out of"),
    ],
)  # fmt: skip
def test_a_folder_that_is_wrong_gets_a_sentence(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(ValueError, match=sentence):
        images(folder, **SMALL, split={"ratio": [1, 0, 0]})


def test_links_that_lead_out_are_followed_where_that_is_allowed(folder, tmp_path):
    (folder / "far").symlink_to(make(tmp_path / "far", ["x"], 3) / "x")
    source = images(folder, **SMALL, split={"ratio": [1, 0, 0]}, follow_links=True)
    assert shades(source.examples.take(source.classes("train")["far"])) == [5, 9, 13]
    (tmp_path / "far" / "x" / "back").symlink_to(folder)
    with pytest.raises(ValueError, match="lead in a circle"):
        list_folder(folder, follow_links=True)


def test_small_classes_are_dropped_where_that_is_allowed(folder):
    (folder / "empty").mkdir()
    draw(folder / "single" / "a.png", 9)
    source = images(folder, **SMALL, split={"ratio": [1, 0, 0]}, on_too_few="drop")
    assert list(source.class_names["train"]) == NINE
    assert source.describe()["dropped"] == {"classes in train with fewer than 3 examples": 1}  # "empty" is no class


def test_classes_alike_but_for_case_or_accents_are_told(tmp_path, caplog):
    list_folder(make(tmp_path / "p", ["Cat", "cat", "dog", "é", "e\u0301"], 1))
    assert "'Cat' and 'cat' differ only in case or accents" in caplog.text
    assert "(2 such cases)" in caplog.text


TABLE = "path,label\nclass0/0.png,a\nclass1/0.png,b\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"t\.csv is empty"),
        ("path,label\n", r"t\.csv has a header but no rows"),
        (TABLE.replace("path", "file"), r"has no column 'path'; it has 'file', 'label'"),
        (TABLE.replace("label", "class"), r"has no column 'label'"),
        (TABLE + "class2/0.png,\n", r"t\.csv, line 4, column 'label': the value is missing; each image needs a label"),
        (TABLE + ",c\n", r"t\.csv, line 4, column 'path': the value is missing"),
        (
            TABLE + "class9/0.png,c\nclass2/0.png,c\n",
            r"t\.csv, line 4: there is no file .*class9/0\.png \(1 of 4 are missing\)",
        ),
        (TABLE + "/etc/passwd,c\n", r"t\.csv, line 4: the path /etc/passwd leads out of .*follow_links: true"),
        (TABLE + "../train.txt,c\n", r"line 4: the path \.\./train\.txt leads out of"),
        (TABLE + "class2/../../train.txt,c\n", r"line 4: the path class2/\.\./\.\./train\.txt leads out of"),
        (TABLE + "class0/./0.png,b\n", r"line 4: class0/\./0\.png is a duplicate of .*t\.csv, line 2; keep one"),
        (TABLE + "class2,c\n", r"line 4: .*class2 is not a file"),
        (TABLE + "class2/0.png,c,d,e\n", r"t\.csv, line 4: 4 values where the header names 2"),
        ("path,label,domain\nclass0/0.png,a,x\nclass0/1.png,a,y\n", r"class 'a' has rows in the domains x and y"),
        ("path,label,split\nclass0/0.png,a,train\nclass0/1.png,a,val\n", r"class 'a' has rows in train and in val"),
        ("path,label,split\nclass0/0.png,a,training\n", r"must hold train, val or test; class 'a' has 'training'"),
    ],
)
def test_a_table_that_is_wrong_gets_a_sentence(folder, text, sentence):
    (folder / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        images(folder / "t.csv", **SMALL)


def test_paths_of_a_table_that_lead_out_by_a_link_are_found_and_may_be_allowed(folder, tmp_path):
    far = draw(tmp_path / "far" / "x.png", 77)
    (folder / "link.png").symlink_to(far)
    (folder / "through").symlink_to(far.parent)
    for path in ("link.png", "through/x.png"):
        (folder / "t.csv").write_text(f"path,label\n{path},a\n")
        with pytest.raises(ValueError, match=rf"line 2: {path} leads by a link out of .*far.*follow_links: true"):
            list_table(folder / "t.csv")
        assert list_table(folder / "t.csv", follow_links=True).files[0].name == path
    (folder / "t.csv").write_text(f"path,label\n{far},a\n")
    assert list_table(folder / "t.csv", follow_links=True).files[0].bytes == far.stat().st_size


def test_a_byte_order_mark_and_labels_of_digits_do_no_harm(folder):
    (folder / "t.csv").write_text("\ufeffpath,label\nclass0/0.png,007\nclass0/1.png,7\n", encoding="utf-8")
    assert list_table(folder / "t.csv").classes == {"007": [0], "7": [1]}
    (folder / "t.csv").write_text("path;label\nclass0/0.png;NA\nclass0/1.png;é\n", encoding="utf-16")
    assert list_table(folder / "t.csv").classes == {"NA": [0], "é": [1]}, "other delimiters and encodings"


def test_a_hundred_thousand_classes_of_one_image_are_refused_at_once(monkeypatch, tmp_path, own_cache):
    count = 100_000
    found = Listing(
        tmp_path,
        [ImageFile(f"{row}/a.png", 9, row) for row in range(count)],
        {str(row): [row] for row in range(count)},
        {str(row): "" for row in range(count)},
        {},
        {},
    )
    monkeypatch.setitem(inspect.unwrap(images).__globals__, "list_folder", lambda *_, **__: found)
    started = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"in train has 1 examples, but 1 shots \+ 2 queries need 3.*\(\d{5} in train\)"
    ):
        images(tmp_path, **SMALL)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"colour": "gray"}, "colour must be one of grey, rgb, got 'gray'"),
        ({"bad_images": "skip"}, "bad_images must be one of error, drop, got 'skip'"),
        ({"within": "alphabet"}, "within must be one of domain, got 'alphabet'"),
        ({"augment": {"shift": -1}}, "shift must be at least 0, got -1"),
        ({"augment": {"jitter": 2}}, "jitter must be at least 0 and at most 1, got 2"),
        ({"augment": {"rotate": -5}}, "rotate must be at least 0 and at most 180, got -5"),
        ({"augment": {"scale": 1}}, "scale must be at least 0 and below 1, got 1"),
        ({"augment": {"shear": 1.5}}, "shear must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_an_option_that_is_wrong_is_named(folder, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        images(folder, **SMALL | options)


# the run file --------------------------------------------------------------------------------------------------------

RUN = """\
name: mine
source: {kind: images, path: PATH, ways: [2, 3], shots: [1, 2], queries: 1, size: 16, split: SPLIT}
model: {kind: conv4, channels: 4, downsample: stride}
learner: {kind: protonet}
train: {steps_per_round: 2, tasks_per_step: 2}
target: accuracy >= 0
budget: {rounds: 1}
evaluate: {num_val_tasks: 3, num_test_tasks: 3, shots: []}
baselines: {names: [centroid], num_test_tasks: 3}
"""


def test_a_run_file_names_a_folder_and_is_carried_out(folder, by_files, tmp_path):
    from rich.console import Console

    from kshot.app.run import run
    from kshot.app.spec import parse_spec

    report = run(
        parse_spec(RUN.replace("PATH", str(folder)).replace("SPLIT", str(by_files["split"])), "it"),
        tmp_path / "out",
        console=Console(file=io.StringIO()),
    )
    assert report["outcome"] == "TARGET_MET"
    assert report["protocol"]["shots"] == [1, 2]


def test_the_run_file_and_the_function_have_the_same_options_and_defaults():
    from kshot.app.schema import check_part

    spec = check_part("source", {"kind": "images", "path": "x"}).model_dump(exclude={"kind", "path"})
    parameters = inspect.signature(ClassTasks).parameters | inspect.signature(images).parameters
    not_in_files = (
        "examples",
        "classes",
        "name",
        "preprocessor",
        "left_out",
        "same_classes",
        "path",
        "options",
        "seed",
        "progress",
    )
    assert spec == {name: p.default for name, p in parameters.items() if name not in not_in_files}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("ways: [2, 3]", "ways: [3, 2]"),
            r"it, line 2: source\.ways: .*rising range of two such as \[1, 5\], got \[3, 2\]",
        ),
        (("queries: 1", "queries: 0"), r"it, line 2: source\.queries: .*whole number from 1 to"),
        (("size: 16", "sise: 16"), r"it, line 2: unknown key 'source\.sise': did you mean 'size'\?"),
        (
            ("size: 16", "augment: {flop: true}"),
            r"it, line 2: unknown key 'source\.augment\.flop': did you mean 'flip'\?",
        ),
    ],
)
def test_a_wrong_key_of_images_is_named(change, sentence):
    from kshot.app.spec import parse_spec

    with pytest.raises(ValueError, match=sentence):
        parse_spec(RUN.replace(*change), "it")


# real data -----------------------------------------------------------------------------------------------------------


def test_real_drawings_are_those_that_pillow_reads(omniglot_data, tmp_path):
    with zipfile.ZipFile(omniglot_data / "images_background.zip") as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/Braille/" in name or "/Greek/" in name])
    source = images(tmp_path / "images_background", size=28, colour="grey", split={"ratio": [1, 0, 0]}, within="domain")
    assert len(source.class_names["train"]) == 26 + 24
    for name in ("Braille/character07", "Greek/character24"):
        drawings = [Image.open(path) for path in sorted((tmp_path / "images_background" / name).iterdir())]
        expected = [np.asarray(d.convert("L").resize((28, 28), Image.Resampling.LANCZOS)) for d in drawings]
        found = source.examples.take(source.classes("train")[name]) * 255
        assert np.array_equal(found[:, 0].numpy().round(), expected)
        for drawing in drawings:
            drawing.close()


def test_what_is_no_image_is_told_and_an_empty_folder_is_no_class(tmp_path):
    for number in range(9):
        folder = tmp_path / f"c{number}"
        folder.mkdir()
        for picture in range(4):
            Image.new("RGB", (9, 9), (9 * number, 40 * picture, 0)).save(folder / f"{picture}.png")
    (tmp_path / "c0" / "x.HEIC").write_bytes(b"a photo")
    (tmp_path / "c0" / "._0.png").write_bytes(b"of a file manager")
    (tmp_path / "c1" / "Thumbs.db").write_bytes(b"of another")
    (tmp_path / "empty").mkdir()
    source = images(tmp_path, size=8, ways=2, shots=1, queries=3)
    names = {name for split in ("train", "val", "test") for name in source.classes(split)}
    assert names == {f"c{number}" for number in range(9)}
    told = " ".join(source.notes)
    assert "folders hold no images, and are no classes: empty" in told
    if ".heic" not in SUFFIXES:
        assert "holds files that are not read as images: 1 .heic" in told
        assert "pip install 'kshot[files]' to read HEIC" in told
