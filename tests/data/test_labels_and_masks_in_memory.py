"""Data sets in memory whose images have several labels, or a mask, give the tasks of the same data in files."""

import io

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from kshot.app.build import build_source
from kshot.app.in_memory import as_text
from kshot.app.spec import parse_spec
from kshot.data.images.in_memory import kept_labelled_images, kept_masks
from kshot.sources import masks, multilabel_images
from kshot.sources.masks import MaskPreprocessor
from kshot.sources.multilabel_images import MultilabelPreprocessor
from kshot.types import SPLITS

NAMES = [f"label {number}" for number in range(6)]
LABELS = {"ways": 2, "shots": 1, "queries": 1, "size": 8, "split": {"ratio": [0.34, 0.33, 0.33]}}
MASKS = {"shots": 1, "queries": 1, "size": 8, "split": {"ratio": [0.34, 0.33, 0.33]}}


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def labels(number):
    return sorted({number % 6, (number + 1 + number // 12) % 6} if number // 6 % 2 else {number % 6})


def mask(number):
    array = np.zeros((8, 8), np.uint8)
    array[:4] = 1 + number % 6
    array[7] = 255
    return array


class Data(Dataset):
    """Seventy-two images; `form` makes of a number what is beside its image."""

    classes = NAMES

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 72

    def __getitem__(self, index):
        return Image.fromarray(pixels(index)), self.form(index)


class Masks(Data):
    classes = ("background", *NAMES)


def ones(number):
    return torch.tensor([int(each in labels(number)) for each in range(6)])


def assert_equal_tasks(one, other):
    for split in SPLITS:
        for index in range(3):
            for found, expected in zip(*(torch.utils._pytree.tree_leaves(s.task(split, index)) for s in (one, other))):
                assert torch.equal(found, expected)


@pytest.fixture
def table(tmp_path):
    for number in range(72):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    written = [";".join(NAMES[each] for each in labels(number)) for number in range(72)]
    pl.DataFrame({"path": [f"{n}.png" for n in range(72)], "labels": written}).write_csv(tmp_path / "x.csv")
    return tmp_path / "x.csv"


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(72):
        Image.fromarray(pixels(number)).save(tmp_path / "images" / f"{number:02}.png")
        Image.fromarray(mask(number)).save(tmp_path / "masks" / f"{number:02}.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    return tmp_path


@pytest.mark.parametrize(
    "form",
    [
        labels,
        lambda number: [NAMES[each] for each in labels(number)],
        lambda number: set(labels(number)),
        ones,
        lambda number: ones(number).float(),
        lambda number: ones(number).bool().numpy(),
    ],
    ids=["numbers", "words", "set", "ones", "floats", "booleans"],
)
def test_several_labels_give_the_tasks_of_a_table(form, table):
    assert_equal_tasks(multilabel_images(Data(form), **LABELS), multilabel_images(table, **LABELS))


@pytest.mark.parametrize(
    "form",
    [
        lambda number: Image.fromarray(mask(number)),
        mask,
        lambda number: torch.from_numpy(mask(number)).long(),
        lambda number: Image.frombytes("P", (8, 8), mask(number).tobytes()),
    ],
    ids=["pillow", "array", "int64", "palette"],
)
def test_masks_give_the_tasks_of_a_folder(form, folder):
    source = masks(Masks(form), **MASKS)
    assert_equal_tasks(source, masks(folder, **MASKS))
    assert {name for names in source.class_names.values() for name in names} == set(NAMES)
    unnamed = masks(
        Subset([*zip(map(Image.fromarray, map(pixels, range(72))), map(form, range(72)))], range(72)), **MASKS
    )
    assert {name for names in unnamed.class_names.values() for name in names} == {f"class {n}" for n in range(1, 7)}


def test_equal_data_are_written_once_and_the_separator_and_names_count():
    assert kept_labelled_images(Data(labels)) == kept_labelled_images(Data(ones))
    assert kept_labelled_images(Data(labels), "|") != kept_labelled_images(Data(labels))
    assert kept_masks(Data(mask)) == kept_masks(Data(mask)) != kept_masks([*Subset(Data(mask), range(72))])


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (multilabel_images, Data(lambda n: 3), "item 0 of the Data: the labels must be a list of numbers or words, or"),
        (multilabel_images, Data(lambda n: torch.tensor([0, 2])), "a tensor of 0 and 1 for each class, got a Tensor"),
        (multilabel_images, Data(lambda n: [6]), "item 0 of the Data has the label 6, and there are 6 classes"),
        (multilabel_images, Data(lambda n: ["a;b"]), "the label 'a;b' contains the separator ';'; choose another one"),
        (multilabel_images, [(torch.zeros(3, 8, 8),)], r"item 0 of the list must be \(image, labels\), got a t"),
        (multilabel_images, [], "the list is empty"),
        (masks, Data(lambda n: torch.zeros(3, 8, 8)), r"the mask must be an image of Pillow, or a tensor \(H, W\)"),
        (masks, Data(lambda n: torch.full((8, 8), 256)), "of whole numbers from 0 to 255, got a Tensor"),
        (masks, Data(lambda n: Image.new("RGB", (8, 8))), "the mask is an image of mode RGB; it must be grey or"),
        (masks, 7, "with a length and numbered items; got builtins.int"),
        (masks, {"train": Data(mask), "test": Data(mask)}, "a dict of several data sets"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error_of_one_sentence(make, data, message):
    with pytest.raises(ValueError, match=message):
        make(data, size=8)


def test_columns_are_of_tables():
    with pytest.raises(ValueError, match="labels names columns of a table; items in memory have their labels"):
        multilabel_images(Data(labels), labels=["a"], size=8)


def test_run_files_have_the_paths_of_what_was_written(table, folder):
    parts = {"name": "x", "model": {"kind": "conv4", "channels": 4}, "learner": {"kind": "protonet"}}
    source = {"kind": "multilabel_images", "path": Data(labels), "separator": "|", **LABELS}
    spec = parse_spec(as_text(parts | {"source": source, "target": "f1 >= 0.5"}), "the run file")
    assert spec.source.path == str(kept_labelled_images(Data(labels), "|"))
    assert_equal_tasks(build_source(spec), multilabel_images(table, **LABELS))
    source = {"kind": "masks", "path": Masks(mask), **MASKS}
    spec = parse_spec(as_text(parts | {"source": source, "target": "iou >= 0.5"}), "the run file")
    assert_equal_tasks(build_source(spec), masks(folder, **MASKS))


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="datasets is not installed")


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_data_sets_of_hugging_face_give_the_tasks_of_files(datasets, table, folder):
    columns = {"image": [encoded(pixels(n)) for n in range(72)], "tags": [labels(n) for n in range(72)]}
    names = datasets.List(datasets.ClassLabel(names=NAMES)) if hasattr(datasets, "List") else None
    features = datasets.Features({"image": datasets.Image(), "tags": names or [datasets.ClassLabel(names=NAMES)]})
    data = datasets.Dataset.from_dict(columns, features)
    assert_equal_tasks(multilabel_images(data, **LABELS), multilabel_images(table, **LABELS))
    words = {"image": columns["image"], "labels": [[NAMES[each] for each in labels(n)] for n in range(72)]}
    data = datasets.Dataset.from_dict(words).cast_column("image", datasets.Image())
    assert_equal_tasks(multilabel_images(data, **LABELS), multilabel_images(table, **LABELS))

    columns = {"image": columns["image"], "annotation": [encoded(mask(n)) for n in range(72)]}
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    data = datasets.Dataset.from_dict(columns, features)
    (folder / "classes.txt").unlink()  # which a Dataset of Hugging Face has not
    assert_equal_tasks(masks(data, **MASKS), masks(folder, **MASKS))
    with pytest.raises(ValueError, match="must have two columns of images, image and that of masks; it has annotation"):
        masks(data.remove_columns("image"), **MASKS)


@pytest.mark.parametrize("column", ["labels", "tags"])
def test_a_support_set_of_several_labels_in_memory_is_that_of_a_table(column, tmp_path):
    for number in range(6):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    joined = [";".join(NAMES[each] for each in labels(number)) for number in range(6)]
    paths = [f"{number}.png" for number in range(6)]
    pl.DataFrame({"path": paths, column: joined}).write_csv(tmp_path / "mine.csv")
    preprocessor = MultilabelPreprocessor("pixels", "", 8, "", labels=column)
    support = preprocessor.support(preprocessor.kept_support(Subset(Data(labels), range(6))))
    of_table = preprocessor.support(tmp_path / "mine.csv")
    assert torch.equal(support.inputs, of_table.inputs)
    assert torch.equal(support.targets, of_table.targets)
    assert support.kept == of_table.kept


def test_a_support_set_of_masks_in_memory_is_that_of_a_folder(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(3):
        Image.fromarray(pixels(number)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask(number)).save(tmp_path / "masks" / f"{number}.png")
    preprocessor = MaskPreprocessor("pixels", "", 8, "")
    kept = preprocessor.support(preprocessor.kept_support([(pixels_tensor(n), mask(n)) for n in range(3)]))
    files = preprocessor.support(tmp_path)
    assert torch.equal(kept.inputs, files.inputs)
    assert torch.equal(kept.targets, files.targets)
    assert kept.kept["values"] == files.kept["values"]


def pixels_tensor(number):
    return torch.from_numpy(pixels(number)).permute(2, 0, 1)
