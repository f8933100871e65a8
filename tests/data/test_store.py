"""Where data sets live, how they get there, and what happens when they are broken."""

from __future__ import annotations

import shutil
import stat
import zipfile
from functools import partial
from pathlib import Path

import pytest
from drawings import make_tree

from kshot.app.known_sets import open_known
from kshot.data import cache, library

OPEN = partial(open_known, ways=4, shots=1, queries=3)  # the sets made here are too small for the default tasks
COUNTS = {split: {"classes": 4, "drawings": 16} for split in ("train", "val", "test")}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A library of the test's own; the user's is out of sight."""
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "library"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    return tmp_path / "library"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "omniglot")


def test_folders_are_the_named_one_then_the_users(monkeypatch, home, tmp_path):
    first, second = library.data_folders()
    assert first == home
    assert second.name == "kshot"
    monkeypatch.delenv("KSHOT_DATA")
    assert library.data_folders() == [second]
    monkeypatch.setenv("KSHOT_CACHE", "~/somewhere")
    assert cache.cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("KSHOT_CACHE")
    assert cache.cache_folder().name == "kshot"


def test_known_sets_say_where_they_were_found(home):
    rows = {row.name: row for row in library.known()}
    of_files = {"omniglot", "clinc150", "tinyshakespeare", "nltk_corpora"}
    of_files |= {f"movielens-{size}" for size in ("100k", "1m", "25m")}
    assert set(rows) == {"sinusoids", "glyphs", *of_files}
    assert [row.name for row in rows.values() if row.built_in] == ["sinusoids", "glyphs"]
    assert rows["omniglot"].folder is None
    assert all(row.description and row.licence and row.split for row in rows.values())
    (home / "omniglot").mkdir(parents=True)
    assert {row.name: row.folder for row in library.known()}["omniglot"] == home / "omniglot"
    assert library.find("omniglot") == home / "omniglot"


def test_a_set_is_added_from_a_folder(tree, home):
    (tree / "notes.txt").write_text("mine")
    assert library.add("omniglot", tree, open_tasks=OPEN).folder == home / "omniglot"
    assert library.check("omniglot", OPEN) == COUNTS
    copied = {path.relative_to(home / "omniglot") for path in (home / "omniglot").rglob("*.*")}
    assert copied == {path.relative_to(tree) for path in tree.rglob("*.*")} - {Path("notes.txt")}
    assert [path.name for path in home.iterdir()] == ["omniglot"], "nothing is left beside it"
    assert (tree / "notes.txt").exists()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_set_is_added_from_a_zip(tree, home, tmp_path, wrapped):
    root, base = (tree.parent, tree.name) if wrapped else (tree, ".")
    archive = shutil.make_archive(str(tmp_path / "whole"), "zip", root, base)
    library.add("omniglot", Path(archive), open_tasks=OPEN)
    assert library.check("omniglot", OPEN) == COUNTS


def test_a_set_is_never_written_over(tree, home):
    library.add("omniglot", tree, open_tasks=OPEN)
    mark = home / "omniglot" / "mark"
    mark.write_text("mine")
    with pytest.raises(ValueError, match="exists already and is never overwritten"):
        library.add("omniglot", tree, open_tasks=OPEN)
    assert mark.read_text() == "mine"


def test_a_broken_set_is_refused_and_leaves_nothing(tree, home):
    next((tree / "images_background").rglob("*.png")).write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        library.add("omniglot", tree, open_tasks=OPEN)
    assert list(home.iterdir()) == []


def test_sources_that_hold_something_else_are_refused(tmp_path, home):
    (tmp_path / "other").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    for name, source, sentence in (
        ("omniglot", "other", r"does not contain omniglot: expected some of images_background\.zip"),
        ("omniglot", "absent", "does not exist; give the folder or the archive"),
        ("omniglot", "text.zip", r"text\.zip is damaged, or neither zip nor tar"),
        ("glyphs", "other", "'glyphs' is built in and needs no files"),
        ("mnist", "other", "'mnist' is not a known data set; kshot knows sinusoids, glyphs, omniglot"),
    ):
        with pytest.raises(ValueError, match=sentence):
            library.add(name, tmp_path / source, open_tasks=OPEN)
    assert not home.exists() or list(home.iterdir()) == []


@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/escaped-kshot.txt", "a/../../escaped.txt", "link"])
def test_a_zip_that_leads_out_of_itself_is_refused(tmp_path, home, name):
    member = zipfile.ZipInfo(name)
    if name == "link":
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("splits_vinyals/train.txt", "")
        archive.writestr(member, "/etc")
    with pytest.raises(ValueError, match=r"leads out of the archive; nothing was unpacked"):
        library.add("omniglot", tmp_path / "evil.zip", open_tasks=OPEN)
    assert list(home.iterdir()) == []
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-kshot.txt").exists()


def test_checking_says_what_is_missing(home):
    assert library.check("sinusoids") == library.check("sinusoids", open_known) == {}
    with pytest.raises(ValueError, match=r"'omniglot' was not found; looked for .*set KSHOT_DATA to the folder that"):
        library.check("omniglot", OPEN)
    (home / "omniglot").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train\.txt is missing"):
        library.check("omniglot", OPEN)


def test_without_an_opener_a_set_is_compared_with_its_hashes_alone(home, shared_data):
    library.add("omniglot", shared_data / "omniglot")
    assert library.check("omniglot")["files"]["files"] >= 6
    (home / "omniglot" / "splits_vinyals" / "val.txt").write_text("")
    with pytest.raises(ValueError, match=r"val\.txt is not the published file of omniglot: its SHA-256 is"):
        library.check("omniglot")
