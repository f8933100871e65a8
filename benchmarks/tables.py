"""How long large tables take to open and to give their first stack of tasks, and how much memory that needs.

    python benchmarks/tables.py [--rows 5000000] [--groups 100000]
    python benchmarks/tables.py --ratings 20000000 [--csv]

The file is made in a temporary folder, its rows in random order: a group, five numbers, a word, a date, a boolean and a
target each; or a user, an item, a rating and a time. Opening it is measured in a process of its own, from before
`import kshot`; memory is that process's peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = 'kshot.sources.table(sys.argv[1], group="group", target="target", shots=5, queries=5, on_too_few="drop")'
RATINGS = 'kshot.sources.ratings(sys.argv[1], time="time", shots=5, queries=5)'
MEASURED = """
import json, resource, sys, time
started = time.perf_counter()
import kshot
source = SOURCE
opened = time.perf_counter()
source.stack("train", range(16))
first = time.perf_counter()
for start in range(100):
    source.stack("train", range(16 * start, 16 * start + 16))
more = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = {"open": opened - started, "first": first - started, "more": more - first}
print(json.dumps(seconds | {"peak": peak * 1024}))
"""


def make_table(path: Path, rows: int, groups: int) -> None:
    """Write a table of groups."""
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


def make_ratings(path: Path, rows: int) -> None:
    """Write ratings, 100 a user, of 20,011 items."""
    import numpy as np
    import polars as pl

    random, number = np.random.default_rng(0), np.random.default_rng(1).permutation(rows)
    columns = {"user": (number // 100).astype(np.int32), "item": (number * 7919 % 20_011).astype(np.int32)}
    columns |= {"rating": random.integers(1, 6, rows) / 1.0, "time": random.integers(10**9, 2 * 10**9, rows)}
    frame = pl.DataFrame(columns)
    (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--ratings", type=int, help="make so many ratings, in place of the table")
    parser.add_argument("--csv", action="store_true", help="write the ratings as CSV")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("table.csv" if options.ratings and options.csv else "table.parquet")
        if options.ratings:
            make_ratings(path, options.ratings)
        else:
            make_table(path, options.rows, options.groups)
        print(f"{options.ratings or options.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB on disk")
        code = MEASURED.replace("SOURCE", RATINGS if options.ratings else TABLE)
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    bounds = ("none", "4,000 MB") if options.ratings else ("10 s", "1,500 MB")
    print(f"open {found['open']:.2f} s, with the first stack {found['first']:.2f} s (bound {bounds[0]})")
    print(f"peak memory {found['peak'] / 1e6:,.0f} MB (bound {bounds[1]})")
    print(f"then {1600 / found['more']:,.0f} tasks/s of 5 + 5 rows")


if __name__ == "__main__":
    main()
