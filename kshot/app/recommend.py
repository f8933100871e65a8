"""`kshot recommend`: what a new user is likely to like, why, and what to ask them next.

All of it works with any learner: why an item is recommended is told by leaving each rating out, and what to ask by what
each answer would change.

Shape legend: n ratings given, I items, A items that might be asked about, L answers each might get.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.app.trained import TrainedRun, load
from kshot.sources.ratings.preprocessor import RatingPreprocessor
from kshot.tasks.preprocessor import Support
from kshot.types import Batch, Tree, tree_map

KNOWN_BY_MANY = 100  # items that a new user may be asked about: those with the most ratings, which they may know
JUDGED_BY = 500  # items whose ratings a question is to tell
MANY = 50  # answers that are tried at once


class Reason(NamedTuple):
    """A rating that was given, and by how much it raised what is expected of an item, in ratings."""

    item: str
    rating: float
    effect: float


class Recommendation(NamedTuple):
    """An item that the user has not rated, what they are expected to give it, and what moved that most."""

    item: str
    title: str
    expected: float
    reasons: list[Reason]


class Question(NamedTuple):
    """An item to ask about, and the variance that the answer is expected to take from an item's rating, in squares."""

    item: str
    title: str
    gain: float


class User:
    r"""A user, as a run knows them by a few ratings.

    Args:
        run: of a source of ratings; see `kshot.load`.
        ratings: a file with a row a rating, as `kshot adapt` takes it; or items, by name or title, with ratings. None
            is a user of whom nothing is known.

    Raises:
        ValueError: a run of something else, or what is wrong with the ratings.
    """

    def __init__(self, run: TrainedRun, ratings: Path | Mapping[str, float] | None = None) -> None:
        if not isinstance(run.preprocessor, RatingPreprocessor):
            raise ValueError(f"run {run.spec.name!r} is not of ratings: it recommends nothing")
        self.learner, self.preprocessor = run.learner.cpu().eval(), run.preprocessor
        support: Support = (
            self.preprocessor.support(ratings)
            if isinstance(ratings, Path)
            else self.preprocessor.support_of(ratings or {})
        )
        of_user = support.inputs.get("user_features")
        self.whole = self.preprocessor.all_items(of_user[:1] if of_user is not None and len(of_user) else None)
        assert isinstance(support.targets, Tensor)
        count = len(support.targets)
        empty = tree_map(lambda leaf: torch.zeros_like(leaf[:1]), self.whole)
        inputs = {name: torch.cat([support.inputs.get(name, leaf[:0]), leaf]) for name, leaf in empty.items()}
        nothing = self.preprocessor.batch_targets(np.array([self.preprocessor.low]))
        weight = torch.cat([torch.ones(count), torch.zeros(1)])  # a row that counts for nothing: there may be no other
        self.support = Batch(inputs, torch.cat([support.targets, nothing]), weight)
        self.given = [int(number) for number in support.inputs["item"].tolist()]
        self.scores = self._scores(support.targets)
        with torch.no_grad():
            self.state = self.learner.adapt(self.support)

    def expected(self, numbers: Tensor | None = None, state: Tree | None = None) -> Tensor:
        """The ratings (n,) to expect of items, by their numbers from 1; of all by default."""
        inputs = self.whole if numbers is None else tree_map(lambda leaf: leaf[numbers - 1], self.whole)
        with torch.no_grad():
            prediction = self.learner.predict(self.state if state is None else state, inputs)
        return self.preprocessor.expected(prediction)

    def recommend(self, top: int = 10, reasons: int = 3) -> list[Recommendation]:
        """The items with the highest ratings to expect, those given left out.

        Args:
            top: how many.
            reasons: how many of the ratings given are told with each, those that moved it most: by how much the
                expected rating is above what it would be without that one rating.
        """
        scores = self.expected()
        scores[[number - 1 for number in self.given if number]] = -torch.inf
        best = scores.topk(min(top, int((scores > -torch.inf).sum()))).indices + 1
        effects = self._effects(best)
        found = []
        for place, number in enumerate(best.tolist()):
            moved = effects[:, place]
            order = moved.abs().argsort(descending=True)[:reasons].tolist()
            why = [Reason(self.called(self.given[row]), self.scores[row], float(moved[row])) for row in order]
            item = self.preprocessor.items[number - 1]
            found.append(Recommendation(item, self.called(number), float(scores[number - 1]), why))
        return found

    def questions(self, count: int = 1) -> list[Question]:
        r"""What to ask next: the items whose rating would tell most of others', the best first.

        $$ \text{gain}(a) = \frac1I \sum_x \mathrm{Var}_{y \sim p(y_a)} \bigl( E[y_x \mid y_a = y] \bigr) $$

        which is the variance that knowing $y_a$ is expected to take from the others (law of total variance). Items are
        asked about that many have rated.
        """
        order = np.argsort(-np.array(self.preprocessor.counts), kind="stable") + 1
        asked = torch.from_numpy(order[~np.isin(order, self.given)][:KNOWN_BY_MANY].copy())
        judged = tree_map(lambda leaf: leaf[torch.from_numpy(order[:JUDGED_BY].copy()) - 1], self.whole)
        candidates = tree_map(lambda leaf: leaf[asked - 1], self.whole)
        with torch.no_grad():
            chance_AL, answers_AL = self._answers(_plain(self.learner.predict(self.state, candidates)))

            def after(row: Tree, answer: Tensor) -> Tensor:
                """What is predicted of the judged, were that row answered so."""
                inputs = tree_map(lambda given, one: torch.cat([given, one[None]]), self.support.inputs, row)
                targets = torch.cat([self.support.targets, answer[None]])
                weight = torch.cat([self.support.weight, torch.ones(1)])
                return _plain(self.learner.predict(self.learner.adapt(Batch(inputs, targets, weight)), judged))

            options = answers_AL.shape[1]
            rows = tree_map(lambda leaf: leaf.repeat_interleave(options, 0), candidates)
            said = torch.func.vmap(after, chunk_size=MANY)(rows, answers_AL.flatten(0, 1))
        said = self.preprocessor.expected(said.flatten(0, 1)).reshape(len(asked), options, -1)
        mean = (chance_AL[..., None] * said).sum(1, keepdim=True)
        gain = (chance_AL[..., None] * (said - mean).square()).sum(1).mean(1)
        best = gain.argsort(descending=True)[:count].tolist()
        numbers = asked.tolist()
        return [
            Question(self.preprocessor.items[numbers[place] - 1], self.called(numbers[place]), float(gain[place]))
            for place in best
        ]

    def called(self, number: int) -> str:
        """What a person calls an item, by its number; those not of training have none."""
        if not number:
            return "an item not of training"
        return (self.preprocessor.titles or self.preprocessor.items)[number - 1]

    def _effects(self, numbers: Tensor) -> Tensor:
        """By how much each rating given (n,) raised what is expected of items, (n, items)."""
        whole = self.expected(numbers)
        rows = []
        for row in range(len(self.given)):
            weight = self.support.weight.clone()
            weight[row] = 0
            with torch.no_grad():
                state = self.learner.adapt(self.support._replace(weight=weight))
            rows.append(whole - self.expected(numbers, state))
        return torch.stack(rows) if rows else whole.new_zeros(0, len(numbers))

    def _answers(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The chances (A, L) of answers and those as targets (A, L, …): levels, or a deviation below and above."""
        if self.preprocessor.levels:
            every = torch.eye(prediction.shape[1])
            return prediction.double().softmax(-1), every.expand(len(prediction), -1, -1)
        ends = torch.stack([prediction - 1, prediction + 1], 1)  # targets are in deviations of the training ratings
        return torch.full((len(prediction), 2), 0.5, dtype=torch.float64), ends

    def _scores(self, targets: Tensor) -> list[float]:
        kept = targets.argmax(1) if self.preprocessor.levels else targets[:, 0]
        return [float(score) for score in self.preprocessor.scores(kept.numpy())]


def _plain(prediction: Tree) -> Tensor:
    """A prediction without its spread, if it has one."""
    return prediction["mean"] if isinstance(prediction, dict) else prediction


def recommend_run(run_dir: Path, ratings: Path | None, *, top: int, ask: int, as_json: bool) -> None:
    """Print what to recommend to a user, and what to ask them next."""
    user = User(load(run_dir), ratings)
    best, questions = user.recommend(top), user.questions(ask) if ask else []
    if as_json:
        told = {"recommended": [_json(each) for each in best], "ask_next": [each._asdict() for each in questions]}
        print(json.dumps(told, indent=1))
        return
    from rich.console import Console

    show(Console(), best)
    if questions:
        print("Ask next about: " + "; ".join(each.title for each in questions))


def show(console: Any, best: list[Recommendation]) -> None:
    """Recommendations as a table."""
    from rich.table import Table

    table = Table("", "item", "expected", "moved most by", box=None)
    for place, each in enumerate(best, 1):
        why = "; ".join(f"{reason.item} ({reason.rating:g}): {reason.effect:+.2f}" for reason in each.reasons)
        table.add_row(str(place), each.title, f"{each.expected:.2f}", why)
    console.print(table)


def interview(
    run_dir: Path,
    ratings: Path | None,
    *,
    count: int,
    top: int,
    out: Path | None,
    answer: Callable[[str], str],
    console: Any,
) -> None:
    """Ask a user about one item after another, each chosen by the answers so far; then recommend.

    Args:
        run_dir: of the run.
        ratings: a file of ratings to begin with.
        count: questions that are to be answered.
        top: items to recommend.
        out: file for the ratings, CSV.
        answer: the question in, what the user said out; nothing for an item that they do not know.
        console: where recommendations are printed.

    Raises:
        ValueError: clicks, which nobody is asked for; users with features, of which nothing is asked.
    """
    if out is not None and out.exists():
        raise ValueError(f"{out} exists and is never written over; choose another --out")
    run = load(run_dir)
    user = User(run, ratings)
    preprocessor = user.preprocessor
    if preprocessor.rating is None:
        raise ValueError("an interview asks for ratings, and this run knows clicks")
    given = {preprocessor.items[number - 1]: score for number, score in zip(user.given, user.scores) if number}
    unknown: set[str] = set()
    answered = 0
    while answered < count:
        open_questions = [each for each in user.questions(len(unknown) + 1) if each.item not in unknown]
        if not open_questions:
            break
        question = open_questions[0]
        while True:
            said = answer(
                f"{question.title}, {preprocessor.low:g} to {preprocessor.high:g}, or nothing if unknown"
            ).strip()
            try:
                fault = preprocessor.error_of(float(said)) if said else ""
            except ValueError:
                fault = "is no number"
            if not fault:
                break
            console.print(f"{said!r} {fault}")
        if not said:
            unknown.add(question.item)
            continue
        answered += 1
        given[question.item] = float(said)
        user = User(run, given)
    show(console, user.recommend(top))
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([preprocessor.item, preprocessor.rating])
            writer.writerows(given.items())


def _json(each: Recommendation) -> dict[str, Any]:
    return each._asdict() | {"reasons": [reason._asdict() for reason in each.reasons]}
