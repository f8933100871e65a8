"""Bombs and odd files: what costs more than the budget is refused before it costs it, and nothing waits for ever."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import resource
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kshot import bounded
from kshot.app.spec import load_spec
from kshot.data import cache
from kshot.data.library.archives import opened_zip, unpack
from kshot.data.library.pickled import read_frame
from kshot.data.tables import extent
from kshot.data.tables.open import open_table
from kshot.data.text.files import files_of, notes_on, notes_on_links
from kshot.data.text_files import read_json, read_text
from kshot.files import DamagedFile, read_signed, sha256_of
from kshot.limits import Limits, OverLimit, limits
from kshot.sources import corpus
from kshot.training.checkpoint import load_state
from kshot.yaml_files import parse_yaml

RAISE = "If you trust it, raise all limits tenfold by the environment variable KSHOT_LIMITS=10"
MIB = 1 << 20
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="FIFOs, and memory by /proc")


# the budget -----------------------------------------------------------------------------------------------------------


def test_one_variable_raises_and_lifts_all_limits(monkeypatch):
    assert limits() == Limits()
    monkeypatch.setenv("KSHOT_LIMITS", "3")
    assert (limits().file_bytes, limits().seconds, limits().depth) == (3 * 8 << 30, 3 * 6 * 3600, 300)
    monkeypatch.setenv("KSHOT_LIMITS", "none")
    assert limits().file_bytes > 1 << 61
    assert limits().depth == 400
    for wrong in ("many", "0", "-1", "nan"):
        monkeypatch.setenv("KSHOT_LIMITS", wrong)
        with pytest.raises(ValueError, match="KSHOT_LIMITS is the factor of all limits, such as 10"):
            limits()


@pytest.mark.parametrize(("factor", "accepted"), [("1", False), ("2", True), ("none", True)])
def test_what_is_refused_is_accepted_when_the_limits_are_raised(tmp_path, monkeypatch, factor, accepted):
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"word " * (4 << 20)))  # 20 MiB, by the limit of 16
    monkeypatch.setenv("KSHOT_LIMITS", factor)
    if accepted:
        assert len(read_text(tmp_path / "t.txt.gz")) == 20 * MIB
    else:
        with pytest.raises(OverLimit, match=rf"t\.txt\.gz unpacks to more than 16,777,216 bytes.*{RAISE}"):
            read_text(tmp_path / "t.txt.gz")


# YAML -----------------------------------------------------------------------------------------------------------------


def doubling(first: str, wrap: str, levels: int = 9) -> str:
    """YAML each of whose lines repeats the one before nine times: 9^levels values."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {wrap.format(','.join([f'*a{n - 1}'] * 9))}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (doubling("[x,x,x,x,x,x,x,x,x]", "[{}]"), rf"run\.yaml has more than 50,000 values, .*{RAISE}"),
        (doubling("{x: 1}", "{{<<: [{}]}}"), r"run\.yaml has more than 50,000 values"),
        ("a: " + "[" * 101, rf"run\.yaml, line 1: more than 100 values deep within one another\. {RAISE}"),
        ("- " * 5000, r"run\.yaml, line 1: more than 100 values deep"),
        ("a: " + "x" * (1 << 20), rf"run\.yaml has .*1 MiB.*{RAISE}"),
        ("[" + "a," * 60_000 + "]", r"run\.yaml has more than 50,000 values"),
        ("a: 1\nb:\n  c: 1\n  c: 2", r"run\.yaml, line 4: the key 'c' occurs a second time, after line 3; keep one"),
        ("a: &a [1, *a]", r"run\.yaml, line 1: this value contains itself by an alias"),
        ("? [a]\n: 1", r"run\.yaml, line 1: a key is one word"),
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]",
            r"run\.yaml, line 2: this is not YAML: the tag .*os\.system'",
        ),
        ("a: 1\nb: !!bool x", r"run\.yaml, line 2: this is not YAML"),
        ("a: 1\nb: 2001-99-99", r"run\.yaml, line 2: this is not YAML: month must be"),
        ("a: 1\nb: " + ":".join(["59"] * 100_000), r"run\.yaml, line 2: .*a number of 299,999 characters"),
    ],
)
def test_a_run_file_that_is_a_bomb_or_is_unclear_is_refused_with_its_line(tmp_path, text, sentence):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_spec(str(tmp_path / "run.yaml"))
    with pytest.raises(ValueError, match=sentence.replace(r"run\.yaml", r"--set learner")):
        load_spec("sinusoid", [f"learner={text}"])


def test_aliases_and_merges_are_read_and_share_nothing():
    values, lines = parse_yaml("a: &a {x: 1, y: [2]}\nb: *a\nc:\n  <<: *a\n  x: 3", "x.yaml")
    assert values == {"a": {"x": 1, "y": [2]}, "b": {"x": 1, "y": [2]}, "c": {"x": 3, "y": [2]}}
    values["b"]["y"].append(0)
    assert values["a"]["y"] == values["c"]["y"] == [2]
    assert lines["c", "x"] == 5


# JSON -----------------------------------------------------------------------------------------------------------------


def test_json_has_a_depth_and_brackets_in_texts_do_not_count(tmp_path):
    path = tmp_path / "t.json"
    path.write_text("[" * 101 + "]" * 101)
    with pytest.raises(OverLimit, match=rf"t\.json: its JSON has lists or objects more than 100 deep.*{RAISE}"):
        read_json(path)
    path.write_text('{"a": "' + "[" * 500 + '\\"' + "{" * 500 + '", "b": ' + "[" * 99 + "]" * 99 + "}")
    assert read_json(path)["a"] == "[" * 500 + '"' + "{" * 500


# compressed files and archives ---------------------------------------------------------------------------------------


def peak_of(code: str, *arguments: object) -> float:
    """The peak memory in MiB that code takes in a process of its own, beyond what it had before."""
    script = f"import re, sys\n{code}"
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    return float(done.stdout)


MEASURED = """
from pathlib import Path
from kshot.limits import OverLimit
{imports}
def peak():  # of this program; that of getrusage is at least the size of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
try:
    {call}
except ValueError as error:
    assert {says!r} in str(error), error
else:
    raise AssertionError("it was read")
print(peak() - before)
"""


def zeros(opener, path: Path, mib: int, **options: int) -> Path:
    with opener(path, "wb", **options) as file:
        for _ in range(mib):
            file.write(bytes(MIB))
    return path


def a_tar(path: Path, kind: bytes, size: int) -> Path:
    """A tar.xz whose first member has a long header, as of a name."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    with lzma.open(path, "wb", preset=0) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size // MIB):
            file.write(bytes(MIB))
    return path


def a_zip(path: Path, method: int) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("run01/class_labels.txt", "w") as member:
        for _ in range(150):
            member.write(bytes(MIB))
    return path


LONG = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("tar.bz2", "zip lzma", "zip bzip2", "opened zip")]


@pytest.mark.parametrize("kind", ["csv.gz", "pkl.xz", "tar header", *LONG])
def test_a_bomb_of_150_mib_takes_less_than_75(tmp_path, kind):
    """The limit of small files is 16 MiB; a process that unpacks all of it would need 150 or more."""
    folder, imports, says = tmp_path / "out", "from kshot.data.library.archives import unpack", "bomb does"
    call = f"unpack(Path(sys.argv[1]), Path({str(folder)!r}))"
    if kind == "csv.gz":
        path, imports = zeros(gzip.open, tmp_path / "t.csv.gz", 150), "from kshot.data.text_files import read_text"
        call = "read_text(Path(sys.argv[1]))"
    elif kind == "pkl.xz":
        path = zeros(lzma.open, tmp_path / "t.pkl", 150, preset=0)
        imports = "from kshot.data.library.pickled import read_frame"
        call = "read_frame(Path(sys.argv[1]))"
    elif kind == "tar.bz2":
        info = tarfile.TarInfo("x")
        info.size = 150 * MIB
        with bz2.open(tmp_path / "t.tar.bz2", "wb") as file:
            file.write(info.tobuf())
            for _ in range(150):
                file.write(bytes(MIB))
        path = tmp_path / "t.tar.bz2"
    elif kind == "tar header":
        path, says = a_tar(tmp_path / "t.tar.xz", tarfile.GNUTYPE_LONGNAME, 150 * MIB), "a member has a header of"
    elif kind == "opened zip":
        path, imports = a_zip(tmp_path / "t.zip", zipfile.ZIP_DEFLATED), "from kshot.sources import omniglot_runs"
        call = "omniglot_runs(Path(sys.argv[1]))"
    else:
        path = a_zip(tmp_path / "t.zip", zipfile.ZIP_LZMA if kind == "zip lzma" else zipfile.ZIP_BZIP2)
        says = "compressed by another method than deflate"
    assert path.stat().st_size < MIB
    assert peak_of(MEASURED.format(imports=imports, call=call, says=says), path) < 75


def test_a_zip_for_reading_is_within_the_limits_and_others_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"text")
    with opened_zip(tmp_path / "t.zip") as archive:
        assert archive.read("a") == b"text"
    with pytest.raises(ValueError, match="compressed by another method"), opened_zip(a_zip(tmp_path / "l", 14)):
        pass


def test_a_pickle_names_no_memory(tmp_path):
    """A number of an object to remember, 2^31: the reader in C makes room for as many."""
    path = tmp_path / "t.pkl"
    path.write_bytes(pickle.PROTO + b"\x04" + pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + pickle.STOP)
    code = MEASURED.format(
        imports="from kshot.data.library.pickled import read_frame",
        call="read_frame(Path(sys.argv[1]))",
        says="it holds a NoneType",
    )
    assert peak_of(code, path) < 50


@pytest.mark.parametrize("damage", ["packed", "shape", "fifo"])
def test_a_cached_file_that_claims_more_than_it_holds_is_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    path = tmp_path / "x.npz"
    if damage == "packed":
        np.savez_compressed(path, a=np.zeros(1 << 22))
    elif damage == "fifo":
        os.mkfifo(path)
    else:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", header.getvalue() + bytes(8))
    assert cache.cached("x", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


# tables ---------------------------------------------------------------------------------------------------------------


def test_a_parquet_file_of_more_cells_than_its_size_allows_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    pl.select(pl.repeat(0, 3_000_000, dtype=pl.Int64).alias("a")).write_parquet(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(OverLimit, match=rf"unpacks to 3,000,000 rows of 1 columns.*at most 2,\d+,\d+ cells.*{RAISE}"):
        open_table(path)
    monkeypatch.setenv("KSHOT_LIMITS", "10")
    assert len(open_table(path)) == 3_000_000
    monkeypatch.delenv("KSHOT_LIMITS")
    pl.DataFrame({"a": ["x" * 1000] * 20_000}).write_parquet(path)
    with pytest.raises(OverLimit, match=r"t\.parquet unpacks to more than 16,777,216 bytes"):
        open_table(path)


def a_workbook(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def xlsb_record(kind: int, number: int) -> bytes:
    return bytes([kind, 8]) + number.to_bytes(4, "little") + bytes(4)


FAR, NEAR = (1_048_576, 16_384), (3, 28)  # rows and columns: all of a sheet, up to AB3
XLSX = '<row r="{0}"><c r="{2}{0}" t="n"><v>1</v></c></row>'
ODS = (
    '<table:table><table:table-row table:number-rows-repeated="{0}"><table:table-cell '
    'table:number-columns-repeated="{1}" office:value-type="float"/></table:table-row>{2}</table:table>'
)
EMPTY = (
    '<table:table-row table:number-rows-repeated="1048570"><table:table-cell table:number-columns-repeated="16384"/>'
)


@pytest.mark.parametrize("suffix", [".xlsx", ".xlsb", ".ods"])
@pytest.mark.parametrize(("size", "letters"), [(FAR, "XFD"), (NEAR, "AB")])
def test_the_extent_of_a_workbook_is_known_before_it_is_read(tmp_path, suffix, size, letters):
    rows, columns = size
    sheets = {
        ".xlsx": ("xl/worksheets/sheet1.xml", XLSX.format(rows, columns, letters).encode()),
        ".xlsb": ("xl/worksheets/sheet1.bin", xlsb_record(0, rows - 1) + xlsb_record(5, columns - 1)),
        ".ods": ("content.xml", ODS.format(rows, columns, EMPTY + "</table:table-row>").encode()),
    }
    path = a_workbook(tmp_path / f"t{suffix}", *sheets[suffix])
    if size == NEAR:
        extent.check_workbook(path)
        assert {".xlsx": extent._extent_xlsx, ".xlsb": extent._extent_xlsb, ".ods": extent._extent_ods}[suffix](
            sheets[suffix][1]
        ) == NEAR
    else:
        with pytest.raises(OverLimit, match=rf"reach to row 1,048,576 and column 16,384, .*{RAISE}"):
            open_table(path)


def test_a_workbook_that_lies_about_its_size_is_counted(tmp_path):
    path = a_workbook(tmp_path / "t.xlsx", "xl/sharedStrings.xml", bytes(40 * MIB))
    path.write_bytes(path.read_bytes().replace((40 * MIB).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(OverLimit, match=r"t\.xlsx unpacks to more than 16,777,216 bytes"):
        open_table(path)


# what is no file ------------------------------------------------------------------------------------------------------

READERS = {
    "read_text": (read_text, "t.txt"),
    "open_table": (open_table, "t.csv"),
    "open_table parquet": (open_table, "t.parquet"),
    "open_table json": (open_table, "t.json"),
    "open_table xlsx": (open_table, "t.xlsx"),
    "load_spec": (lambda path: load_spec(str(path)), "run.yaml"),
    "read_signed": (read_signed, "spec.yaml"),
    "sha256_of": (sha256_of, "weights"),
    "load_state": (load_state, "state.safetensors"),
    "read_frame": (read_frame, "t.pkl"),
    "unpack": (lambda path: unpack(path, path.parent / "out"), "t.zip"),
    "read_bytes": (bounded.read_bytes, "image.png"),
}


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, monkeypatch, reader, kind):
    read, name = READERS[reader]
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    with pytest.raises((ValueError, OSError), match=rf"(?s)(?=.*{path.stem}).*is a {kind}"):
        read(path)


def test_a_file_without_a_size_and_a_sparse_one_stop_at_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # 1 TiB that takes no space
    with pytest.raises(OverLimit, match=rf"t\.csv has 1,?024 GiB|t\.csv has 1024 GiB, and at most 8 GiB.*{RAISE}"):
        open_table(path)
    monkeypatch.setenv("KSHOT_LIMITS", "none")
    with pytest.raises(MemoryError, match=r"t\.csv has 1024 GiB, and .* of memory are free"):
        open_table(path)


# links ----------------------------------------------------------------------------------------------------------------


def a_folder_of_texts(root: Path) -> Path:
    for name in ("ann", "bob"):
        (root / "in" / name).mkdir(parents=True)
        (root / "in" / name / "1.txt").write_text(f"my name is {name}. " * 9)
    (root / "far.txt").write_text("a secret of another folder. " * 9)
    return root / "in"


def test_a_link_that_leaves_a_folder_of_texts_is_refused_unless_it_may(tmp_path):
    folder = a_folder_of_texts(tmp_path)
    (folder / "ann" / "2.txt").symlink_to(folder / "bob" / "1.txt")
    assert len(files_of(folder, "*.txt")) == 3, "links inside are followed"
    (folder / "bob" / "2.txt").symlink_to(tmp_path / "far.txt")
    with pytest.raises(ValueError, match=r"the link .*2\.txt leads out of .*in, to .*far\.txt; .*follow_links: true"):
        files_of(folder, "*.txt")
    options = {"length": 16, "shots": 2, "queries": 2, "split": {"ratio": [1, 0, 0]}}
    with pytest.raises(ValueError, match="leads out of"):
        corpus(folder, task="folder", **options)
    assert corpus(folder, task="folder", follow_links=True, **options).notes == []


def test_links_to_folders_loops_and_odd_entries_are_counted_and_left_out(tmp_path, caplog):
    folder = a_folder_of_texts(tmp_path)
    (folder / "ann" / "up").symlink_to(folder)  # in a circle
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    sentence = f"{folder}: 4 entries are links to folders or to nowhere, or no files, and are not read: "
    (note,) = notes_on_links(folder)
    assert note.startswith(sentence)
    assert note in notes_on(folder, "*.txt")
    assert len(files_of(folder, "*.txt")) == 2
    source = corpus(folder, length=16, shots=2, queries=2, split={"ratio": [1, 0, 0]})
    assert source.notes == [note]
    assert note in caplog.text


def test_limits_of_a_damaged_file_of_kshot_stay_its_damage(tmp_path):
    from kshot.files import read_json as read_own

    (tmp_path / "meta.json").write_text("[" * 5000)
    with pytest.raises(DamagedFile, match=r"meta\.json is damaged"):
        read_own(tmp_path / "meta.json")


def test_this_process_stayed_small():
    """All of the above together; a bomb that went off would be seen here."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 << 20  # KiB
