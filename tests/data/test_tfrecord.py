"""Checksums, records and examples of TFRecord files, against published values and a writer of the test's own."""

import random

import pytest
from records import bitwise, entry, message

from kshot.data.images.crc32c import crc32c, masked_crc32c
from kshot.data.images.tfrecord import example

KNOWN = {
    b"": 0,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    b"123456789": 0xE3069283,
}
"""RFC 3720, appendix B.4, and the check value of the catalogue of CRCs."""


@pytest.mark.parametrize("content", KNOWN)
def test_published_checksums(content):
    assert crc32c(content) == KNOWN[content] == bitwise(content)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 255, 1000, 4097])
def test_checksums_of_all_lengths_are_those_of_the_definition(length):
    content = random.Random(length).randbytes(length)
    assert crc32c(content) == bitwise(content)


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
