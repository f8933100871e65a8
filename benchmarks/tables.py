"""How long a large table takes to open and to give its first stack of tasks, and how much memory that needs.

    python benchmarks/tables.py [--rows 5000000] [--groups 100000]

The file is made in a temporary folder: a group, five numbers, a word, a date, a boolean and a target a row, in random
order. Opening it is measured in a process of its own, from before `import kshot`; memory is that process's peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURED = """
import json, resource, sys, time
started = time.perf_counter()
import kshot
imported = time.perf_counter()
source = kshot.tasks.table(sys.argv[1], group="group", target="target", shots=5, queries=5, small="drop")
opened = time.perf_counter()
stack = source.stack("train", range(16))
first = time.perf_counter()
for start in range(100):
    source.stack("train", range(16 * start, 16 * start + 16))
more = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "import": imported - started, "open": opened - imported, "first stack": first - opened, "total": first - started,
    "tasks per second": 1600 / (more - first), "features": stack.support.inputs.shape[-1], "peak MB": peak / 1024,
    "groups": sum(map(len, source.group_names.values())),
}))
"""


def make(path: Path, rows: int, groups: int) -> None:
    """Write the table."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    group = random.integers(groups, size=rows)
    numbers = {f"x{i}": random.normal(size=rows) for i in range(5)}
    frame = pl.DataFrame({"group": group, **numbers})
    frame = frame.with_columns(
        ("store " + pl.col("group").cast(pl.String)).alias("group"),
        pl.Series("kind", np.array(["bread", "milk", "tea", "salt"])[random.integers(4, size=rows)]),
        pl.Series("day", random.integers(0, 3650, size=rows).astype("int32")).cast(pl.Date),
        pl.Series("sale", random.random(rows) < 0.2),
        pl.Series("target", numbers["x0"] + random.normal(size=groups)[group]),
    )
    frame.write_parquet(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--groups", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        make(path, options.rows, options.groups)
        print(f"{options.rows:,} rows of {options.groups:,} groups, {path.stat().st_size / 2**20:.0f} MB on disk")
        done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    for name in ("import", "open", "first stack", "total"):
        print(f"{name:<12} {found[name]:7.2f} s")
    print(f"peak memory  {found['peak MB']:7.0f} MB")
    print(f"afterwards   {found['tasks per second']:7.0f} tasks/s of 5 + 5 rows, {found['features']} features")
    print(f"{found['groups']:,} groups; bounds: total 10 s, peak 1536 MB")


if __name__ == "__main__":
    main()
