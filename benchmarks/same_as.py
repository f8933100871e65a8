"""Check that the working tree gives the same results as an earlier revision: run every recipe, shortened, with both.

    python benchmarks/same_as.py REV [--only NAME ...] [--jobs 2]

For refactorings that must preserve results bit for bit. REV is checked out as a worktree in a temporary folder. Each
tree runs its own recipes by its own command line, in single-threaded processes on the CPU, so that files and names may
differ. For each recipe, the script compares:

weights    all tensors of the run's checkpoints, bit for bit, regardless of their names
names      the names of those tensors; a change is shown, but is not a difference
figures    all numbers in report.json and in tables such as tasks.csv, exactly, except times and settings (`protocol`,
           `settings`). Keys may change, but the same numbers must occur
episodes   the hashes of the test tasks

The exit code is 0 if all are equal, and 1 if any differ, a run failed or none could be compared. A recipe is skipped if
neither tree finds its data. A run takes seconds, and all of them take minutes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
HERE = "the working tree"
RUN = "import runpy, torch; torch.manual_seed(0); runpy.run_module('kshot.app', run_name='__main__', alter_sys=True)"
"""`python -m kshot.app` with a fixed global seed, for random numbers that a revision draws outside its own seeds."""
FINISHED = 0, 1, 3  # exit codes of `kshot run` with a report
ABSENT = re.compile(
    r"was not found|kshot data add|pip install|there is no (?!recipe|run file)|no package \S+ is installed"
)
UNMEASURED = re.compile(r"(^|_)(ms|seconds|timing|environment|protocol|settings)$")
"""Keys of a report with numbers that differ between two runs of the same code, or repeat the settings."""
SHOWN = 5  # differing figures shown per recipe
TEXTS = 8  # texts per class in each part of a file

Recipe = dict[str, Any]
Numbers = dict[str, float]
Shorten = Callable[[Any], Any]


def at_most(limit: int) -> Shorten:
    return lambda old: limit if old is None else min(old, limit)


def counted(limit: int) -> Shorten:
    """As `at_most`; a list of candidates is reduced to two."""
    return lambda old: [limit - 1, limit] if isinstance(old, list) else at_most(limit)(old)


def always(value: Any) -> Shorten:
    return lambda old: value


def first_two(default: list[float]) -> Shorten:
    return lambda old: (old or default)[:2]


def narrow(old: int | list[int]) -> int | list[int]:
    return [narrow(each) for each in old] if isinstance(old, list) else max(old // 4, 4)


ALWAYS: dict[str, Shorten] = {
    "device": always("cpu"),
    "budget": always({"rounds": 2}),
    "train.steps_per_round": at_most(3),
    "train.tasks_per_step": at_most(2),
    "train.mode": always("loop"),  # other modes depend on timing, or compile
    "evaluate.num_val_tasks": at_most(3),
    "evaluate.num_test_tasks": at_most(4),
    "evaluate.shots": first_two([1, 2]),
    "evaluate.num_shots_tasks": at_most(2),
    "baselines.steps": counted(2),
    "baselines.inner_lrs": first_two([0.01, 0.1]),
    "baselines.num_val_tasks": at_most(2),
    "baselines.num_test_tasks": at_most(4),
}
"""Settings changed in every recipe, present or not."""
IF_PRESENT: dict[str, Shorten] = {
    "pretrain.steps": at_most(3),
    "pretrain.batch": at_most(16),
    "reject.outsiders": at_most(5),
    "source.train_ways": at_most(10),
    "model.channels": narrow,
}


def shortened(recipe: Recipe) -> Recipe:
    """Return a copy of a recipe that runs in seconds.

    Example:
        >>> shortened({"train": {"steps_per_round": 500}, "pretrain": {"steps": 2}})["train"]["steps_per_round"]
        3
    """
    short = json.loads(json.dumps(recipe))
    old_names = "val_tasks" in recipe.get("evaluate", {})  # recipes before counts were renamed to num_*
    for path, shorten in (ALWAYS | IF_PRESENT).items():
        *outer, last = path.split(".")
        last = last.removeprefix("num_") if old_names else last
        node = short
        for key in outer:
            node = node.setdefault(key, {}) if path in ALWAYS else node.get(key) or {}
        if path in ALWAYS or last in node:
            node[last] = shorten(node.get(last))
    return short


def few_texts(source: Recipe, folder: Path) -> Recipe:
    """Reduce a text source to the first few texts of each class, so that an encoder processes them in seconds.

    Other sources, and sources without data, are returned unchanged.
    """
    path = Path(os.environ.get("KSHOT_DATA", "")) / str(source.get("path"))
    if source.get("kind") != "text" or path.suffix != ".json" or not path.is_file():
        return source
    parts = json.loads(path.read_text())
    few_by_part: dict[str, list[list[str]]] = {}
    for part, pairs in parts.items():
        seen: Counter[str] = Counter()
        few_by_part[part] = []
        for text, label in pairs:
            seen[label] += 1
            if seen[label] <= TEXTS:
                few_by_part[part].append([text, label])
    few = folder / path.name
    few.write_text(json.dumps(few_by_part))
    return source | {"path": str(few)}


@dataclass
class Tree:
    """A source tree of the library, and the folder of its runs."""

    name: str
    root: Path
    work: Path

    def __post_init__(self) -> None:
        self.work.mkdir()
        result = self.python("-c", "import kshot; print(kshot.__file__)")
        path = result.stdout.strip()
        if not path.startswith(f"{self.root}{os.sep}"):
            raise SystemExit(f"{self.name}: kshot is imported from another tree: {path or result.stderr}")

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
        settings = {"PYTHONPATH": str(self.root), "KSHOT_CACHE": str(self.work / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        environment = os.environ | one_thread | settings
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, cwd=self.work, capture_output=True, text=True)

    def recipes(self) -> dict[str, Path]:
        recipes = {path.stem: path for path in sorted(self.root.glob("kshot/**/recipes/*.yaml"))}
        if not recipes:
            raise SystemExit(f"{self.name} has no kshot/**/recipes/*.yaml")
        return recipes


class Outcome(NamedTuple):
    """The result of a run: folder, exit code, last lines of standard error, and seconds."""

    folder: Path
    code: int
    error: str
    seconds: float

    @property
    def finished(self) -> bool:
        return self.code in FINISHED and (self.folder / "report.json").is_file()

    @property
    def lacks_data(self) -> bool:
        return self.code == 2 and ABSENT.search(self.error) is not None


def run(tree: Tree, name: str) -> Outcome:
    """Run a shortened recipe of a tree."""
    started = time.monotonic()
    folder = tree.work / name
    texts = tree.work / f"{name}-texts"
    texts.mkdir()
    recipe = shortened(yaml.safe_load(tree.recipes()[name].read_text()))
    recipe["source"] = few_texts(recipe["source"], texts)
    file = tree.work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = tree.python("-c", RUN, "run", str(file), "--out", str(folder))
    error = "\n".join(done.stderr.strip().splitlines()[-5:])
    if "unknown key" in error:
        error += "\nA key that this script sets has another name in that tree: see ALWAYS and IF_PRESENT in same_as.py."
    return Outcome(folder, done.returncode, error, time.monotonic() - started)


def tensors(file: Path) -> dict[str, str]:
    """The tensors of a safetensors file: name to hash of type, shape and bytes."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    hashes = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        kind = f"{entry['dtype']} {entry['shape']} ".encode()
        hashes[name] = hashlib.sha256(kind + data[begin:end]).hexdigest()
    return hashes


def weights(folder: Path) -> dict[str, str]:
    """All tensors of models and optimisers in a run folder: file and name to hash."""
    return {
        f"{file.relative_to(folder)}: {name}": sha256
        for file in sorted(folder.rglob("*.safetensors"))
        for name, sha256 in tensors(file).items()
    }


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The path and value of each leaf of a JSON tree, except times and settings."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if inner is None:
        yield path, node
        return
    for key, value in inner:
        if not UNMEASURED.search(str(key)):
            yield from leaves(value, f"{path}.{key}" if path else str(key))


def numbers(folder: Path) -> Numbers:
    """The numbers of a run folder: location to value."""
    report = json.loads((folder / "report.json").read_text())
    values = {
        f"report.json {path}": float(leaf) for path, leaf in leaves(report) if isinstance(leaf, bool | int | float)
    }
    for table in sorted(folder.glob("*.csv")):
        with table.open(newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines)):
                for column, cell in row.items():
                    if "episode" not in column and (value := _number(cell)) is not None:
                        values[f"{table.name} row {number} {column}"] = value
    return values


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def episodes(folder: Path) -> list[str]:
    """The episode hashes in a report, sorted."""
    hashes: list[str] = []

    def gather(node: Any, named: bool) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            here = named or "episode" in str(key)
            if isinstance(value, dict | list):
                gather(value, here)
            elif here and isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,}", value):
                hashes.append(value)

    gather(json.loads((folder / "report.json").read_text()), False)
    return sorted(hashes)


def differing(before: Numbers, after: Numbers) -> list[str]:
    """A line for each difference between the numbers of two runs; no line if all numbers occur in both, under any key.

    Example:
        >>> differing({"mae": 0.5, "steps": 3.0}, {"error": 0.5, "steps": 3.0})
        []
    """
    shared = [location for location in before if location in after and not _equal(before[location], after[location])]
    only_before, only_after = Counter(map(repr, before.values())), Counter(map(repr, after.values()))
    if only_before == only_after:
        return [
            f"{location}: {before[location]!r} -> {after[location]!r}, which occurs under another key"
            for location in shared
        ]
    lines = []
    if shared:
        worst = max(shared, key=lambda location: _relative(before[location], after[location]))
        shown = [worst, *(location for location in shared if location != worst)]
        lines += [f"{location}: {before[location]!r} -> {after[location]!r}" for location in shown]
        lines[0] += f", the largest relative difference of {len(shared)}: {_relative(before[worst], after[worst]):.2g}"
    for mine, other, which in ((before, only_after, "before"), (after, only_before, "after")):
        left = Counter(other)
        for location, value in mine.items():
            if left[repr(value)] > 0:
                left[repr(value)] -= 1
            elif location not in shared:
                lines.append(f"{location}: {value!r}, only {which}")
    return lines


def _equal(one: float, other: float) -> bool:
    return repr(one) == repr(other)


def _relative(one: float, other: float) -> float:
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / (max(abs(one), abs(other)) or 1.0)  # 0.0 and -0.0 differ by 0


class Comparison(NamedTuple):
    """The result of comparing two runs: table cells, and the lines below them."""

    same: bool
    cells: list[str]
    lines: list[str]


def compare(before: Outcome, after: Outcome) -> Comparison:
    """Compare two finished runs."""
    old, new = weights(before.folder), weights(after.folder)
    changed = [name for name in old.keys() & new.keys() if old[name] != new[name]]
    named = old.keys() == new.keys()
    weighed = bool(old) and (old == new if named else sorted(old.values()) == sorted(new.values()))
    figures = numbers(before.folder)
    lines = differing(figures, numbers(after.folder))
    hashes = [episodes(outcome.folder) for outcome in (before, after)]
    drawn = "equal" if hashes[0] == hashes[1] else "differ" if all(hashes) else "missing"
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    shown = lines[:SHOWN] + more
    if not weighed:
        shown.insert(0, f"tensors: {len(changed)} of the same name differ; there were {len(old)}, now {len(new)}")
    if before.code != after.code:
        shown.append(f"exit code {before.code} -> {after.code}")
    cells = [
        "equal" if weighed else "DIFFER" if old else "NONE",
        "equal" if named else "other",
        f"DIFFER ({len(lines)})" if lines else f"equal ({len(figures)})",
        drawn if hashes[0] else "none",
        f"{before.seconds:.0f} + {after.seconds:.0f} s",
    ]
    return Comparison(weighed and not lines and drawn != "differ" and before.code == after.code, cells, shown)


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """A worktree of a revision, removed on exit."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def failure(trees: list[Tree], outcomes: list[Outcome]) -> str:
    """The reason that the runs of a recipe cannot be compared."""
    return "\n".join(
        f"{tree.name}: exit code {outcome.code}: {outcome.error}"
        for tree, outcome in zip(trees, outcomes)
        if not outcome.finished
    )


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def compare_all(trees: list[Tree], only: list[str], jobs: int) -> bool:
    """Run and compare all recipes, and print a line for each; return whether some were compared and all are equal."""
    recipes_by_tree = [tree.recipes() for tree in trees]
    names = only or list(recipes_by_tree[0] | recipes_by_tree[1])
    width = max(len(name) for name in names)
    print(f"{'recipe':<{width}}  weights  names  figures       episodes  time")
    good, compared = True, 0
    with ThreadPoolExecutor(jobs) as pool:
        runs = {
            name: [pool.submit(run, tree, name) for tree in trees]
            for name in names
            if all(name in recipes for recipes in recipes_by_tree)
        }
        for name in names:
            if name not in runs:
                has = [tree.name for tree, recipes in zip(trees, recipes_by_tree) if name in recipes]
                print(f"{name:<{width}}  FAILED: {'only in ' + has[0] if has else 'in neither tree'}")
                good = False
                continue
            outcomes = [each.result() for each in runs[name]]
            if all(outcome.lacks_data for outcome in outcomes):
                print(f"{name:<{width}}  skipped: {outcomes[1].error}", flush=True)
            elif not all(outcome.finished for outcome in outcomes):
                print(f"{name:<{width}}  FAILED\n{indented(failure(trees, outcomes))}", flush=True)
                good = False
            else:
                comparison = compare(*outcomes)
                weighed, named, figures, drawn, seconds = comparison.cells
                print(f"{name:<{width}}  {weighed:<7}  {named:<5}  {figures:<12}  {drawn:<8}  {seconds}", flush=True)
                if comparison.lines:
                    print(indented("\n".join(comparison.lines)), flush=True)
                good &= comparison.same
                compared += 1
    verdict = "NOT all equal" if not good else "all equal" if compared else "nothing compared"
    print(f"{compared} of {len(names)} recipes compared: {verdict}")
    return good and compared > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", metavar="REV", help="revision to compare with the working tree")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="recipes; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kshot-same-as-") as scratch:
        work = Path(scratch).resolve()
        with checked_out(arguments.revision, work / "tree") as tree:
            trees = [Tree(arguments.revision, tree, work / "before"), Tree(HERE, ROOT, work / "after")]
            same = compare_all(trees, arguments.only, arguments.jobs)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
