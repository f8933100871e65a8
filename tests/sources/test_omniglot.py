"""Omniglot: the reader on small sets made here, whole and broken, and on the real data where it is at hand."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings import CHARACTERS, DRAWINGS, SMALL, draw, make_tree
from PIL import Image, ImageOps

from kshot import types
from kshot.app.known_sets import open_known
from kshot.data import ArrayDataset, library
from kshot.sources import omniglot, omniglot_runs
from kshot.tasks import ClassTasks
from kshot.types import SPLITS

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "omniglot"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the Omniglot drawings are not in {REAL}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "omniglot")


@pytest.fixture
def zips(tree: Path) -> Path:
    """The same as two zips."""
    for part in ("images_background", "images_evaluation"):
        shutil.make_archive(str(tree / part), "zip", tree, part)
        shutil.rmtree(tree / part)
    return tree


def drawings(source: ClassTasks, split, name: str) -> np.ndarray:
    return source.examples.images[source.classes(split)[name], 0]


def test_drawings_are_inverted_and_scaled_down_with_antialiasing(tree):
    source = omniglot(path=tree, size=35, **SMALL)
    (inks,) = [drawings(source, "val", name) for name in source.class_names["val"] if name.endswith("rot000")]
    for k, ink in enumerate(inks):
        with Image.open(tree / "images_background" / CHARACTERS["val"] / f"0001_0{k}.png") as image:
            original = 255 - np.asarray(image.convert("L"), np.float64)
        boxes = original.reshape(35, 3, 35, 3).mean((1, 3))
        assert ink.shape == (35, 35)
        assert np.corrcoef(ink.ravel(), boxes.ravel())[0, 1] > 0.97
        assert ((ink > 30) & (ink < 225)).any(), "edges are grey"
    assert omniglot(path=tree, **SMALL).describe()["image_size"] == [1, 28, 28]


def test_a_rotated_class_is_the_character_turned(tree):
    source = omniglot(path=tree, **SMALL)
    for split in SPLITS:
        upright = drawings(source, split, f"{CHARACTERS[split]}/rot000")
        assert len({image.tobytes() for image in upright}) == DRAWINGS
        for turns, name in enumerate(("rot000", "rot090", "rot180", "rot270")):
            turned = drawings(source, split, f"{CHARACTERS[split]}/{name}")
            assert np.array_equal(turned, np.rot90(upright, turns, axes=(1, 2)))


def test_zips_and_folders_give_the_same_classes(tree, tmp_path):
    from_tree = omniglot(path=tree, **SMALL)
    for part in ("images_background", "images_evaluation"):
        shutil.make_archive(str(tree / part), "zip", tree, part)
        shutil.rmtree(tree / part)
    from_zips = omniglot(path=str(tree), **SMALL)
    assert from_zips.class_names == from_tree.class_names
    assert torch.equal(from_zips.task("test", 3).query.inputs, from_tree.task("test", 3).query.inputs)


def test_changed_drawings_are_decoded_again(tree):
    before = drawings(omniglot(path=tree, **SMALL), "train", f"{CHARACTERS['train']}/rot000")
    draw(tree / "images_background" / CHARACTERS["train"] / "0000_00.png", 99)
    after = drawings(omniglot(path=tree, **SMALL), "train", f"{CHARACTERS['train']}/rot000")
    assert [bool((a != b).any()) for a, b in zip(before, after)] == [True, False, False, False]


def test_a_damaged_cache_is_made_again(zips, cache):
    before = set(cache.glob("*.npz"))
    source = omniglot(path=zips, size=11, **SMALL)
    (path,) = set(cache.glob("*.npz")) - before
    path.write_bytes(path.read_bytes()[:-300])
    assert np.array_equal(omniglot(path=zips, size=11, **SMALL).examples.images, source.examples.images)
    with np.load(path) as arrays:
        assert arrays["images"].shape == (3 * DRAWINGS, 11, 11)


def damaged(zips: Path, change) -> None:
    path = zips / "images_background.zip"
    path.write_bytes(change(path.read_bytes()))


def flip_bits(content: bytes) -> bytes:
    place = content.index(b".png") + 24
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize("change", [lambda content: content[: len(content) // 2], flip_bits, lambda content: b""])
def test_a_damaged_zip_is_named(zips, change):
    damaged(zips, change)
    with pytest.raises(ValueError, match=r"images_background\.zip is damaged or not a zip .*download it again"):
        omniglot(path=zips, **SMALL)


def test_a_missing_half_is_named(zips):
    (zips / "images_evaluation.zip").unlink()
    with pytest.raises(ValueError, match=r"neither images_evaluation\.zip nor images_evaluation/"):
        omniglot(path=zips, **SMALL)


def test_missing_splits_say_what_to_put_there(zips):
    shutil.rmtree(zips / "splits_vinyals")
    with pytest.raises(ValueError, match=r"train\.txt is missing; put the lists train\.txt, val\.txt and test\.txt"):
        omniglot(path=zips, **SMALL)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "Runes/character09/rot000",
            r"train\.txt lists Runes/character09/rot000, but .* no drawings of Runes/character09",
        ),
        ("Runes/character01", r"train\.txt, line 5: expected Alphabet/characterNN/rot000.*got 'Runes/character01'"),
        ("Runes/character01/rot045", r"train\.txt, line 5: .*got 'Runes/character01/rot045'"),
        ("Runes/character01/rot090", r"train\.txt lists Runes/character01/rot090 more than once"),
        ("Runes/character02/rot090", r"Runes/character02/rot000 is in val\.txt, but the same character is in train"),
    ],
)
def test_a_split_list_that_is_wrong_is_quoted(zips, line, sentence):
    with (zips / "splits_vinyals" / "train.txt").open("a") as lists:
        lists.write(f"{line}\n")
    with pytest.raises(ValueError, match=sentence):
        omniglot(path=zips, **SMALL)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"side": 104}, r"0000_00\.png is 104×104 of mode '1', expected 105×105"),
        ({"mode": "RGB"}, r"0000_00\.png is 105×105 of mode 'RGB', expected 105×105, black on white"),
    ],
)
def test_an_image_of_another_kind_is_named(tree, options, sentence):
    draw(tree / "images_background" / CHARACTERS["train"] / "0000_00.png", 1, **options)
    with pytest.raises(ValueError, match=sentence):
        omniglot(path=tree, **SMALL)


@pytest.mark.parametrize("keep", [0, 20, 90])
def test_an_image_cut_short_is_named(tree, keep):
    path = tree / "images_background" / CHARACTERS["train"] / "0000_00.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"0000_00\.png cannot be read as an image"):
        omniglot(path=tree, **SMALL)


def test_a_missing_class_and_a_class_with_too_few_drawings_are_named(tree):
    (tree / "images_background" / CHARACTERS["val"] / "0001_02.png").unlink()
    with pytest.raises(ValueError, match=r"class 'Runes/character02/rot000' in val has 3 examples, .*need 4"):
        omniglot(path=tree, **SMALL)
    shutil.rmtree(tree / "images_background" / CHARACTERS["val"])
    with pytest.raises(ValueError, match=r"val\.txt lists Runes/character02/rot000, but .* no drawings of"):
        omniglot(path=tree, **SMALL)


def test_only_training_drawings_are_varied(tree):
    plain, varied = omniglot(path=tree, **SMALL), omniglot(path=tree, augment={"shift": 3, "rotate": 20}, **SMALL)
    for split in SPLITS:
        same = torch.equal(plain.task(split, 0).query.inputs, varied.task(split, 0).query.inputs)
        assert same == (split != "train")


def test_mirror_images_are_training_classes_of_their_own(tree):
    plain, mirrored = omniglot(path=tree, **SMALL), omniglot(path=tree, mirrored_classes=True, **SMALL)
    assert len(mirrored.class_names["train"]) == 2 * len(plain.class_names["train"])
    for name, rows in plain.classes("train").items():
        upright = plain.examples.take(rows)
        assert torch.equal(mirrored.examples.take(mirrored.classes("train")[name]), upright)
        assert torch.equal(mirrored.examples.take(mirrored.classes("train")[f"{name}/mirrored"]), upright.flip(-1))
    assert torch.equal(mirrored.task("test", 2).query.inputs, plain.task("test", 2).query.inputs)


def test_background_only_takes_evaluation_alphabets_out_of_training(tree):
    for k in range(DRAWINGS):
        draw(tree / "images_evaluation" / "Elvish" / "character02" / f"0009_0{k}.png", 90 + k)
    with (tree / "splits_vinyals" / "train.txt").open("a") as lists:
        lists.write("Elvish/character02/rot000\n")
    whole = omniglot(path=tree, **SMALL)
    for packed in (False, True):
        if packed:
            for part in ("images_background", "images_evaluation"):
                shutil.make_archive(str(tree / part), "zip", tree, part)
                shutil.rmtree(tree / part)
        background = omniglot(path=tree, background_only=True, **SMALL)
        assert set(whole.class_names["train"]) - set(background.class_names["train"]) == {"Elvish/character02/rot000"}
        assert len(background.class_names["train"]) == 4
        assert background.class_names["test"] == whole.class_names["test"]


# the official runs ---------------------------------------------------------------------------------------------------


def official(folder: Path, *, runs: int = 20, answer=lambda k: k % 20 + 1, without: str = "") -> Path:
    """A zip of runs as Lake's are, whose test drawing k is of the training class `answer(k)`."""
    draw(folder / "one.png", 0)
    blank = (folder / "one.png").read_bytes()
    path = folder / "all_runs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for run in (f"run{number:02}" for number in range(1, runs + 1)):
            lines = []
            for k in range(1, 21):
                for name in (f"{run}/training/class{k:02}.png", f"{run}/test/item{k:02}.png"):
                    if name != without:
                        archive.writestr(name, blank)
                lines.append(f"{run}/test/item{k:02}.png {run}/training/class{answer(k):02}.png")
            archive.writestr(f"{run}/class_labels.txt", "\n".join(lines) + "\n")
    return path


def test_official_runs_have_the_answers_of_their_lists(tmp_path):
    source = omniglot_runs(official(tmp_path), size=21)
    task = source.task("test", 7)
    assert task.support.inputs.shape == task.query.inputs.shape == (20, 1, 21, 21)
    assert task.support.targets.argmax(1).tolist() == list(range(20))
    assert task.query.targets.argmax(1).tolist() == [*range(1, 20), 0]
    with pytest.raises(ValueError, match=r"there are 20 official runs, 0 … 19; task 20 was asked for"):
        source.task("test", 20)
    with pytest.raises(ValueError, match=r"there are no train tasks; train on omniglot\(\)"):
        source.task("train", 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"runs": 19}, r"run20 cannot be read"),
        ({"answer": lambda k: 1}, r"run01 cannot be read \(its answers are not the 20 training drawings, each once"),
        ({"answer": lambda k: k + 1}, r"run01 cannot be read .*class21\.png"),
        ({"without": "run03/test/item05.png"}, r"run03 cannot be read .*item05\.png"),
    ],
)
def test_official_runs_that_are_not_whole_are_named(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        omniglot_runs(official(tmp_path, **options))


def test_missing_official_runs_say_where_they_are_to_be_had(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*runs\.zip; get all_runs\.zip from github\.com/brendenlake"):
        omniglot_runs(tmp_path / "runs.zip")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        omniglot_runs(tmp_path / "runs.zip", size=0)


@pytest.mark.slow
@real_data
def test_the_real_official_runs_show_pairs_of_one_character_of_an_alphabet_that_background_only_never_saw():
    source = omniglot(path=REAL, background_only=True)
    seen = {name.split("/")[0] for split in ("train", "val") for name in source.class_names[split]}
    assert len(seen) == 30
    drawn = {}
    for split in SPLITS:
        for name, rows in omniglot(path=REAL).classes(split).items():
            if name.endswith("rot000"):
                drawn |= {image.tobytes(): name for image in source.examples.images[rows]}
    runs = omniglot_runs(REAL / "official" / "all_runs.zip")
    for index in range(20):
        task = runs.task("test", index)
        names = [[drawn[image.mul(255).round().byte().numpy().tobytes()] for image in part.inputs] for part in task]
        assert [names[0][label] for label in task.query.targets.argmax(1)] == names[1]
        assert len({name.split("/")[0] for name in names[0]} - seen) == 1


def test_an_absent_data_set_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    with pytest.raises(ValueError, match=r"looked for .*/omniglot, .*kshot data add omniglot`"):
        omniglot()
    with pytest.raises(ValueError, match=r"nowhere is no folder"):
        omniglot(path=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        omniglot(path=tmp_path, size=0)


@real_data
def test_the_real_data_has_the_published_classes(monkeypatch):
    monkeypatch.setenv("KSHOT_DATA", str(REAL.parent))
    source = omniglot(ways=20, shots=5)
    assert source.describe()["classes"] == {"train": 4112, "val": 688, "test": 1692}
    assert source.examples.images.shape == (4 * 32_460, 1, 28, 28)
    stack = source.stack("test", range(2))
    assert stack.support.inputs.shape == (2, 100, 1, 28, 28)
    assert stack.query.targets.shape == (2, 300, 20)
    assert source.pretraining_batch(0, 8).targets.shape == (8, 4112)
    assert library.check("omniglot", open_known) == {
        split: {"classes": classes, "drawings": 20 * classes}
        for split, classes in (("train", 4112), ("val", 688), ("test", 1692))
    }


@real_data
def test_real_tasks_stay_within_an_alphabet_where_asked():
    source = omniglot(path=REAL, ways=(5, 20), shots=(1, 5), queries=2, within="alphabet")
    alphabet = np.empty(len(source.examples), object)
    for name, rows in source.classes("test").items():
        alphabet[rows] = name.split("/")[0]
    source.examples = ArrayDataset(np.arange(len(alphabet))[:, None])  # the same tasks, showing their rows
    drawn = [set(alphabet[task.query.inputs[:, 0]]) for task in types.unstack(source.stack("test", range(200)))]
    assert all(len(alphabets) == 1 for alphabets in drawn)
    assert len(set.union(*drawn)) == source.describe()["domains"]["test"]
    with pytest.raises(ValueError, match="within must be one of alphabet"):
        omniglot(path=REAL, within="script")


@real_data
def test_a_real_class_holds_its_own_twenty_drawings():
    source = omniglot(path=REAL)
    name = "Gurmukhi/character42"
    with (
        zipfile.ZipFile(REAL / "images_evaluation.zip") as first,
        zipfile.ZipFile(REAL / "images_background.zip") as last,
    ):
        inside = [(part, path) for part in (first, last) for path in part.namelist() if f"/{name}/" in path]
        assert len(inside) == 20
        expected = []
        for part, path in sorted(inside, key=lambda member: member[1]):
            with part.open(path) as file, Image.open(file) as image:
                ink = ImageOps.invert(image.convert("L")).resize((28, 28), Image.Resampling.LANCZOS)
            expected.append(np.asarray(ink))
    assert np.array_equal(drawings(source, "test", f"{name}/rot000"), expected)
    assert np.array_equal(drawings(source, "test", f"{name}/rot270"), np.rot90(expected, 3, axes=(1, 2)))
