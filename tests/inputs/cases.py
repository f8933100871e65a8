"""Strategies of hypothesis for whole calls: mutated run files, options, and files of data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from inputs import tiny
from inputs.calls import DATA, Case
from inputs.prepared import RUNS, placed
from inputs.values import CELLS, INTEGERS, TEXTS, VALUES, damaged, mutated

CHECK = ["data", "check", "run.yaml", "--tasks", "2", "--examples", "40"]
RUN = ["run", "run.yaml", "--out", "out"]
LIMITS = {
    ("train", "steps_per_round"): 2,
    ("train", "tasks_per_step"): 2,
    ("pretrain", "steps"): 2,
    ("pretrain", "batch"): 8,
    ("budget", "rounds"): 1,
    ("evaluate", "num_val_tasks"): 3,
    ("evaluate", "num_test_tasks"): 3,
    ("evaluate", "num_shots_tasks"): 2,
    ("evaluate", "folds"): 3,
    ("baselines", "steps"): 2,
    ("baselines", "num_val_tasks"): 2,
    ("baselines", "num_test_tasks"): 2,
}
"""The largest values of keys that say how long a run takes: a long run is no leak."""
SIZES = {("model", "channels"): (64, 8), ("learner", "steps"): (5, 2)}
"""What the recipes give, and what takes its place in `kshot run`: their networks take seconds, and are no leak."""


def yaml_of(content: Any) -> bytes:
    """A run file; texts that YAML cannot hold are written as they are."""
    text = yaml.safe_dump(placed(content), sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


def limited(content: Any, words: list[str] | None = None) -> Any:
    """A run file with `LIMITS`; for `kshot run`, those of keys that it leaves out too."""
    if not isinstance(content, dict):
        return content
    content = dict(content)
    runs = words == RUN
    for (section, key), (of_recipe, small) in SIZES.items() if runs else ():
        options = content.get(section)
        if isinstance(options, dict) and options.get(key) == of_recipe:
            content[section] = {**options, key: small}
    for (section, key), most in LIMITS.items():
        options = content.get(section, {} if runs and section != "pretrain" else None)
        if isinstance(options, dict):
            given = options.get(key, most if runs and key != "folds" else None)
            if type(given) is int and (given > most or key not in options):
                options = {**options, key: most}
            if runs and section == "evaluate":
                options = {"shots": [], **options}
            if runs and section == "baselines":
                options = {"names": [], **options}
            content[section] = options
    return content


@cache
def run_files() -> list[dict[str, Any]]:
    """Run files that work: the recipes, and one for each tiny source."""
    from kshot.app.spec import recipes

    found = [yaml.safe_load(text) for text in recipes().values()]
    pairs = [("mlp", "maml"), ("mlp", "protonet"), ("none", "cnp"), ("none", "partial_pooling"), ("conv4", "protonet")]
    pairs += [("factorisation", "alpaca"), ("language_model", "maml"), ("mlp", "r2d2"), ("language_model", "reptile")]
    for source in tiny.SOURCES.values():
        found += [tiny.run_file(source, tiny.MODELS[model], tiny.learner(kind)) for model, kind in pairs]
    found += [tiny.run_file(tiny.SOURCES[s], tiny.MODELS[m], tiny.learner(k)) for s, m, k in RUNS.values()]
    return found


@st.composite
def run_file_values(draw: st.DrawFn) -> Case:
    """A run file with changed keys and values."""
    words = draw(st.sampled_from([*9 * [CHECK], RUN]))
    content = limited(draw(mutated(draw(st.sampled_from(run_files())))), words)
    return Case(list(words), {"run.yaml": yaml_of(content)})


@st.composite
def run_file_parts(draw: st.DrawFn) -> Case:
    """A run file with parts of others: another source, model, learner, objective, or section."""
    first, second = draw(st.sampled_from(run_files())), draw(st.sampled_from(run_files()))
    keys = draw(st.lists(st.sampled_from(sorted(first.keys() | second.keys())), min_size=1, max_size=4))
    content = first | {key: second[key] for key in keys if key in second}
    further: dict[str, st.SearchStrategy[Any]] = {
        "objective": st.sampled_from(["mse", "classification", "shared_classification", "multilabel", "gaussian",
                                      "next_token", {"kind": "forecast", "season": 7}, "rating"]),
        "pretrain": st.sampled_from([{"steps": 1, "batch": 4}, {"steps": 1, "objective": "contrastive"}]),
        "device": st.sampled_from(["meta", "cpu", "auto", "cuda", "mps", "xla", "cpu:1"]),
        "reject": st.sampled_from([{"score": "energy"}, {"score": "nearest", "false_rejection": 0.1}]),
        "policy": st.sampled_from(["rules", {"kind": "rules", "patience": 1}]),
        "learner": st.sampled_from([tiny.learner(kind) for kind in tiny.learners()]),
    }  # fmt: skip
    for key in draw(st.lists(st.sampled_from(sorted(further)), max_size=2)):
        content = content | {key: draw(further[key])}
    words = draw(st.sampled_from([*9 * [CHECK], RUN]))
    return Case(list(words), {"run.yaml": yaml_of(limited(content, words))})


@st.composite
def run_file_bytes(draw: st.DrawFn) -> Case:
    """A run file with damaged text."""
    return Case(list(CHECK), {"run.yaml": draw(damaged(yaml_of(limited(draw(st.sampled_from(run_files()))))))})


@st.composite
def set_options(draw: st.DrawFn) -> Case:
    """`--set` with odd paths and values."""
    content = draw(st.sampled_from(run_files()))
    paths = [f"{key}.{inner}" for key, value in content.items() if isinstance(value, dict) for inner in value]
    words = list(CHECK)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.one_of(st.sampled_from([*paths, *content, "source.x.y", "a.b.c"]), TEXTS))
        value = draw(st.one_of(TEXTS, VALUES.map(lambda value: json.dumps(value, default=str)), INTEGERS.map(str)))
        words += ["--set", draw(st.sampled_from([f"{path}={value}", f"{path}={value}", f"{path}{value}"]))]
    return Case(words, {"run.yaml": yaml_of(limited(content))})


@cache
def rows_of(name: str) -> list[list[str]]:
    """The cells of a CSV file of the tiny data, the first line among them."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tiny.write_data(Path(folder))
        return list(csv.reader(io.StringIO((Path(folder) / name).read_text())))


@st.composite
def changed_rows(draw: st.DrawFn, name: str) -> list[list[str]]:
    """The cells of a table with odd ones: single cells, whole columns, names of columns, or rows of another length."""
    rows = [list(row) for row in rows_of(name)]
    width = len(rows[0])
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["cell", "cell", "column", "name", "short", "long", "remove", "repeat", "few"]))
        column, row = draw(st.integers(0, width - 1)), draw(st.integers(0, len(rows) - 1))
        if kind == "cell":
            rows[row] = [*rows[row][:column], draw(CELLS), *rows[row][column + 1 :]]
        elif kind == "column":
            cells = draw(st.lists(CELLS, min_size=1, max_size=4))
            rows[1:] = [[*r[:column], cells[n % len(cells)], *r[column + 1 :]] for n, r in enumerate(rows[1:])]
        elif kind == "name":
            rows[0] = [
                *rows[0][:column],
                draw(st.one_of(TEXTS, st.sampled_from(rows[0] or ["x"]))),
                *rows[0][column + 1 :],
            ]
        elif kind == "short":
            rows[row] = rows[row][:column]
        elif kind == "long":
            rows[row] = [*rows[row], draw(CELLS)]
        elif kind == "remove" and width > 1:
            rows = [r[:column] + r[column + 1 :] for r in rows]
            width -= 1
        elif kind == "repeat":
            rows.append(list(rows[row]))
        elif kind == "few":
            rows = rows[: draw(st.sampled_from([1, 2, 3, 9, 100]))]
    return rows


@st.composite
def delimited(draw: st.DrawFn, rows: list[list[str]]) -> tuple[str, bytes]:
    """The name and the content of a delimited file of these cells."""
    delimiter = draw(st.sampled_from([",", ",", ",", ";", "\t", "|", " "]))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])),
                        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])))  # fmt: skip
    writer.writerows(rows)
    suffix = draw(st.sampled_from(["csv", "csv", "csv", "tsv", "txt", "CSV", "csv.gz", "dat"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]))
    try:
        content = text.getvalue().encode(encoding, "surrogatepass")
    except UnicodeEncodeError:
        content = text.getvalue().encode("utf-8", "surrogatepass")
    return f"t.{suffix}", content


@st.composite
def json_rows(draw: st.DrawFn, rows: list[list[str]]) -> tuple[str, bytes]:
    """The name and the content of a JSON or NDJSON file of these cells, with values of all types."""
    names = rows[0] or ["a"]
    objects: list[Any] = [dict(zip(names, row)) for row in rows[1:]]
    if objects and draw(st.booleans()):
        for _ in range(draw(st.integers(1, 3))):
            number = draw(st.integers(0, len(objects) - 1))
            objects[number] = draw(st.one_of(mutated(objects[number]), VALUES))
    if draw(st.integers(0, 3)) == 0 and objects:
        key, value = draw(st.sampled_from(names)), draw(VALUES)
        objects = [{**each, key: value} if isinstance(each, dict) else each for each in objects]
    if draw(st.booleans()):
        return "t.ndjson", "\n".join(_json(each) for each in objects).encode("utf-8", "surrogatepass")
    whole: Any = draw(st.sampled_from([objects, objects, {"data": objects}, [], {}, None, 3]))
    return "t.json", _json(whole).encode("utf-8", "surrogatepass")


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


@st.composite
def parquet(draw: st.DrawFn, rows: list[list[str]]) -> tuple[str, bytes]:
    """The name and the content of a Parquet or Arrow file, a column of which has an odd type."""
    import polars as pl

    width = len(rows[0])
    names = list(dict.fromkeys(name or "_" for name in rows[0])) or ["a"]
    columns = {name: [row[n] if n < len(row) else None for row in rows[1:]] for n, name in enumerate(names[:width])}
    frame = pl.DataFrame({name: [_clean(cell) for cell in cells] for name, cells in columns.items()}, strict=False)
    frame = frame.with_columns(pl.col(pl.String).cast(pl.Float64, strict=False).name.suffix(" as number"))
    frame = pl.DataFrame([_sharper(frame, name) for name in names if name in frame.columns])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(frame.columns))
        frame = frame.with_columns(draw(st.sampled_from(odd_types(len(frame)))).alias(name))
    written = io.BytesIO()
    suffix = draw(st.sampled_from(["parquet", "parquet", "parquet", "arrow"]))
    (frame.write_parquet if suffix == "parquet" else frame.write_ipc)(written)
    return f"t.{suffix}", written.getvalue()


def _clean(cell: str | None) -> str | None:
    return None if cell is None else cell.encode("utf-8", "replace").decode()


def _sharper(frame: Any, name: str) -> Any:
    """A column as numbers if they are, as text otherwise."""
    numbers = frame[f"{name} as number"]
    return frame[name] if numbers.null_count() > len(frame) // 2 else numbers.alias(name)


@cache
def odd_types(count: int) -> list[Any]:
    """Columns of every type of polars."""
    from datetime import date, datetime, time, timedelta
    from decimal import Decimal

    import polars as pl

    def repeated(values: list[Any], dtype: Any = None) -> Any:
        return pl.Series("x", [values[n % len(values)] for n in range(count)], dtype=dtype, strict=False)

    values: list[tuple[list[Any], Any]] = [
        ([timedelta(1), timedelta(seconds=3)], None), ([[1, 2], [], None], None), ([{"a": 1}, {"a": None}], None),
        ([Decimal("1.5"), Decimal("99999999999999999999.123")], None), ([b"\xff\x00", b""], None), ([None], None),
        (["a", "b", "c"], pl.Categorical), (["a", "b"], pl.Enum(["a", "b"])), ([date(2024, 1, 1)], None),
        ([datetime(1, 1, 1), datetime(9999, 12, 31)], None), ([time(1), time(23, 59)], None),
        ([True, False, None], None), ([2**63, 2**64 - 1], pl.UInt64), ([2**100, -(2**100)], pl.Int128),
        ([1, 2], pl.Int8), ([float("nan"), float("inf"), 1.0], None), ([1e300, -1e300], None), ([0.1], pl.Float32),
        ([1, 1], None), ([[1.0, 2.0]], pl.Array(pl.Float64, 2)), (["x" * 70000], None),
        ([datetime(2024, 1, 1)], pl.Datetime("ns", "Europe/Berlin")), ([[[1]], [[2, 3]]], None),
        ([{"a": {"b": [1]}}], None), (["\ufeff", "\x00", ""], None),
    ]  # fmt: skip
    return [repeated(each, dtype) for each, dtype in values]


TABLES = [name for name, source in tiny.SOURCES.items() if source["kind"] in ("table", "text", "series", "ratings")]


@st.composite
def data_files(draw: st.DrawFn) -> Case:
    """A file of a table, texts, series or ratings with odd cells, types or bytes, and a run file that reads it."""
    source = tiny.SOURCES[draw(st.sampled_from(TABLES))]
    original = str(source["path"]).replace("texts.json", "texts.csv")
    rows = draw(changed_rows(original))
    form = draw(st.sampled_from([delimited, delimited, json_rows, parquet]))
    try:
        name, content = draw(form(rows))
    except Exception:  # polars refuses to write some
        name, content = draw(delimited(rows))
    if draw(st.integers(0, 5)) == 0:
        content = draw(damaged(content))
    if name.endswith("gz"):
        import gzip

        content = gzip.compress(content)
    if draw(st.integers(0, 9)) == 0:
        suffixes = ["csv", "json", "ndjson", "parquet", "xlsx", "xls", "gz", "zst", "txt", "jsonl"]
        name = f"t.{draw(st.sampled_from(suffixes))}"
    model, learner = ("factorisation", "alpaca") if source["kind"] == "ratings" else ("mlp", "protonet")
    if draw(st.integers(0, 4)) == 0:
        source = draw(mutated(source))
    content_of_run = tiny.run_file({**source, "path": "@here@"}, tiny.MODELS[model], tiny.learner(learner))
    run = yaml_of(content_of_run).replace(f"{DATA}/@here@".encode(), name.encode())
    return Case(list(CHECK), {"run.yaml": run, name: content})


@st.composite
def films(draw: st.DrawFn) -> Case:
    """A folder of MovieLens with odd cells and names of columns, in each of its formats."""
    source = {**tiny.SOURCES["movielens"], "path": "@here@"}
    if draw(st.integers(0, 4)) == 0:
        source = draw(mutated(source))
    rated, titles = draw(changed_rows("films/ratings.csv")), rows_of("films/movies.csv")
    if draw(st.booleans()):
        rated, titles = rows_of("films/ratings.csv"), draw(changed_rows("films/movies.csv"))
    form = draw(st.sampled_from(["csv", "csv", "dat", "100k"]))
    if form == "csv":
        files = {"d/ratings.csv": _comma(rated), "d/movies.csv": _comma(titles)}
    elif form == "dat":
        files = {"d/ratings.dat": _joined(rated[1:], "::"), "d/movies.dat": _joined(titles[1:], "::")}
    else:
        flags = [[*row, "1990", "", "", *("01"[n == 5] for n in range(19))] for row in titles[1:]]
        files = {"d/u.data": _joined(rated[1:], "\t"), "d/u.item": _joined(flags, "|")}
    name = draw(st.sampled_from(sorted(files)))
    if draw(st.integers(0, 3)) == 0:
        files[name] = draw(damaged(files[name]))
    elif draw(st.integers(0, 9)) == 0:
        del files[name]
    run = yaml_of(tiny.run_file(source, tiny.MODELS["factorisation"], tiny.learner("alpaca")))
    return Case(list(CHECK), {"run.yaml": run.replace(f"{DATA}/@here@".encode(), b"d"), **files})


def _comma(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _joined(rows: list[list[str]], separator: str) -> bytes:
    return "\n".join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass")


@st.composite
def frozen(draw: st.DrawFn, data: Path) -> Case:
    """A damaged file of frozen tasks."""
    source = {"kind": "episodes", "path": "e.safetensors"}
    run = yaml.safe_dump(tiny.run_file(source, tiny.MODELS["conv4"], tiny.learner("protonet")), sort_keys=False)
    content = draw(damaged((data / "episodes.safetensors").read_bytes()))
    return Case(list(CHECK), {"run.yaml": run.encode(), "e.safetensors": content})


@st.composite
def folders(draw: st.DrawFn) -> Case:
    """A folder of images or texts, some of them damaged or with odd names."""
    images = draw(st.booleans())
    source = {**tiny.SOURCES["images" if images else "corpus"], "path": "@here@"}
    files = pictures() if images else _texts()
    chosen = dict(files)
    for name in draw(st.lists(st.sampled_from(sorted(files)), max_size=4)):
        content = chosen.pop(name, files[name])
        renamed = draw(
            st.sampled_from([name, name, f"{name}.txt", name.replace("c0", "[x]"), f"train/{name}", "a/b/c.png"])
        )
        chosen[renamed] = draw(st.one_of(damaged(content), st.binary(max_size=20), st.just(b"")))
    if draw(st.integers(0, 3)) == 0:
        chosen = dict(list(chosen.items())[: draw(st.integers(0, 8))])
    if draw(st.integers(0, 3)) == 0:
        source = draw(mutated(source))
    model, learner = ("conv4", "protonet") if images else ("language_model", "maml")
    run = yaml_of(tiny.run_file(source, tiny.MODELS[model], tiny.learner(learner)))
    written = {f"d/{name}": content for name, content in chosen.items()}
    return Case(list(CHECK), {"run.yaml": run.replace(f"{DATA}/@here@".encode(), b"d"), **written})


@cache
def pictures() -> dict[str, bytes]:
    return _files(lambda folder: tiny.write_images(folder, classes=14, each=4, size=16))


@cache
def _texts() -> dict[str, bytes]:
    return {f"{n}.txt": 8 * f"{'abcdef'[n % 6] * 3} abc is number {n}. ".encode() for n in range(12)}


def _files(write: Callable[[Path], None]) -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}
