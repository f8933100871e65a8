"""The cost to reach a target by the order in which plans are tried, replayed from recorded trials.

    python benchmarks/target_cost.py [--trials runs/experience/experience.sqlite] [--within 0.02] [--repeats 200]

The target on a data set is the least validation error of all plans that were tried on it, times 1 + `--within`. A
replay gives the plans time as `kshot auto` does, by successive halving, until one meets the target; its cost is the sum
of the recorded seconds until then, or of all that was given, if none of the plans that started meets it.

auto: the order of experience without the data set and others of the same data.
cold: the order of the list of plans, as without any experience.
random: the mean over random orders.
one: the first plan of the list alone, as a run file with the rule policy has it; the time of the whole race if it never
    meets the target.
search: random search, the mean over random orders: each plan has as much time as the winner of the recorded race, until
    one meets the target. What a plan that left the race early would have reached later is not known, and is not
    counted as meeting it.

The table has costs as shares of others, by data set, and their geometric mean with a 95 % interval by the t
distribution over data sets.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
from experience_sets import relatives
from ratios import geometric_mean

from kshot.app.auto.descriptors import error_of
from kshot.app.auto.plans import BASELINE
from kshot.app.auto.race import ETA, STARTERS
from kshot.app.auto.ranking import expect
from kshot.deciding.experience import Experience, Trial
from kshot.evaluation.target import Target

Course = list[tuple[float, float]]
"""(seconds, error) each time that the time of a plan was up."""


def course_of(trial: Trial) -> Course:
    """The course of a plan; errors are logarithms."""
    target = Target(str(trial.descriptors["metric"]), bool(trial.descriptors["higher_is_better"]), 0.0)
    return [
        (figure.seconds, math.inf if figure.value is None else error_of(figure.value, target))
        for figure in trial.figures
    ]


def cost(order: Sequence[str], courses: Mapping[str, Course], bound: float, starters: int = STARTERS) -> float:
    """Seconds until a plan has at most the error `bound`, or of all that was given."""
    running, spent, given = list(order[:starters]), 0.0, dict.fromkeys(order, 0)
    while running:
        for name in running:
            rung = given[name]
            if rung < len(courses[name]):
                before = courses[name][rung - 1][0] if rung else 0.0
                spent += courses[name][rung][0] - before
                given[name] += 1
                if courses[name][rung][1] <= bound:
                    return spent
        if len(running) == 1:
            break
        running.sort(key=lambda name: courses[name][given[name] - 1][1] if given[name] else math.inf)
        running = running[: math.ceil(len(running) / ETA)]
    return spent


def cost_of_search(order: Sequence[str], courses: Mapping[str, Course], bound: float) -> float:
    """Seconds until a plan has at most the error `bound`, where each has the time of the longest course."""
    longest, spent = max(course[-1][0] for course in courses.values()), 0.0
    for name in order:
        for seconds, error in courses[name]:
            if error <= bound:
                return spent + seconds
        spent += longest
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", help="a database; by default the experience that comes with kshot")
    parser.add_argument("--within", type=float, default=0.02)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    experience = Experience(options.trials or "sqlite://")
    known = experience.trials(shipped=options.trials is None)
    trials = [trial for trial in known if trial.data_set and trial.figures and "name" in trial.plan]  # plans of a list
    names = list(dict.fromkeys(trial.data_set for trial in trials))
    shares: dict[str, dict[str, float]] = {}
    for name in names:
        own = [trial for trial in trials if trial.data_set == name]
        plans = [trial for trial in own if trial.plan.get("learner", {}).get("kind") != BASELINE]
        courses = {str(trial.plan["name"]): course_of(trial) for trial in plans}
        least = min((error for course in courses.values() for _, error in course), default=math.inf)
        if len(courses) < 2 or not math.isfinite(least):
            continue
        bound = least + math.log1p(options.within)
        listed, hidden = list(courses), relatives(name)
        expected = expect(listed, own[0].descriptors, [trial for trial in trials if trial.data_set not in hidden])
        warm = sorted(listed, key=lambda plan: -expected[plan].gain)
        everything = sum(course[-1][0] for course in courses.values())
        shuffle = random.Random(0)
        orders = [shuffle.sample(listed, len(listed)) for _ in range(options.repeats)]
        by_chance = float(np.mean([cost(order, courses, bound) for order in orders]))
        search = float(np.mean([cost_of_search(order, courses, bound) for order in orders]))
        alone = cost(listed[:1], courses, bound, 1)
        met = any(error <= bound for _, error in courses[listed[0]])
        auto, cold = cost(warm, courses, bound), cost(listed, courses, bound)
        shares[name] = {
            "auto / random": auto / by_chance,
            "cold / random": cold / by_chance,
            "one / random": (alone if met else everything) / by_chance,
            "auto / search": auto / search,
            "cold / search": cold / search,
        }
    if not shares:
        raise SystemExit("there are no trials of two plans on a named data set: make some by make_experience.py")
    columns = list(next(iter(shares.values())))
    print(f"| data set | {' | '.join(columns)} |\n{'| --- ' * (1 + len(columns))}|")
    for name, share in shares.items():
        print(f"| {name} | {' | '.join(f'{share[column]:.2f}' for column in columns)} |")
    cells = [f"**{geometric_mean([share[column] for share in shares.values()])}**" for column in columns]
    print(f"| geometric mean of {len(shares)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
