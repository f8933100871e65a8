"""Whether the working tree computes what an earlier revision computed: every recipe, shortened, run at both.

    python benchmarks/same_as.py REV [--only NAME ...] [--jobs 2]

For a refactoring that must not change a bit. REV is checked out as a worktree in a temporary folder. Each tree runs its
own recipes by its own command line, in processes of one thread on the CPU, so files and names may change in between.
What is compared of each recipe:

weights    all tensors of the run's checkpoints, bit for bit, without regard to their names
names      of those tensors; a change is shown and is no difference
figures    all numbers of report.json and of tables such as tasks.csv, exactly; not clock times, nor what the run was
           asked for (`protocol`, `settings`). Names and places may change: the same numbers must be there
episodes   the hashes of the test tasks

Exit code: 0 if all are equal, 1 if any differ, a run failed or none could be compared. A recipe whose data neither
tree finds is skipped. A run takes seconds; the whole takes minutes.
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
"""`python -m kshot.app`, but that what a revision draws outside its own seeds is the same in each process too."""
FINISHED = 0, 1, 3  # exit codes of `kshot run` that come with a report
ABSENT = re.compile(
    r"was not found|kshot data add|pip install|there is no (?!recipe|run file)|no package \S+ is installed"
)
UNMEASURED = re.compile(r"(^|_)(ms|seconds|timing|environment|protocol|settings)$")
"""Keys of a report whose numbers differ between two runs of the same code, or say only what was asked for."""
SHOWN = 5  # differing figures of a recipe
TEXTS = 8  # of a class, in each part of a file of texts

Recipe = dict[str, Any]
Numbers = dict[str, float]
Shorten = Callable[[Any], Any]


def at_most(limit: int) -> Shorten:
    return lambda old: limit if old is None else min(old, limit)


def counted(limit: int) -> Shorten:
    """As `at_most`; a list of numbers to try becomes one of two."""
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
    "train.mode": always("loop"),  # others choose by the clock, or compile
    "evaluate.num_val_tasks": at_most(3),
    "evaluate.num_test_tasks": at_most(4),
    "evaluate.shots": first_two([1, 2]),
    "evaluate.num_shots_tasks": at_most(2),
    "baselines.steps": counted(2),
    "baselines.inner_lrs": first_two([0.01, 0.1]),
    "baselines.num_val_tasks": at_most(2),
    "baselines.num_test_tasks": at_most(4),
}
"""What is set in every recipe, whether it stands there or not."""
WHERE_GIVEN: dict[str, Shorten] = {
    "pretrain.steps": at_most(3),
    "pretrain.batch": at_most(16),
    "reject.outsiders": at_most(5),
    "source.train_ways": at_most(10),
    "model.channels": narrow,
}


def shortened(recipe: Recipe) -> Recipe:
    """A copy of a recipe that runs in seconds.

    Example:
        >>> shortened({"train": {"steps_per_round": 500}, "pretrain": {"steps": 2}})["train"]["steps_per_round"]
        3
    """
    short = json.loads(json.dumps(recipe))
    old_names = "val_tasks" in recipe.get("evaluate", {})  # as recipes had them until counts were called num_*
    for path, shorten in (ALWAYS | WHERE_GIVEN).items():
        *outer, last = path.split(".")
        last = last.removeprefix("num_") if old_names else last
        node = short
        for key in outer:
            node = node.setdefault(key, {}) if path in ALWAYS else node.get(key) or {}
        if path in ALWAYS or last in node:
            node[last] = shorten(node.get(last))
    return short


def few_texts(source: Recipe, folder: Path) -> Recipe:
    """A source of texts with the first few texts of each class, so that an encoder is done with them in seconds.

    Others, and those whose data is absent, as they are.
    """
    path = Path(os.environ.get("KSHOT_DATA", "")) / str(source.get("path"))
    if source.get("kind") != "text" or path.suffix != ".json" or not path.is_file():
        return source
    parts = json.loads(path.read_text())
    kept: dict[str, list[list[str]]] = {}
    for part, pairs in parts.items():
        seen: Counter[str] = Counter()
        kept[part] = []
        for text, label in pairs:
            seen[label] += 1
            if seen[label] <= TEXTS:
                kept[part].append([text, label])
    few = folder / path.name
    few.write_text(json.dumps(kept))
    return source | {"path": str(few)}


@dataclass
class Tree:
    """A tree of the library, and where its runs go."""

    name: str
    root: Path
    work: Path

    def __post_init__(self) -> None:
        self.work.mkdir()
        found = self.python("-c", "import kshot; print(kshot.__file__)")
        place = found.stdout.strip()
        if not place.startswith(f"{self.root}{os.sep}"):
            raise SystemExit(f"{self.name}: kshot is imported from elsewhere: {place or found.stderr}")

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
        own = {"PYTHONPATH": str(self.root), "KSHOT_CACHE": str(self.work / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        environment = os.environ | one_thread | own
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, cwd=self.work, capture_output=True, text=True)

    def recipes(self) -> dict[str, Path]:
        found = {path.stem: path for path in sorted(self.root.glob("kshot/**/recipes/*.yaml"))}
        if not found:
            raise SystemExit(f"{self.name} has no kshot/**/recipes/*.yaml")
        return found


class Outcome(NamedTuple):
    """What became of a run: its folder, its exit code, the last that it said on standard error, its seconds."""

    folder: Path
    code: int
    said: str
    seconds: float

    @property
    def finished(self) -> bool:
        return self.code in FINISHED and (self.folder / "report.json").is_file()

    @property
    def lacks_data(self) -> bool:
        return self.code == 2 and ABSENT.search(self.said) is not None


def run(tree: Tree, name: str) -> Outcome:
    """Run a recipe of a tree, shortened."""
    started = time.monotonic()
    folder = tree.work / name
    texts = tree.work / f"{name}-texts"
    texts.mkdir()
    recipe = shortened(yaml.safe_load(tree.recipes()[name].read_text()))
    recipe["source"] = few_texts(recipe["source"], texts)
    file = tree.work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = tree.python("-c", RUN, "run", str(file), "--out", str(folder))
    said = "\n".join(done.stderr.strip().splitlines()[-5:])
    if "unknown key" in said:
        said += "\nA key that this script sets has another name there: see ALWAYS and WHERE_GIVEN in same_as.py."
    return Outcome(folder, done.returncode, said, time.monotonic() - started)


def tensors(file: Path) -> dict[str, str]:
    """The tensors of a safetensors file: name to a hash of type, shape and bytes."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        kind = f"{entry['dtype']} {entry['shape']} ".encode()
        found[name] = hashlib.sha256(kind + data[begin:end]).hexdigest()
    return found


def weights(folder: Path) -> dict[str, str]:
    """All tensors in a run folder, of models and optimisers: file and name to hash."""
    return {
        f"{file.relative_to(folder)}: {name}": sha256
        for file in sorted(folder.rglob("*.safetensors"))
        for name, sha256 in tensors(file).items()
    }


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of JSON, path to value, without what was not measured."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if inner is None:
        yield path, node
        return
    for key, value in inner:
        if not UNMEASURED.search(str(key)):
            yield from leaves(value, f"{path}.{key}" if path else str(key))


def numbers(folder: Path) -> Numbers:
    """The figures of a run folder: place to value."""
    report = json.loads((folder / "report.json").read_text())
    found = {
        f"report.json {path}": float(leaf) for path, leaf in leaves(report) if isinstance(leaf, bool | int | float)
    }
    for table in sorted(folder.glob("*.csv")):
        with table.open(newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines)):
                for column, cell in row.items():
                    if "episode" not in column and (value := _number(cell)) is not None:
                        found[f"{table.name} row {number} {column}"] = value
    return found


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def episodes(folder: Path) -> list[str]:
    """The hashes of episodes that a report names, wherever they stand in it."""
    found: list[str] = []

    def gather(node: Any, named: bool) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            here = named or "episode" in str(key)
            if isinstance(value, dict | list):
                gather(value, here)
            elif here and isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,}", value):
                found.append(value)

    gather(json.loads((folder / "report.json").read_text()), False)
    return sorted(found)


def differing(before: Numbers, after: Numbers) -> list[str]:
    """What differs between two runs' figures, a line each; none if they are the same, by whatever names.

    Example:
        >>> differing({"mae": 0.5, "steps": 3.0}, {"error": 0.5, "steps": 3.0})
        []
    """
    shared = [place for place in before if place in after and not _equal(before[place], after[place])]
    only_before, only_after = Counter(map(repr, before.values())), Counter(map(repr, after.values()))
    if only_before == only_after:
        return [f"{place}: {before[place]!r} -> {after[place]!r}, which stands elsewhere" for place in shared]
    lines = []
    if shared:
        worst = max(shared, key=lambda place: _relative(before[place], after[place]))
        shown = [worst, *(place for place in shared if place != worst)]
        lines += [f"{place}: {before[place]!r} -> {after[place]!r}" for place in shown]
        lines[0] += f", the largest relative difference of {len(shared)}: {_relative(before[worst], after[worst]):.2g}"
    for mine, other, which in ((before, only_after, "before"), (after, only_before, "after")):
        left = Counter(other)
        for place, value in mine.items():
            if left[repr(value)] > 0:
                left[repr(value)] -= 1
            elif place not in shared:
                lines.append(f"{place}: {value!r}, only {which}")
    return lines


def _equal(one: float, other: float) -> bool:
    return repr(one) == repr(other)


def _relative(one: float, other: float) -> float:
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / (max(abs(one), abs(other)) or 1.0)  # 0.0 and -0.0 differ, by nothing


class Comparison(NamedTuple):
    """How a recipe's two runs compare, in words, and what to say beneath."""

    same: bool
    words: list[str]
    lines: list[str]


def compare(before: Outcome, after: Outcome) -> Comparison:
    """Compare two finished runs."""
    old, new = weights(before.folder), weights(after.folder)
    changed = [name for name in old.keys() & new.keys() if old[name] != new[name]]
    named = old.keys() == new.keys()
    weighed = bool(old) and (old == new if named else sorted(old.values()) == sorted(new.values()))
    figures = numbers(before.folder)
    lines = differing(figures, numbers(after.folder))
    told = [episodes(outcome.folder) for outcome in (before, after)]
    drawn = "equal" if told[0] == told[1] else "differ" if all(told) else "untold"
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    shown = lines[:SHOWN] + more
    if not weighed:
        shown.insert(0, f"tensors: {len(changed)} of the same name differ; there were {len(old)}, now {len(new)}")
    if before.code != after.code:
        shown.append(f"exit code {before.code} -> {after.code}")
    words = [
        "equal" if weighed else "DIFFER" if old else "NONE",
        "equal" if named else "other",
        f"DIFFER ({len(lines)})" if lines else f"equal ({len(figures)})",
        drawn if told[0] else "none",
        f"{before.seconds:.0f} + {after.seconds:.0f} s",
    ]
    return Comparison(weighed and not lines and drawn != "differ" and before.code == after.code, words, shown)


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """A worktree of a revision, gone at the end."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def failure(trees: list[Tree], outcomes: list[Outcome]) -> str:
    """Why a recipe's runs cannot be compared."""
    return "\n".join(
        f"{tree.name}: exit code {outcome.code}: {outcome.said}"
        for tree, outcome in zip(trees, outcomes)
        if not outcome.finished
    )


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def compare_all(trees: list[Tree], only: list[str], jobs: int) -> bool:
    """Run and compare, a line a recipe; whether all that could be compared are the same, and some could."""
    theirs = [tree.recipes() for tree in trees]
    names = only or list(theirs[0] | theirs[1])
    width = max(len(name) for name in names)
    print(f"{'recipe':<{width}}  weights  names  figures       episodes  time")
    good, compared = True, 0
    with ThreadPoolExecutor(jobs) as pool:
        runs = {
            name: [pool.submit(run, tree, name) for tree in trees]
            for name in names
            if all(name in recipes for recipes in theirs)
        }
        for name in names:
            if name not in runs:
                has = [tree.name for tree, recipes in zip(trees, theirs) if name in recipes]
                print(f"{name:<{width}}  FAILED: a recipe {'of ' + has[0] + ' only' if has else 'of neither'}")
                good = False
                continue
            outcomes = [each.result() for each in runs[name]]
            if all(outcome.lacks_data for outcome in outcomes):
                print(f"{name:<{width}}  skipped: {outcomes[1].said}", flush=True)
            elif not all(outcome.finished for outcome in outcomes):
                print(f"{name:<{width}}  FAILED\n{indented(failure(trees, outcomes))}", flush=True)
                good = False
            else:
                found = compare(*outcomes)
                weighed, named, figures, drawn, seconds = found.words
                print(f"{name:<{width}}  {weighed:<7}  {named:<5}  {figures:<12}  {drawn:<8}  {seconds}", flush=True)
                if found.lines:
                    print(indented("\n".join(found.lines)), flush=True)
                good &= found.same
                compared += 1
    verdict = "NOT all equal" if not good else "all equal" if compared else "nothing is known"
    print(f"{compared} of {len(names)} recipes compared: {verdict}")
    return good and compared > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", metavar="REV", help="what to compare the working tree with")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="recipes; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kshot-same-as-") as scratch:
        work = Path(scratch).resolve()
        with checked_out(arguments.revision, work / "tree") as tree:
            trees = [Tree(arguments.revision, tree, work / "before"), Tree(HERE, ROOT, work / "after")]
            same = compare_all(trees, arguments.only, arguments.jobs)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
