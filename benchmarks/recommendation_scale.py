"""Memory and time to open 20 million ratings, train on them, fit the baselines, and evaluate.

    OMP_NUM_THREADS=1 python benchmarks/recommendation_scale.py [--ratings 20000000] [--steps 300] [--folder DIR]

The ratings are synthetic: as many users, films and ratings as in MovieLens 20M, film popularity by Zipf's law, ratings
in half stars from biases and four factors, and a time for each rating. They are written to a CSV file with a row per
rating, sorted by user, and one with a row per film. A separate process opens them, trains and evaluates; memory is the
peak of that process at the end of each stage, libraries included.
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
MIN_RATINGS = 20  # of a user
CHUNK = 2_000  # users generated at once
BOUND = 4_000  # MB


def make(folder: Path, ratings: int) -> None:
    """Write `ratings.csv` and `films.csv`, with numbers of users and films in proportion to the ratings."""
    import polars as pl

    random = np.random.default_rng(0)
    users, films = (max(MIN_RATINGS * 10, round(count * ratings / RATINGS)) for count in (USERS, FILMS))
    sizes = MIN_RATINGS + random.lognormal(3.9, 1.35, users)
    counts = MIN_RATINGS + (sizes - MIN_RATINGS) * (1.02 * ratings / users - MIN_RATINGS) / (sizes - MIN_RATINGS).mean()
    counts = np.minimum(counts, films // 4)
    popular = 1 / np.arange(10, films + 10)  # Zipf's law without its head, so that no film is rated by everybody
    popular = (popular / popular.sum()).cumsum()
    film_factors = np.concatenate([random.normal(0, 0.4, (films, 1)), random.normal(0, 0.35, (films, 4))], 1)
    names = random.permutation(films) + 1
    genres = np.array(["Action", "Comedy", "Crime", "Drama", "Horror", "Romance"])[random.integers(6, size=films)]
    years = random.integers(1930, 2016, films)
    pl.DataFrame({"film": names, "year": years, "genres": genres}).write_csv(folder / "films.csv")
    with (folder / "ratings.csv").open("wb") as file:
        for start in range(0, users, CHUNK):
            num_ratings = counts[start : start + CHUNK].astype(int)
            user = np.repeat(np.arange(len(num_ratings)), 2 * num_ratings + 9)
            film = popular.searchsorted(random.random(len(user)))
            film = np.minimum(film, films - 1)
            pairs, first = np.unique(user * films + film, return_index=True)
            order = first.argsort()  # keep the distinct films of each user that were sampled first
            user, film = np.divmod(pairs[order], films)
            order = user.argsort(kind="stable")
            user, film = user[order], film[order]
            rank = np.arange(len(user)) - np.searchsorted(user, user)
            user, film = user[rank < num_ratings[user]], film[rank < num_ratings[user]]
            taste = random.normal(size=(len(num_ratings), 5)) * np.array([0.4, 1, 1, 1, 1])
            score = 3.5 + taste[user, 0] + film_factors[film, 0] + (taste[user, 1:] * film_factors[film, 1:]).sum(1)
            stars = np.clip(np.round(2 * (score + random.normal(0, 0.7, len(user)))) / 2, 0.5, 5)
            times = (random.integers(8 * 10**8, 14 * 10**8, len(num_ratings))[user]) + random.integers(
                10**7, size=len(user)
            )
            frame = pl.DataFrame({"user": start + user + 1, "film": names[film], "rating": stars, "time": times})
            frame.sort("user", "film").write_csv(file, include_header=start == 0)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print the time of a stage and the peak memory so far."""
    started = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"| {name} | {time.perf_counter() - started:.1f} | {peak:,.0f} |", flush=True)


def measure(folder: Path, steps: int, num_tasks: int) -> None:
    """Run all stages, and print a row for each."""
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
    evaluations = {}
    with stage(f"evaluate it, {num_tasks} tasks of test"):
        evaluations["alpaca"] = kshot.evaluate(learner, source, num_tasks=num_tasks)
    with stage("the training log"):
        log = recommenders.Ratings(*source.training_log(), num_items=len(source.preprocessor.items))
    for kind, grid in recommenders.GRIDS.items():
        with stage(
            f"{kind.replace('_', ' ')}: {len(grid)} fitted and scored on {num_tasks} tasks of val, the best on test"
        ):
            candidates = [recommenders.recommender(kind, log, source.objective, **options) for options in grid]
            val = [kshot.evaluate(each, source, split="val", num_tasks=num_tasks, audit=False) for each in candidates]
            best = candidates[int(np.argmin([each.metrics["mae"].mean for each in val]))]
            evaluations[kind] = kshot.evaluate(best, source, num_tasks=num_tasks, audit=False)
    print()
    for name, evaluation in evaluations.items():
        print(f"{name}: mae {evaluation.metrics['mae']}, ndcg_5 {evaluation.metrics['ndcg_5']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=RATINGS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="folder of the ratings; reused if they exist")
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
