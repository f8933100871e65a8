"""Time and memory to open large tables and to sample their first stack of tasks.

    python benchmarks/tables.py [--rows 5000000] [--groups 100000]
    python benchmarks/tables.py --ratings 20000000 [--csv]

The file is created in a temporary folder, with rows in random order. Each row has a group, five numbers, a word, a
date, a boolean and a target; or a user, an item, a rating and a time. Opening is measured in a separate process that
includes `import kshot`; memory is the peak of that process.
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
    """Write a table with groups."""
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
    """Write ratings of 20,011 items, 100 per user."""
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
    parser.add_argument("--ratings", type=int, help="create this number of ratings instead of the table")
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
    measured = json.loads(done.stdout)
    bounds = ("none", "4,000 MB") if options.ratings else ("10 s", "1,500 MB")
    print(f"open {measured['open']:.2f} s, with the first stack {measured['first']:.2f} s (bound {bounds[0]})")
    print(f"peak memory {measured['peak'] / 1e6:,.0f} MB (bound {bounds[1]})")
    print(f"then {1600 / measured['more']:,.0f} tasks/s of 5 + 5 rows")


if __name__ == "__main__":
    main()
