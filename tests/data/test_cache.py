"""The cache and its atomic writes."""

from __future__ import annotations

import numpy as np
import pytest

from kshot.data.cache import cached, is_cached, write_arrays


def test_arrays_are_computed_once_and_again_where_the_file_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    assert not is_cached("numbers")
    for _ in range(2):
        assert cached("numbers", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert cached("numbers", lambda: pytest.fail("it is in the cache"))["a"].tolist() == [0, 1, 2]
    assert is_cached("numbers")
    content = (tmp_path / "numbers.npz").read_bytes()
    for damaged in (content[:-30], content.replace(b"\x02", b"\x03"), b""):
        (tmp_path / "numbers.npz").write_bytes(damaged)
        assert cached("numbers", lambda: {"a": np.arange(4)})["a"].tolist() == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot write in .*file .*set KSHOT_DATA .* and KSHOT_CACHE"):
        cached("numbers", lambda: {"a": np.zeros(2)})


def test_a_failed_write_leaves_the_old_arrays(tmp_path):
    path = tmp_path / "numbers.npz"
    write_arrays(path, {"a": np.arange(3)})

    class Unwritable:
        def __array__(self, *_, **__):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        write_arrays(path, {"a": Unwritable()})
    with np.load(path) as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
