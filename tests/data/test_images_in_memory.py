"""Data sets of PyTorch and Hugging Face go where a folder of images goes, and give the same tasks."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

import kshot
from kshot.app.build import build_source
from kshot.app.in_memory import as_text
from kshot.app.spec import parse_spec
from kshot.data.images.in_memory import kept_images
from kshot.sources import images
from kshot.types import SPLITS

NAMES = ["001", "1", "NA", "rose", "tulip", "null"]
OPTIONS = {"ways": 2, "shots": 1, "queries": 2, "size": 8, "split": {"ratio": [0.34, 0.33, 0.33]}}


def pixels(label, number):
    return np.random.default_rng(10 * label + number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


class Flowers(Dataset):
    """Eight by eight pixels; `form` makes an image of them."""

    classes = NAMES

    def __init__(self, form=Image.fromarray, label=int):
        self.form, self.label = form, label

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return self.form(pixels(index // 4, index % 4)), self.label(index // 4)


class Nameless(Flowers):
    classes = None


def tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(NAMES):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(pixels(label, number)).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def assert_equal_tasks(one, other):
    assert one.class_names == other.class_names
    for split in SPLITS:
        for index in range(4):
            for found, expected in zip(*(torch.utils._pytree.tree_leaves(s.task(split, index)) for s in (one, other))):
                assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "data",
    [
        Flowers(),
        Flowers(tensor),
        Flowers(lambda array: tensor(array).float() / 255),
        Flowers(label=torch.tensor),
        Flowers(label=np.int64),
        Nameless(label=NAMES.__getitem__),
        Subset(Flowers(), range(24)),
        [(tensor(pixels(label, number)), NAMES[label]) for label in range(6) for number in range(4)],
    ],
    ids=["pillow", "uint8", "floats", "tensor label", "numpy label", "words", "subset", "list"],
)
def test_a_data_set_of_pytorch_gives_the_tasks_of_a_folder(data, folder):
    assert_equal_tasks(images(data, **OPTIONS), images(folder, **OPTIONS))


def test_numbers_without_names_are_the_classes():
    source = images(Nameless(), **OPTIONS)
    assert sorted(name for names in source.class_names.values() for name in names) == list("012345")


@pytest.mark.parametrize("form", [lambda a: torch.from_numpy(a[..., 0]), lambda a: torch.from_numpy(a[None, ..., 0])])
def test_grey_images_have_one_channel_or_none(form):
    source = images(Flowers(form), colour="grey", **OPTIONS)
    assert source.task("train", 0).support.inputs.shape == (2, 1, 8, 8)
    assert float(source.examples.take(np.array([5]))[0, 0, 3, 2]) == pytest.approx(pixels(1, 1)[3, 2, 0] / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_images_of_every_mode_are_taken(mode):
    source = images(Flowers(lambda array: Image.fromarray(array).convert(mode)), **OPTIONS)
    assert source.task("train", 0).support.inputs.shape == (2, 3, 8, 8)


def test_equal_data_are_written_once(cache):
    path = kept_images(Flowers())
    written = path.stat().st_mtime_ns
    assert kept_images(Flowers()) == path
    assert path.stat().st_mtime_ns == written
    assert kept_images(Subset(Flowers(), range(23))) != path
    assert not list((cache).glob(".image-data-*/*")), "a scratch folder was left"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def normalised(array):
    return tensor(array).float() / 255 * 2 - 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "with a length and numbered items; got .*Stream"),
        (7, "with a length and numbered items; got builtins.int"),
        ([], "the list is empty"),
        ([torch.zeros(3, 8, 8)], r"item 0 of the list must be \(image, label\), got a Tensor"),
        ([(torch.zeros(3, 8, 8), 0, 1)], r"must be \(image, label\), got a tuple of 3"),
        (Flowers(normalised), "item 0 of the Flowers has values from -.*without Normalize"),
        (Flowers(lambda array: tensor(array).float() * torch.nan), "has values from nan"),
        (Flowers(lambda array: tensor(array).long()), "a tensor of uint8, or of floats in 0 … 1, got torch.int64"),
        (Flowers(torch.from_numpy), r"must be a tensor \(C, H, W\).*got \(8, 8, 3\)"),
        (Flowers(lambda array: array), "must be one of Pillow, or a tensor.*got a ndarray"),
        (Flowers(lambda array: Image.fromarray(array[..., 0].astype(np.float32))), "32-bit numbers"),
        (Flowers(label=float), "the label must be a whole number or a word, got a float"),
        (Flowers(label=lambda label: None), "the label must be a whole number or a word, got a NoneType"),
        (Flowers(label=lambda label: label + 6), "item 0 of the Flowers has the label 6, and there are 6 classes"),
        ({"train": Flowers(), "test": Flowers()}, r"a dict of several data sets \(train, test\): give one of them"),
    ],
)
def test_what_cannot_be_used_is_an_error_of_one_sentence(data, message):
    with pytest.raises(ValueError, match=message):
        images(data, **OPTIONS)


def test_a_run_file_has_the_path_of_what_was_written(folder):
    values = {
        "name": "flowers",
        "source": {"kind": "images", "path": Flowers(), **OPTIONS},
        "model": {"kind": "conv4", "channels": 4},
        "learner": {"kind": "protonet"},
        "target": "accuracy >= 0.5",
    }
    spec = parse_spec(as_text(values), "the run file")
    assert spec.source.path == str(kept_images(Flowers()))
    assert_equal_tasks(build_source(spec), images(folder, **OPTIONS))


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="datasets is not installed")


def of_hugging_face(datasets, rows, label=None):
    features = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)}
    return datasets.Dataset.from_dict(
        {"image": [row[0] for row in rows], "label": [row[1] for row in rows]}, datasets.Features(features)
    )


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_a_data_set_of_hugging_face_gives_the_tasks_of_a_folder(datasets, folder):
    rows = [(encoded(pixels(label, number)), label) for label in range(6) for number in range(4)]
    expected = images(folder, **OPTIONS)
    data = of_hugging_face(datasets, rows)
    assert_equal_tasks(images(data, **OPTIONS), expected)
    assert_equal_tasks(images(data.with_format("torch"), **OPTIONS), expected)
    renamed = data.rename_columns({"image": "picture", "label": "species"}).add_column("more", [1] * 24)
    assert_equal_tasks(images(renamed, **OPTIONS), expected)


def test_images_of_hugging_face_may_be_files_and_labels_words(datasets, folder):
    rows = [(str(folder / name / f"{number}.png"), name) for name in NAMES for number in range(4)]
    data = of_hugging_face(datasets, rows, datasets.Value("string"))
    assert_equal_tasks(images(data.select(range(24)), **OPTIONS), images(folder, **OPTIONS))
    (folder / "rose" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"row 14 of the Hugging Face Dataset: .*2.png cannot be read"):
        images(data, **OPTIONS)


def test_hugging_face_data_that_cannot_be_used_are_an_error(datasets):
    rows = [(encoded(pixels(label, number)), label) for label in range(6) for number in range(4)]
    data = of_hugging_face(datasets, rows)
    with pytest.raises(ValueError, match="one column of images and a column label.*it has label"):
        images(data.remove_columns("image"), **OPTIONS)
    with pytest.raises(ValueError, match="several data sets"):
        images(datasets.DatasetDict({"train": data}), **OPTIONS)
    with pytest.raises(ValueError, match="with a length"):
        images(data.to_iterable_dataset(), **OPTIONS)
    with pytest.raises(ValueError, match="row 0 of the Hugging Face Dataset has no image"):
        images(of_hugging_face(datasets, [(None, 0)]), **OPTIONS)
    with pytest.raises(ValueError, match="row 0 of the Hugging Face Dataset has the label -1"):
        images(of_hugging_face(datasets, [(rows[0][0], -1)]), **OPTIONS)


def test_a_learner_trains_on_a_data_set_of_pytorch():
    source = images(Flowers(), **OPTIONS)
    learner = kshot.protonet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8)))
    assert len(kshot.fit(learner, source, steps=2, tasks_per_step=2)) == 2
