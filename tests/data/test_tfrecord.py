"""Checksums, records and examples of TFRecord files, against published values and a writer of the test's own."""

import random
import sys

import pytest
from records import entry, masked, message

from kshot.data.images.tfrecord import example, masked_crc32c


@pytest.mark.parametrize("length", [0, 1, 3, 8, 1000])
def test_masked_checksums_are_those_of_the_definition(length):
    content = random.Random(length).randbytes(length)
    assert masked_crc32c(content).to_bytes(4, "little") == masked(content)


def test_without_the_package_of_checksums_a_sentence_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ValueError, match=r"google-crc32c, which is missing: pip install 'kshot\[files\]'"):
        masked_crc32c(b"")


def test_a_masked_checksum_is_that_of_a_record_of_tensorflow():
    assert masked_crc32c((0x31C).to_bytes(8, "little")) == int.from_bytes(bytes.fromhex("d2912634"), "little")


def test_an_example_has_bytes_and_integers_packed_or_not_and_the_last_of_a_name_counts():
    minus_one = b"\xff" * 9 + b"\x01"
    features = [
        entry("image", message(1, message(1, b"first"))),
        entry("image", message(1, message(1, b"a" * 300) + message(1, b""))),
        entry("packed", message(3, message(1, b"\x00\xac\x02" + minus_one))),
        entry("single", message(3, b"\x08\x07\x08\x80\x01")),
        entry("floats", message(2, message(1, bytes(8)))),
        entry("none", b""),
    ]
    unknown = b"\x29" + bytes(8) + b"\x35" + bytes(4) + b"\x38\x05" + message(9, b"later fields")
    found = example(message(1, b"".join(features)) + unknown)
    assert found == {"image": [b"a" * 300, b""], "packed": [0, 300, -1], "single": [7, 128]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x0a\x05ab", "a field is longer than its message"),
        (b"\x0a", "it ends within a number"),
        (b"\x0b", "a field has the wire type 3"),
        (b"\xff" * 11, "a number is longer than ten bytes"),
        (b"\x09abc", "a field is longer than its message"),
        (message(1, entry("\udc80".encode("utf8", "surrogatepass").decode("latin1"), b"")) + b"\x0a", "it ends within"),
        (message(1, message(1, message(1, b"\xff") + message(2, message(1, b"")))), "invalid start byte"),
    ],
)
def test_what_is_no_example_is_an_error(content, said):
    with pytest.raises(ValueError, match=said):
        example(content)


def test_random_bytes_are_an_example_or_a_value_error():
    for seed in range(300):
        content = random.Random(seed).randbytes(1 + seed % 40)
        try:
            example(content)
        except ValueError:
            continue
