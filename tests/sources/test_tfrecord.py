"""The source of TFRecord files: files of TensorFlow, of a writer of the test's own, and damaged ones."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from records import entry, message, record

import kshot
from kshot.app.build import build_source
from kshot.app.spec import parse_spec
from kshot.checking.check import check
from kshot.data.images.cache import read_listed
from kshot.data.images.decode import BadImage, decode
from kshot.data.images.meta_dataset import list_records
from kshot.sources import tfrecord

SHAPES = Path(__file__).resolve().parents[1] / "tfrecords" / "shapes"
BY_TENSORFLOW = {
    "circle": ["d8753965df9a2d96", "4316bab062b1f74f", "9b167070ad8af59a", "76972010c2cf2661"],
    "cross": ["9ff2366dacf36f9b", "f072b34e0592bdf6", "a0a70c8fc1bd1d3d", "62547405d923d886"],
    "stripes": ["6b0da5557af9a3a5", "39f3e5301b8f9c32", "aad834d21e01bbca", "d63235f175f222c5"],
    "dots": ["62b7bc3e172d02b7", "91484cda9fbc4bbe", "d404c9c951eac4c3", "7ea097af6b1821f6"],
}
"""The start of the SHA-256 of each image that `tf.data.TFRecordDataset` and `tf.train.Example` read."""
FEW = {"ways": 2, "shots": 1, "queries": 1}


def picture(value, size=6):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def serialized(image, label):
    return message(
        1, entry("label", message(3, message(1, bytes([label])))) + entry("image", message(1, message(1, image)))
    )


def write(folder, counts, *, spec, pattern="{}.tfrecords", images=3):
    """A data set of classes whose images have a grey of their own: 10 times the class, and the number of the image."""
    folder.mkdir(parents=True, exist_ok=True)
    for label in range(counts):
        records = [record(serialized(picture(10 * label + number), label)) for number in range(images)]
        if pattern == "{}.tfrecords":
            (folder / f"{label}.tfrecords").write_bytes(b"".join(records))
        else:
            (folder / f"{label}_0.tfrecords").write_bytes(b"".join(records[:1]))
            (folder / f"{label}_1.tfrecords").write_bytes(b"".join(records[1:]))
    names = {str(number): f"class {number}" for number in range(counts)}
    (folder / "dataset_spec.json").write_text(json.dumps({"class_names": names, "file_pattern": pattern} | spec))
    return folder


SPLIT = {"classes_per_split": {"TRAIN": 4, "VALID": 2, "TEST": 2}}


def test_files_of_tensorflow_are_read_as_it_reads_them():
    listing = list_records(SHAPES)
    found = {
        name: [hashlib.sha256(read_listed(listing.files[row], listing.root)[1]).hexdigest()[:16] for row in rows]
        for name, rows in listing.classes.items()
    }
    assert found == BY_TENSORFLOW
    assert {name: split for name, (split,) in listing.values["split"].items()} == {
        "circle": "train", "cross": "train", "stripes": "val", "dots": "test"
    }  # fmt: skip
    source = tfrecord(SHAPES, split={"rows": [0.5, 0.5, 0]}, size=16, ways=4, shots=1, queries=1)
    content = read_listed(listing.files[0], listing.root)[1]
    expected = decode(content, "circle", size=16, colour="rgb")
    assert torch.equal((source.examples.take(np.array([0]))[0] * 255).round().byte(), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("pattern", ["{}.tfrecords", "{}_{}.tfrecords"])
def test_tasks_have_the_classes_of_their_split(tmp_path, pattern):
    source = tfrecord(write(tmp_path / "x", 8, spec=SPLIT, pattern=pattern), **FEW, size=6, colour="grey")
    assert source.describe()["classes"] == {"train": 4, "val": 2, "test": 2}
    assert source.class_names["test"] == ("class 6", "class 7")
    for split, classes in (("train", range(4)), ("val", (4, 5)), ("test", (6, 7))):
        for index in range(5):
            task = source.task(split, index)
            grey = (torch.cat([task.support.inputs, task.query.inputs]) * 255).round()[:, 0, 0, 0].long()
            assert set((grey // 10).tolist()) <= set(classes)
            assert len(set(grey.tolist())) == 4  # support and query share no image
    kshot.testing.check_source(source)


def test_superclasses_are_domains_and_graphs_give_splits(tmp_path):
    supers = {
        "superclasses_per_split": {"TRAIN": 2, "VALID": 0, "TEST": 1},
        "classes_per_superclass": {"0": 2, "1": 3, "2": 2},
        "superclass_names": {"0": "Greek", "1": "Latin", "2": "Lao"},
    }
    source = tfrecord(write(tmp_path / "supers", 7, spec=supers), within="domain", **FEW, size=6)
    assert source.describe()["classes"] == {"train": 5, "test": 2}
    listing = list_records(tmp_path / "supers")
    assert [*listing.domains.values()] == ["Greek"] * 2 + ["Latin"] * 3 + ["Lao"] * 2
    node = {"words": "", "parents_ids": []}
    graph = [node | {"wn_id": "n0", "children_ids": ["n1", "n2"]}, node | {"wn_id": "n1", "children_ids": []}]
    graph.append(node | {"wn_id": "n2", "children_ids": []})
    graphs = {"split_subgraphs": dict.fromkeys(("TRAIN", "VALID", "TEST"), graph)}
    source = tfrecord(write(tmp_path / "graphs", 6, spec=graphs), **FEW, size=6)
    assert source.class_names["val"] == ("class 2", "class 3")


def test_a_run_file_and_the_check_of_data_take_it(tmp_path):
    folder = write(tmp_path / "x", 8, spec=SPLIT)
    text = "{kind: tfrecord, path: PATH, size: 6, ways: 2, queries: 1, augment: {flip: true}}"
    parts = "model: {kind: mlp}\nlearner: {kind: protonet}\ntarget: accuracy >= 0.5"
    spec = parse_spec(f"name: x\nsource: {text.replace('PATH', str(folder))}\n{parts}", "run.yaml")
    assert not errors(build_source(spec))
    (folder / "6.tfrecords").write_bytes((folder / "6.tfrecords").read_bytes()[:-1] + b"x")
    (said,) = errors(build_source(spec))
    assert "1 of 24 images cannot be used" in said
    assert "6.tfrecords, record 2 is damaged" in said


def errors(source):
    return [finding.sentence for finding in check(source, num_tasks=3).findings if finding.severity == "error"]


def test_damage_is_said_with_the_file(tmp_path):
    folder = write(tmp_path / "x", 8, spec=SPLIT)
    whole = (folder / "0.tfrecords").read_bytes()
    bad = bytearray(whole)
    bad[40] ^= 4  # within the first record
    (folder / "0.tfrecords").write_bytes(bad)
    source = tfrecord(folder, **FEW, size=6)
    with pytest.raises(BadImage, match=r"0.tfrecords, record 0 is damaged: its checksum does not match; write or down"):
        source.examples.take(np.array([0]))
    assert source.examples.take(np.array([1])).shape == (1, 3, 6, 6)
    left = tfrecord(folder, **FEW, size=6, bad_images="drop", on_too_few="shrink")
    assert left.dropped == {"images that cannot be used": 1}

    for content, said in (
        (whole[:-3], "0.tfrecords is cut off within record 2; write or download it again"),
        (whole[:5], "0.tfrecords is cut off within record 0"),
        (b"PNG" + whole, "0.tfrecords is no TFRecord file: the checksum of a length does not match"),
        (whole + b"\0" * 20, "0.tfrecords is damaged from record 3 on: the checksum of a length"),
    ):
        (folder / "0.tfrecords").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            tfrecord(folder, **FEW, size=6)

    for content, said in (
        (serialized(picture(1), 5), r"record 0 has the label \[5\], and the file is of class 0 by its name"),
        (message(1, entry("features", message(2, b""))), "record 0 has no feature image with the bytes of one image"),
        (b"\x0a\x05ab", "record 0 is no tf.train.Example: a field is longer than its message"),
        (serialized(b"no image", 0), "0.tfrecords#0 is not an image that can be read"),
    ):
        (folder / "0.tfrecords").write_bytes(record(content) * 3)
        with pytest.raises(BadImage, match=said):
            tfrecord(folder, **FEW, size=6).examples.take(np.array([0]))

    source = tfrecord(folder, **FEW, size=6)
    (folder / "1.tfrecords").write_bytes(whole + whole)
    with pytest.raises(ValueError, match=r"1.tfrecords was modified after it was listed; open the source again"):
        source.examples.take(np.array([3]))


def test_each_flipped_bit_of_a_file_is_found(tmp_path):
    folder = write(tmp_path / "x", 8, spec=SPLIT, images=2)
    whole = (folder / "0.tfrecords").read_bytes()
    for at in range(0, 8 * len(whole), 61):
        bad = bytearray(whole)
        bad[at // 8] ^= 1 << at % 8
        (folder / "0.tfrecords").write_bytes(bad)
        with pytest.raises(ValueError, match="0.tfrecords"):
            tfrecord(folder, **FEW, size=6).examples.take(np.array([0, 1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes_per_split": {"TRAIN": 3}}, "it names 8 classes, and its splits have 3"),
        ({"classes_per_split": {"TRAIN": "many"}}, "is no specification of a data set of Meta-Dataset: invalid"),
        ({"file_pattern": "../{}.tfrecords"}, r"file_pattern must be one of {}.tfrecords, {}_{}.tfrecords, got"),
        ({"classes_per_split": {"TRAIN": 9}, "class_names": {str(n): "x" for n in range(9)}},
         r"has no file 8.tfrecords, of class 8 in dataset_spec.json \(1 of 9 classes have none\)"),
        ({"class_names": []}, "is no specification"),
    ],
)  # fmt: skip
def test_a_wrong_specification_is_an_error_that_says_what(tmp_path, change, said):
    write(tmp_path, 8, spec=SPLIT | change)
    with pytest.raises(ValueError, match=said):
        tfrecord(tmp_path, **FEW)


def test_a_folder_without_a_specification_is_told_what_it_needs(tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no .*dataset_spec.json: a folder of Meta-Dataset holds it, beside a"
    ):
        tfrecord(tmp_path)
    (tmp_path / "dataset_spec.json").write_text("{")
    with pytest.raises(ValueError, match="is no specification of a data set of Meta-Dataset"):
        tfrecord(tmp_path)
    (tmp_path / "dataset_spec.json").write_text('{"class_names": {}}')
    with pytest.raises(
        ValueError, match="it has none of classes_per_split, superclasses_per_split and split_subgraphs"
    ):
        tfrecord(tmp_path)
