"""Files from a server that breaks, lies and changes; archives that are traps; sets added from both."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from drawings import SMALL, make_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.app import known_sets
from kshot.app.known_sets import open_known
from kshot.data import library
from kshot.data.library import archives, download, store
from kshot.data.library.archives import unpack
from kshot.data.library.catalogue import File, catalogue
from kshot.data.library.download import download as download_file
from kshot.limits import Limits, OverLimit

CHUNK = download._CHUNK  # a broken transfer keeps whole chunks
CONTENT = np.random.default_rng(0).bytes(300_000)


class Server:
    """Files at addresses, and how it serves them.

    Attributes:
        files: path to content.
        breaks: bytes after which each of the next answers breaks off.
        ranges: whether parts can be had.
        version: the ETag; None sends none.
        asked: (path, Range) of each request.
        sized: whether the length is told.
        refusals: status codes of the next answers.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.refusals: list[int] = []
        self.ranges, self.sized = True, True
        self.version: str | None = '"1"'
        self.asked: list[tuple[str, str | None]] = []
        self.redirects: dict[str, str] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        asked = to.headers.get("Range")
        self.asked.append((to.path, asked))
        if to.path in self.redirects:
            to.send_response(302)
            to.send_header("Location", self.redirects[to.path])
            to.end_headers()
            return
        if self.refusals or to.path not in self.files:
            to.send_error(self.refusals.pop(0) if self.refusals else 404)
            return
        content, start = self.files[to.path], 0
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                to.send_error(416)
                return
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            to.send_response(200)
        if self.version:
            to.send_header("ETag", self.version)
        if self.sized:
            to.send_header("Content-Length", str(len(content) - start))
        to.end_headers()
        to.wfile.write(content[start : start + self.breaks.pop(0)] if self.breaks else content[start:])


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    served = Server()
    served.files["/file"] = CONTENT
    yield served
    served.http.shutdown()
    served.http.server_close()


# fetching ------------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_whole_and_its_progress_told(server, tmp_path):
    told = []
    download_file(f"{server.address}/file", tmp_path / "file", lambda *numbers: told.append(numbers))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert told[0] == ("file", 0, len(CONTENT))
    assert told[-1] == ("file", len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left beside it"


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.breaks = [6 * CHUNK, 3 * CHUNK]
    download_file(f"{server.address}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, f"bytes={6 * CHUNK}-", f"bytes={9 * CHUNK}-"]


def test_a_later_call_goes_on_from_what_an_earlier_one_left(server, tmp_path):
    server.breaks = [2 * CHUNK] * download.TRIES
    with pytest.raises(
        ValueError, match=r"broke 5 times \(it ended after 163,840 of 300,000 bytes\); 163,840 bytes were"
    ):
        download_file(f"{server.address}/file", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    download_file(f"{server.address}/file", tmp_path / "file")
    assert server.asked[-1] == ("/file", f"bytes={10 * CHUNK}-")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["version", "address", "note", "no version"])
def test_halves_of_two_versions_are_never_joined(server, tmp_path, change):
    server.breaks = [100_000] + [0] * (download.TRIES - 1)
    server.version = None if change == "no version" else '"1"'
    server.ranges = change != "no version"
    with pytest.raises(ValueError, match="broke 5 times"):
        download_file(f"{server.address}/file", tmp_path / "file")
    newer = CONTENT[::-1]
    server.files = {"/file": newer, "/other": newer}
    server.breaks, server.ranges = [], True
    if change == "version":
        server.version = '"2"'
    if change == "note":
        (tmp_path / "file.part.json").write_text("{")
    download_file(f"{server.address}/{'other' if change == 'address' else 'file'}", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == newer


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges, server.breaks = False, [100_000]
    download_file(f"{server.address}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    server.breaks = [200_000] + [0] * (download.TRIES - 1)
    with pytest.raises(ValueError, match="broke 5 times"):
        download_file(f"{server.address}/file", tmp_path / "file")
    server.files["/file"], server.breaks = CONTENT[:1000], []
    download_file(f"{server.address}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT[:1000]


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
    server.refusals = [503, 429]
    download_file(f"{server.address}/file", tmp_path / "file")
    assert len(server.asked) == 3


def test_a_redirect_is_followed(server, tmp_path):
    server.redirects = {"/moved": "/file"}
    download_file(f"{server.address}/moved", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_redirect_away_from_encryption_is_refused(tmp_path):
    from requests import Response

    response = Response()
    response.url, response.status_code, response.headers["Location"] = "https://a/", 302, "http://b/"
    response.raw = io.BytesIO()
    with download._Part("https://a/", tmp_path / "file.part", None) as part:
        with pytest.raises(ValueError, match=r"redirects to http://b/, which is not encrypted"):
            part.accept(response)
        response.headers["Location"] = "/c"
        part.accept(response)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "{}/gone",
            r"/gone cannot be downloaded: the server answers 404 .*it may have moved: give another address or a copy",
        ),
        (
            "http://127.0.0.1:1/x",
            r"127\.0\.0\.1 cannot be reached \(Connection refused\); check the network, or give a",
        ),
        ("http://nowhere.invalid/x", r"nowhere\.invalid cannot be reached \(.*check the network"),
        ("ftp://127.0.0.1/x", r"'ftp://127\.0\.0\.1/x' is not a valid address: expected http:// or https://"),
        ("file:///etc/passwd", r"'file:///etc/passwd' is not a valid address: .*give a local file as a path"),
        ("{}/a b\n", r"is not a valid address"),
        ("http://[x/", r"is not a valid address"),
    ],
)
def test_an_address_that_leads_nowhere_gets_a_sentence(server, tmp_path, address, sentence):
    with pytest.raises(ValueError, match=sentence):
        download_file(address.format(server.address), tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_disk_that_is_full_is_a_sentence_before_and_while_it_fills(server, tmp_path, monkeypatch):
    sentence = r"the disk of .* is full: file needs 300,000 bytes in all; make room, or set KSHOT_DATA"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=sentence):
        download_file(f"{server.address}/file", tmp_path / "file")
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "file.part").unlink()
    (tmp_path / "file.part").symlink_to("/dev/full")  # a device on which every write fails as on a full disk
    with pytest.raises(ValueError, match=sentence):
        download_file(f"{server.address}/file", tmp_path / "file")


def test_a_file_beyond_all_bounds_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "limits", lambda: Limits(download_bytes=1000))
    with pytest.raises(
        ValueError, match=r"has 300,000 bytes or more, but at most 1,000 are downloaded\. If you trust it, raise"
    ):
        download_file(f"{server.address}/file", tmp_path / "file")
    server.sized = False
    with pytest.raises(ValueError, match=r"has .* bytes or more, but at most 1,000 are downloaded"):
        download_file(f"{server.address}/file", tmp_path / "file")


# unpacking -----------------------------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name) if options else name, content)
    return path


def tarred(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


PLAIN = {"a.txt": b"one", "deep/er/b.txt": b"two" * 1000, "empty": b""}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_archives_of_every_kind_are_unpacked(tmp_path, suffix):
    path = tmp_path / f"it{suffix}"
    modes = {".tar": "w", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
    _ = zipped(path, PLAIN) if suffix == ".zip" else tarred(path, PLAIN, modes.get(suffix, "w:gz"))
    unpack(path, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == PLAIN


ESCAPES = ["../escaped", "/tmp/escaped-kshot", "a/../../escaped", "..\\escaped", "\\escaped"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_member_that_leads_out_is_refused(tmp_path, make, name):
    path = make(tmp_path / "it", {"fine": b"", name: b"evil"})
    with pytest.raises(ValueError, match=r"leads out of the archive; nothing was unpacked"):
        unpack(path, tmp_path / "in" / "out")
    assert not [p for p in tmp_path.rglob("*") if "escaped" in p.name]
    assert not Path("/tmp/escaped-kshot").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_tar_are_refused(tmp_path, kind):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "../x"
    with pytest.raises(ValueError, match=r"'odd' is a link or a device"):
        unpack(tarred(tmp_path / "it.tar.gz", {"odd": info, "odd/x": b"evil"}), tmp_path / "out")


def test_links_of_a_zip_are_refused(tmp_path):
    member = zipfile.ZipInfo("odd")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr(member, "/etc")
    with pytest.raises(ValueError, match=r"'odd' is a link or a device"):
        unpack(tmp_path / "it.zip", tmp_path / "out")


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_bomb_does_not_go_off(tmp_path, make):
    path = make(tmp_path / "it", {"bomb": bytes(40 << 20)})
    assert path.stat().st_size < 50_000
    with pytest.raises(ValueError, match=r"unpacks to more than 16,777,216 bytes .*as a decompression bomb"):
        unpack(path, tmp_path / "out")
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*")) == 0


def test_a_zip_that_lies_about_a_size_writes_no_more_than_it_said(tmp_path):
    path = zipped(tmp_path / "it.zip", {"bomb": bytes(1 << 20)})
    content = path.read_bytes().replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"it\.zip is damaged, or neither zip nor tar"):
        unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "bomb").stat().st_size <= 10


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "limits", lambda: Limits(members=20))
    path = zipped(tmp_path / "it.zip", {f"{number}": b"" for number in range(21)})
    with pytest.raises(ValueError, match=r"unpacks to more than .* or 20 files"):
        unpack(path, tmp_path / "out")


def test_a_member_that_stands_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "2")
    with pytest.raises(ValueError, match=r"'a' occurs twice in the archive"):
        unpack(tmp_path / "it.zip", tmp_path / "out")
    with pytest.raises(ValueError, match=r"'a/b' occurs twice in the archive, or is both a file and a folder"):
        unpack(zipped(tmp_path / "two.zip", {"a": b"", "a/b": b""}), tmp_path / "two")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["zip", "tar", "gz"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
    st.integers(0, 10**6),
)
def test_a_damaged_archive_is_unpacked_or_a_sentence(tmp_path_factory, kind, changes, keep):
    folder = tmp_path_factory.mktemp("archives")
    path = folder / "it"
    _ = zipped(path, PLAIN) if kind == "zip" else tarred(path, PLAIN, "w:gz" if kind == "gz" else "w")
    spoilt = bytearray(path.read_bytes())
    for place, value in changes:
        spoilt[place % len(spoilt)] = value
    path.write_bytes(spoilt[: keep % (2 * len(spoilt))])
    with contextlib.suppress(ValueError):
        unpack(path, folder / "in" / "out")
    assert {p.name for p in folder.iterdir()} <= {"it", "in"}
    assert {p.name for p in (folder / "in").iterdir()} <= {"out"}


# adding --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    """A library of the test's own."""
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "library"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("KSHOT_MIRROR", raising=False)
    monkeypatch.setattr(library, "add", partial(library.add, open_tasks=partial(open_known, **SMALL)))
    return tmp_path / "library"


def published(monkeypatch, name: str, contents: dict[str, bytes], server: Server, hashed: bool = True) -> None:
    """Pretend that a known set consists of these files, at the addresses of the server."""
    files = []
    for file, content in contents.items():
        server.files[f"/{name}/{file}"] = content
        digest = (f"sha256:{hashlib.sha256(content).hexdigest()}",) if hashed else ()
        files.append(File(file, f"{server.address}/{name}/{file}", digest, file.endswith("100k.zip")))
    entries = catalogue() | {name: catalogue()[name]._replace(files=tuple(files))}
    monkeypatch.setattr(store, "catalogue", lambda: entries)


@pytest.fixture
def omniglot_files(tmp_path) -> dict[str, bytes]:
    """A small Omniglot: two zips and three lists."""
    tree = make_tree(tmp_path / "made" / "omniglot")
    for part in ("images_background", "images_evaluation"):
        shutil.make_archive(str(tree / part), "zip", tree, part)
        shutil.rmtree(tree / part)
    return {str(path.relative_to(tree)): path.read_bytes() for path in sorted(tree.rglob("*.*"))}


def test_a_set_is_fetched_from_its_publisher_and_opened(server, home, omniglot_files, monkeypatch):
    published(monkeypatch, "omniglot", omniglot_files, server)
    added = library.add("omniglot")
    assert added.folder == home / "omniglot"
    assert added.trust == "all files match the published or the recorded hash"
    found = {str(p.relative_to(added.folder)): p.read_bytes() for p in added.folder.rglob("*.*")}
    assert found == omniglot_files
    assert set(library.check("omniglot", partial(open_known, **SMALL))) == {"train", "val", "test"}
    assert not (home / ".fetched" / "omniglot").exists(), "nothing that was fetched is kept twice"


def test_a_fetch_that_broke_off_goes_on_with_the_files_that_are_there(server, home, omniglot_files, monkeypatch):
    published(monkeypatch, "omniglot", omniglot_files, server)
    monkeypatch.setattr(download, "_CHUNK", 4)
    half = len(omniglot_files["images_evaluation.zip"]) // 8 * 4
    server.breaks = [10**9, half] + [0] * download.TRIES
    with pytest.raises(ValueError, match=r"images_evaluation\.zip: the connection broke 5 times"):
        library.add("omniglot")
    assert not (home / "omniglot").exists()
    server.breaks, server.asked = [], []
    library.add("omniglot")
    assert server.asked[0] == ("/omniglot/images_evaluation.zip", f"bytes={half}-")
    assert all("background" not in path for path, _ in server.asked)


def test_a_file_with_another_hash_is_refused_and_not_kept(server, home, omniglot_files, monkeypatch):
    published(monkeypatch, "omniglot", omniglot_files, server)
    right = server.files["/omniglot/images_background.zip"]
    server.files["/omniglot/images_background.zip"] = right[:-1] + b"x"
    with pytest.raises(
        ValueError, match=r"images_background\.zip is not the expected file, and nothing was added: its hash"
    ):
        library.add("omniglot")
    assert not (home / "omniglot").exists()
    server.files["/omniglot/images_background.zip"] = right
    library.add("omniglot")


def test_a_mirror_is_a_folder_or_an_address_of_folders(server, home, omniglot_files, monkeypatch, tmp_path):
    published(monkeypatch, "omniglot", omniglot_files, server)
    server.files = {f"/mirror{path}": content for path, content in server.files.items()}
    monkeypatch.setenv("KSHOT_MIRROR", f"{server.address}/mirror/")
    library.add("omniglot")
    shutil.rmtree(home)
    library.add("omniglot", f"{server.address}/mirror/omniglot")
    shutil.rmtree(home)
    asked = len(server.asked)
    monkeypatch.setenv("KSHOT_MIRROR", str(tmp_path / "made"))
    assert library.add("omniglot").trust == "all files match the published hash"
    assert len(server.asked) == asked, "no network where the mirror is a folder"


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_a_whole_set_in_one_archive_is_fetched_and_unpacked(server, home, omniglot_files, monkeypatch, tmp_path, kind):
    published(monkeypatch, "omniglot", omniglot_files, server)
    archive = Path(shutil.make_archive(str(tmp_path / "whole"), kind, tmp_path / "made"))
    server.files[f"/{archive.name}"] = archive.read_bytes()
    added = library.add("omniglot", f"{server.address}/{archive.name}")
    assert "no hash is published" in added.trust
    shutil.rmtree(added.folder)
    assert library.add("omniglot", archive).trust == "all files match the published hash"


ML = {f"ml-100k/{name}": f"{name}\n".encode() for name in ("u.data", "u.item", "u.user", "u.genre", "u.info", "README")}
ML["ml-100k/u.occupation"] = b"none\n"


def test_without_a_published_hash_the_first_copy_is_trusted_and_the_next_compared(server, home, monkeypatch, tmp_path):
    archive = zipped(tmp_path / "ml-100k.zip", ML).read_bytes()
    published(monkeypatch, "movielens-100k", {"ml-100k.zip": archive}, server, hashed=False)
    added = library.add("movielens-100k")
    assert "no hash is published: it was recorded in" in added.trust
    assert library.find("movielens-100k") == added.folder
    assert (added.folder / "u.data").read_text() == "u.data\n"
    assert library.check("movielens-100k") == {"files": {"files": 7, "bytes": sum(map(len, ML.values()))}}
    shutil.rmtree(added.folder)
    assert library.add("movielens-100k").trust == "all files match the published or the recorded hash"
    shutil.rmtree(added.folder)
    server.files["/movielens-100k/ml-100k.zip"] = zipped(
        tmp_path / "b.zip", ML | {"ml-100k/u.data": b"other"}
    ).read_bytes()
    with pytest.raises(ValueError, match=r"was recorded in .*movielens-100k\.txt when it was first added"):
        library.add("movielens-100k")
    assert not added.folder.exists()


def test_an_archive_that_came_damaged_is_fetched_again_and_never_trusted(server, home, monkeypatch, tmp_path):
    archive = zipped(tmp_path / "ml-100k.zip", ML).read_bytes()
    published(monkeypatch, "movielens-100k", {"ml-100k.zip": archive[:-40]}, server, hashed=False)
    with pytest.raises(ValueError, match=r"ml-100k\.zip is damaged"):
        library.add("movielens-100k")
    server.files["/movielens-100k/ml-100k.zip"] = archive
    library.add("movielens-100k")


def test_a_set_of_files_is_compared_wherever_it_comes_from(home, shared_data, tmp_path):
    added = library.add("clinc150", shared_data / "clinc150")
    assert added.trust == "all files match the published hash"
    assert library.check("clinc150") == {"files": {"files": 3, "bytes": 2_518_675}}
    (added.folder / "domains.json").write_text("{}")
    with pytest.raises(ValueError, match=r"domains\.json is not the published file of clinc150: its SHA-256 is"):
        library.check("clinc150")
    shutil.copytree(shared_data / "tinyshakespeare", tmp_path / "mine", copy_function=shutil.copyfile)
    (tmp_path / "mine" / "input.txt").write_text("To be")
    with pytest.raises(
        ValueError, match=r"is not the published file of tinyshakespeare.*name its path in the run file"
    ):
        library.add("tinyshakespeare", tmp_path / "mine")
    (tmp_path / "mine" / "input.txt").unlink()
    with pytest.raises(ValueError, match=r"does not contain tinyshakespeare: expected some of input\.txt"):
        library.add("tinyshakespeare", tmp_path / "mine")


def test_the_real_sets_come_from_a_mirror_of_the_shared_data(server, home, shared_data):
    for name in ("clinc150", "tinyshakespeare"):
        row = next(row for row in library.known() if row.name == name)
        server.files |= {f"/{name}/{file.name}": (shared_data / name / file.name).read_bytes() for file in row.files}
        assert "published" in library.add(name, f"{server.address}/{name}").trust
        assert next(row for row in library.known() if row.name == name).folder == home / name


def test_the_published_hashes_of_omniglot_are_those_of_the_shared_data(shared_data):
    row = next(row for row in library.known() if row.name == "omniglot")
    for file in row.files:
        assert store._matches(shared_data / "omniglot" / file.name, file.hashes), file.name


def test_two_processes_do_not_fetch_one_set_at_once(server, home, omniglot_files, monkeypatch):
    from filelock import FileLock

    published(monkeypatch, "omniglot", omniglot_files, server)
    (home / ".fetched").mkdir(parents=True)
    with FileLock(home / ".fetched" / "omniglot.lock"), pytest.raises(ValueError, match="another process is adding"):
        library.add("omniglot")
    library.add("omniglot")


def test_the_command_says_where_it_is_and_lists_it(server, home, omniglot_files, monkeypatch, capsys):
    import sys

    from kshot.app import cli

    def call(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["kshot", "data", *words])
        with contextlib.suppress(SystemExit):
            cli.main()
        return capsys.readouterr()

    published(monkeypatch, "omniglot", omniglot_files, server)
    monkeypatch.setattr(known_sets, "open_known", partial(open_known, **SMALL))
    assert "not found; `kshot data add omniglot` fetches it" in call("list")[0]
    out, err = call("add", "omniglot")
    assert out == f"added {home / 'omniglot'}\nall files match the published or the recorded hash\n"
    assert "fetching images_background.zip, " in err
    assert f"omniglot         {home / 'omniglot'}" in call("list")[0]
    assert "exists already" in call("add", "omniglot")[1]


def test_bars_are_drawn_on_a_terminal():
    from rich.console import Console

    from kshot.app.progress import fetching as shown

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with shown(console) as progress:
        progress("a[b].zip", 0, None)
        progress("a[b].zip", 5_000_000, 10_000_000)
    assert "a[b].zip" in console.file.getvalue()
    assert "5.0/10.0 MB" in console.file.getvalue()


# servers without end -------------------------------------------------------------------------------------------------


class Endless:
    """A server whose answers never end: of content, of the body of a redirection, or of one byte now and then."""

    def __init__(self, monkeypatch) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        self.stopped = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(302 if self.path == "/away" else 200)
                if self.path == "/away":
                    self.send_header("Location", "/file")
                if self.path == "/sized":
                    self.send_header("Content-Length", "100000000")
                    self.send_header("ETag", '"1"')
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not outer.stopped.wait(0.05 if self.path in ("/slow", "/sized") else 0.0):
                        self.wfile.write(bytes(1 if self.path == "/slow" else 1 << 14))

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def endless(monkeypatch) -> Iterator[Endless]:
    served = Endless(monkeypatch)
    yield served
    served.stopped.set()
    served.http.shutdown()
    served.http.server_close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the sockets that are left behind
@pytest.mark.parametrize(
    ("path", "bounds", "sentence", "left"),
    [
        ("file", Limits(download_bytes=1 << 20), r"has 1,0.* bytes or more, but at most 1,048,576 are downloaded", 0),
        ("away", Limits(download_bytes=1 << 20), r"but at most 1,048,576 are downloaded", 0),
        ("slow", Limits(seconds=1), r"took more than 1 seconds, in which 0 bytes came", 0),
        ("sized", Limits(seconds=1), r"took more than 1 seconds, in which \d\d+,\d+ bytes came", 2),  # can be resumed
    ],
)
def test_a_server_without_end_is_left_at_the_limit(endless, tmp_path, monkeypatch, path, bounds, sentence, left):
    monkeypatch.setattr(download, "limits", lambda: bounds)
    started = time.monotonic()
    with pytest.raises(OverLimit, match=rf"{sentence}.*If you trust it, raise all limits tenfold"):
        download_file(f"{endless.address}/{path}", tmp_path / "file")
    assert time.monotonic() - started < 5
    assert len(list(tmp_path.iterdir())) == left


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "http://[::1"])
def test_a_redirection_to_another_scheme_is_refused_at_once(server, tmp_path, to):
    server.redirects = {"/file": to}
    with pytest.raises(ValueError, match=r"redirects to .*, which is not http:// or https://"):
        download_file(f"{server.address}/file", tmp_path / "file")
    assert len(server.asked) == 1
    assert not (tmp_path / "file").exists()


def test_a_redirection_in_a_circle_is_refused_at_once(server, tmp_path):
    server.redirects = {"/file": "/file"}
    with pytest.raises(ValueError, match=r"/file redirects in a circle"):
        download_file(f"{server.address}/file", tmp_path / "file")


def test_a_file_of_unknown_size_leaves_room_on_the_disk(endless, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_SPARE", 1 << 18)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 18))
    with pytest.raises(ValueError, match=r"the disk of .* is full: file needs more space"):
        download_file(f"{endless.address}/file", tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size <= 1 << 18
