"""`kshot recommend`: items for a new user, the reasons, and the items to ask the user about next.

It works for any learner: reasons come from leaving out each rating, questions from the effect of each possible answer.

Shape legend: n known ratings, I items, A items to ask about, L possible answers to each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.app.screen import Screen
from kshot.app.trained import TrainedRun, load
from kshot.files import check_writable, csv_text, write_text
from kshot.sources.ratings.preprocessor import RatingPreprocessor
from kshot.tasks.preprocessor import Support
from kshot.types import Batch, Tree, tree_map

NUM_ASKABLE = 100  # items that a new user may be asked about: the most rated ones, which they are likely to know
NUM_JUDGED = 500  # items whose predicted ratings a question should make more certain
CHUNK = 50  # answers evaluated at once
PERSONAL = 1.0
"""Weight of what the user's ratings change in the order of recommendations."""


class Reason(NamedTuple):
    """A known rating and its effect on an item's expected rating, in units of ratings."""

    item: str
    rating: float
    effect: float


class Recommendation(NamedTuple):
    """A recommended item, its expected rating, and the known ratings with the largest effects on it."""

    item: str
    title: str
    expected: float
    reasons: list[Reason]


class Question(NamedTuple):
    """An item to ask about and the expected reduction of variance by the answer, averaged over items."""

    item: str
    title: str
    gain: float


class User:
    r"""A user with some known ratings, seen by a trained run.

    Args:
        run: run on tasks of ratings; see `kshot.load`.
        ratings: file with a row for each rating, as for `kshot adapt`, or a mapping of items, by name or title, to
            ratings; None for a user without known ratings.

    Raises:
        ValueError: a run on other tasks, or invalid ratings.
    """

    def __init__(self, run: TrainedRun, ratings: Path | Mapping[str, float] | None = None) -> None:
        if not isinstance(run.preprocessor, RatingPreprocessor):
            raise ValueError(f"run {run.spec.name!r} was not trained on ratings and cannot recommend")
        self.learner, self.preprocessor = run.learner.cpu().eval(), run.preprocessor
        support: Support = (
            self.preprocessor.support(ratings)
            if isinstance(ratings, Path)
            else self.preprocessor.support_of(ratings or {})
        )
        features = support.inputs.get("user_features")
        self.catalogue = self.preprocessor.all_items(features[:1] if features is not None and len(features) else None)
        assert isinstance(support.targets, Tensor)
        count = len(support.targets)
        padding = tree_map(lambda leaf: torch.zeros_like(leaf[:1]), self.catalogue)  # the only row without ratings
        inputs = {name: torch.cat([support.inputs.get(name, leaf[:0]), leaf]) for name, leaf in padding.items()}
        target = self.preprocessor.batch_targets(np.array([self.preprocessor.low]))
        weight = torch.cat([torch.ones(count), torch.zeros(1)])
        self.support = Batch(inputs, torch.cat([support.targets, target]), weight)
        self.rated = [int(number) for number in support.inputs["item"].tolist()]
        values = support.targets.argmax(1) if self.preprocessor.levels else support.targets[:, 0]
        self.scores = [float(score) for score in self.preprocessor.scores(values.numpy())]
        with torch.no_grad():
            self.state = self.learner.adapt(self.support)

    def expected(self, numbers: Tensor | None = None, state: Tree | None = None) -> Tensor:
        """The expected ratings (n,) of items by their numbers, which start at 1; of all items by default."""
        inputs = self.catalogue if numbers is None else tree_map(lambda leaf: leaf[numbers - 1], self.catalogue)
        with torch.no_grad():
            prediction = self.learner.predict(self.state if state is None else state, inputs)
        return self.preprocessor.expected(prediction)

    def ranking(self, personal: float = PERSONAL) -> Tensor:
        r"""The scores (I,) by which all items are ranked: $\hat y + \rho \, (\hat y - \hat y_0)$.

        $\hat y$ is the expected rating, or the log-odds of a click, and $\hat y_0$ that of a user of whom no rating is
        known. Expected ratings alone ($\rho = 0$) are mostly the items' means, so that all users are shown the same.
        """
        chance = self.preprocessor.rating is None
        expected = _log_odds(self.expected()) if chance else self.expected()
        if not any(self.rated):
            return expected
        with torch.no_grad():
            nobody = self.learner.adapt(self.support._replace(weight=torch.zeros_like(self.support.weight)))
        anybody = self.expected(state=nobody)
        return expected + personal * (expected - (_log_odds(anybody) if chance else anybody))

    def recommend(self, top: int = 10, reasons: int = 3, personal: float = PERSONAL) -> list[Recommendation]:
        """The first items of the `ranking`, without those already rated.

        Each has as reasons the known ratings with the largest effects: the expected rating minus that without them.
        """
        expected, scores = self.expected(), self.ranking(personal)
        scores[[number - 1 for number in self.rated if number]] = -torch.inf
        best = scores.topk(min(top, int((scores > -torch.inf).sum()))).indices + 1
        effects = self._effects(best)
        recommendations = []
        for column, number in enumerate(best.tolist()):
            effect = effects[:, column]
            order = effect.abs().argsort(descending=True)[:reasons].tolist()
            why = [Reason(self.title(self.rated[row]), self.scores[row], float(effect[row])) for row in order]
            item = self.preprocessor.items[number - 1]
            recommendations.append(Recommendation(item, self.title(number), float(expected[number - 1]), why))
        return recommendations

    def questions(self, count: int = 1) -> list[Question]:
        r"""The items whose rating would be the most informative about those of others, best first.

        $$ \text{gain}(a) = \frac1I \sum_x \mathrm{Var}_{y \sim p(y_a)} \bigl( E[y_x \mid y_a = y] \bigr) $$

        which is the expected reduction of the variance of the other ratings by knowing $y_a$ (law of total variance).
        Only items with many ratings are asked about.
        """
        order = np.argsort(-np.array(self.preprocessor.counts), kind="stable") + 1
        candidates = torch.from_numpy(order[~np.isin(order, self.rated)][:NUM_ASKABLE].copy())
        judged = tree_map(lambda leaf: leaf[torch.from_numpy(order[:NUM_JUDGED].copy()) - 1], self.catalogue)
        inputs = tree_map(lambda leaf: leaf[candidates - 1], self.catalogue)
        with torch.no_grad():
            chance_AL, answers_AL = self._answers(_mean(self.learner.predict(self.state, inputs)))

            def after(row: Tree, answer: Tensor) -> Tensor:
                """The prediction for the judged items after an answer."""
                rows = tree_map(lambda known, new: torch.cat([known, new[None]]), self.support.inputs, row)
                targets = torch.cat([self.support.targets, answer[None]])
                weight = torch.cat([self.support.weight, torch.ones(1)])
                return _mean(self.learner.predict(self.learner.adapt(Batch(rows, targets, weight)), judged))

            num_answers = answers_AL.shape[1]
            rows = tree_map(lambda leaf: leaf.repeat_interleave(num_answers, 0), inputs)
            predictions = torch.func.vmap(after, chunk_size=CHUNK)(rows, answers_AL.flatten(0, 1))
        expected = self.preprocessor.expected(predictions.flatten(0, 1)).reshape(len(candidates), num_answers, -1)
        mean = (chance_AL[..., None] * expected).sum(1, keepdim=True)
        gain = (chance_AL[..., None] * (expected - mean).square()).sum(1).mean(1)
        best = gain.argsort(descending=True)[:count]
        return [
            Question(self.preprocessor.items[number - 1], self.title(number), value)
            for number, value in zip(candidates[best].tolist(), gain[best].tolist())
        ]

    def title(self, number: int) -> str:
        """The title of an item by its number; items that are not in the training data have none."""
        if not number:
            return "an item that is not in the training data"
        return (self.preprocessor.titles or self.preprocessor.items)[number - 1]

    def _effects(self, numbers: Tensor) -> Tensor:
        """The effect of each known rating on the expected ratings of items, (n, items)."""
        expected = self.expected(numbers)
        effects = expected.new_zeros(len(self.rated), len(numbers))
        for row in range(len(effects)):
            weight = self.support.weight.clone()
            weight[row] = 0
            with torch.no_grad():
                state = self.learner.adapt(self.support._replace(weight=weight))
            effects[row] = expected - self.expected(numbers, state)
        return effects

    def _answers(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (A, L) of answers and their targets (A, L, …): levels, or one deviation below and above."""
        if self.preprocessor.levels:
            levels = torch.eye(prediction.shape[1])
            return prediction.double().softmax(-1), levels.expand(len(prediction), -1, -1)
        ends = torch.stack([prediction - 1, prediction + 1], 1)  # targets are standardised by the training ratings
        return torch.full((len(prediction), 2), 0.5, dtype=torch.float64), ends


def _mean(prediction: Tree) -> Tensor:
    """A prediction without its standard deviation, if it has one."""
    return prediction["mean"] if isinstance(prediction, dict) else prediction


def _log_odds(chance: Tensor) -> Tensor:
    return chance.clamp(1e-9, 1 - 1e-9).logit()


def recommend_run(
    run_dir: Path, ratings: Path | None, *, top: int, ask: int, as_json: bool, personal: float = PERSONAL
) -> None:
    """Print recommendations for a user, and items to ask about next."""
    user = User(load(run_dir), ratings)
    best, questions = user.recommend(top, personal=personal), user.questions(ask) if ask else []
    if as_json:
        recommended = [each._asdict() | {"reasons": [reason._asdict() for reason in each.reasons]} for each in best]
        print(json.dumps({"recommended": recommended, "ask_next": [each._asdict() for each in questions]}, indent=1))
        return

    show(Screen(), best)
    if questions:
        print("Ask next about: " + "; ".join(each.title for each in questions))


def show(console: Any, recommendations: list[Recommendation]) -> None:
    """Print recommendations as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "item", "expected", "largest effects", box=None)
    for rank, each in enumerate(recommendations, 1):
        why = "; ".join(f"{reason.item} ({reason.rating:g}): {reason.effect:+.2f}" for reason in each.reasons)
        table.add_row(str(rank), escape(each.title), f"{each.expected:.2f}", escape(why))
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
    """Ask a user about items until `count` are rated, each selected by the previous answers, and then recommend.

    Args:
        answer: function from a question to the user's answer, which is empty for an unknown item.
        out: CSV file for the ratings.

    Raises:
        ValueError: a run on clicks, which cannot be asked for, or `out` exists.
    """
    if out is not None and out.exists():
        raise ValueError(f"{out} exists and is never overwritten; choose another --out")
    if out is not None:
        check_writable(out)
    run = load(run_dir)
    user = User(run, ratings)
    preprocessor = user.preprocessor
    if preprocessor.rating is None:
        raise ValueError("an interview asks for ratings, and this run was trained on clicks")
    known = {preprocessor.items[number - 1]: score for number, score in zip(user.rated, user.scores) if number}
    unknown: set[str] = set()
    num_answered = 0
    while num_answered < count:
        question = next((each for each in user.questions(len(unknown) + 1) if each.item not in unknown), None)
        if question is None:
            break
        prompt = f"{question.title}, {preprocessor.low:g} to {preprocessor.high:g}, or nothing if unknown"
        while text := answer(prompt).strip():
            try:
                fault = preprocessor.error_of(float(text))
            except ValueError:
                fault = "is not a number"
            if not fault:
                break
            console.print(f"{text!r} {fault}", markup=False)
        if not text:
            unknown.add(question.item)
            continue
        num_answered += 1
        known[question.item] = float(text)
        user = User(run, known)
    show(console, user.recommend(top))
    if out is not None:
        write_text(out, csv_text([[preprocessor.item, preprocessor.rating], *known.items()]))
