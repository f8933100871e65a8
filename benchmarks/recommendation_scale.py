"""What 20 million ratings take, in memory and in seconds: to open, to train on, to fit the baselines of, to evaluate.

    OMP_NUM_THREADS=1 python benchmarks/recommendation_scale.py [--ratings 20000000] [--steps 300] [--folder DIR]

The log is made: as many users, films and ratings as MovieLens 20M has, films by Zipf's law, ratings of half stars from
offsets and four factors, a time each; a CSV with a row a rating, users end to end, and one with a row a film. It is
read, trained on and evaluated in a process of its own; memory is that process's peak, the libraries included, by the
end of each stage.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

USERS, FILMS, RATINGS = 138_493, 27_278, 20_000_263
LEAST = 20  # ratings of a user
AT_ONCE = 2_000  # users that are made at once
BOUND = 4_000  # MB


def make(folder: Path, ratings: int) -> None:
    """Write `ratings.csv` and `films.csv`; users and films in proportion to the ratings."""
    import polars as pl

    random = np.random.default_rng(0)
    users, films = (max(LEAST * 10, round(of * ratings / RATINGS)) for of in (USERS, FILMS))
    asked = LEAST + random.lognormal(3.9, 1.35, users)
    counts = LEAST + (asked - LEAST) * (1.02 * ratings / users - LEAST) / (asked - LEAST).mean()
    counts = np.minimum(counts, films // 4)
    popular = 1 / np.arange(10, films + 10)  # Zipf's law, its head cut so that no film is everybody's
    popular = (popular / popular.sum()).cumsum()
    of_film = np.concatenate([random.normal(0, 0.4, (films, 1)), random.normal(0, 0.35, (films, 4))], 1)
    names = random.permutation(films) + 1
    genres = np.array(["Action", "Comedy", "Crime", "Drama", "Horror", "Romance"])[random.integers(6, size=films)]
    years = random.integers(1930, 2016, films)
    pl.DataFrame({"film": names, "year": years, "genres": genres}).write_csv(folder / "films.csv")
    with (folder / "ratings.csv").open("wb") as file:
        for start in range(0, users, AT_ONCE):
            wanted = counts[start : start + AT_ONCE].astype(int)
            user = np.repeat(np.arange(len(wanted)), 2 * wanted + 9)
            film = popular.searchsorted(random.random(len(user)))
            film = np.minimum(film, films - 1)
            pairs, first = np.unique(user * films + film, return_index=True)
            order = first.argsort()  # of each user's different films, those that were drawn first
            user, film = np.divmod(pairs[order], films)
            order = user.argsort(kind="stable")
            user, film = user[order], film[order]
            rank = np.arange(len(user)) - np.searchsorted(user, user)
            user, film = user[rank < wanted[user]], film[rank < wanted[user]]
            taste = random.normal(size=(len(wanted), 5)) * np.array([0.4, 1, 1, 1, 1])
            score = 3.5 + taste[user, 0] + of_film[film, 0] + (taste[user, 1:] * of_film[film, 1:]).sum(1)
            stars = np.clip(np.round(2 * (score + random.normal(0, 0.7, len(user)))) / 2, 0.5, 5)
            times = (random.integers(8 * 10**8, 14 * 10**8, len(wanted))[user]) + random.integers(10**7, size=len(user))
            frame = pl.DataFrame({"user": start + user + 1, "film": names[film], "rating": stars, "time": times})
            frame.sort("user", "film").write_csv(file, include_header=start == 0)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print what a stage took, and the peak so far."""
    started = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"| {name} | {time.perf_counter() - started:.1f} | {peak:,.0f} |", flush=True)


def measure(folder: Path, steps: int, tasks: int) -> None:
    """Go through the stages of a run, and print a row each."""
    with stage("import"):
        import kshot
        from kshot.learners.ratings import recommenders
    with stage("open, first stack"):
        source = kshot.sources.ratings(
            folder / "ratings.csv", item="film", items=folder / "films.csv", time="time", kinds={"genres": "set"},
            target_type="ordinal", like=4.0, item_mean_feature=True, start="first", shots=[1, 20],
            queries=20, train_queries=48,
            user_sampling_power=0.5, train_order="random", on_too_few="shrink",
        )  # fmt: skip
        inputs = source.stack("train", range(64)).support.inputs
    width = inputs["item_features"].shape[-1] + inputs["item_mean"].shape[-1]
    model = kshot.models.factorisation(source.preprocessor.counts, width, None, factors=8)
    learner = kshot.learners.alpaca(model, features=model.width, item_penalty=100.0, objective=source.objective)
    with stage(f"train `alpaca`, {steps} steps of 64 tasks"):
        kshot.fit(learner, source, steps=steps, tasks_per_step=64, outer_lr=1e-3, mode="vmap")
    found = {}
    with stage(f"evaluate it, {tasks} tasks of test"):
        found["alpaca"] = kshot.evaluate(learner, source, tasks=tasks)
    with stage("the training log"):
        log = recommenders.Ratings(*source.training_log(), num_items=len(source.preprocessor.items))
    for kind, grid in recommenders.GRIDS.items():
        with stage(f"{kind.replace('_', ' ')}: {len(grid)} fitted and tried on {tasks} tasks of val, one on test"):
            tried = [recommenders.recommender(kind, log, source.objective, **options) for options in grid]
            val = [kshot.evaluate(each, source, split="val", tasks=tasks, audit=False) for each in tried]
            best = tried[int(np.argmin([each.metrics["mae"].mean for each in val]))]
            found[kind] = kshot.evaluate(best, source, tasks=tasks, audit=False)
    print()
    for name, each in found.items():
        print(f"{name}: mae {each.metrics['mae']}, ndcg_5 {each.metrics['ndcg_5']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=RATINGS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the log is kept, and taken from if it is there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.folder, options.steps, options.tasks)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "ratings.csv").exists():
            make(folder, options.ratings)
        with (folder / "ratings.csv").open("rb") as file:
            rows = sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 24), b"")) - 1
        size = (folder / "ratings.csv").stat().st_size
        print(
            f"{rows:,} ratings, {size / 1e6:.0f} MB on disk\n\n| stage | s | peak MB |\n| --- | --- | --- |", flush=True
        )
        sizes = ["--steps", str(options.steps), "--tasks", str(options.tasks)]
        subprocess.run([sys.executable, __file__, "--measure", "--folder", str(folder), *sizes], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
        print(f"\npeak {peak:,.0f} MB (bound {BOUND:,} MB)")


if __name__ == "__main__":
    main()
