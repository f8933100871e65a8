"""Whether a mixture of plans, as `kshot auto` makes it, has less test error than the plan that is best on validation.

    python benchmarks/mixtures.py [--only gcse language] [--seeds 0] [--minutes 1]

On each grouped table the simple baselines and the plans that are fitted in closed form are measured on validation
tasks, the best of them are mixed, and both the mixture, if it enters the race, and the best one are tested on the same
200 tasks. The weights' penalty was found on the first twelve tables (`TUNED`); the others are new to it. Minutes are of
CPU time of one thread for each table (`cpu_clock.py`). What is done is written to --out, and not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from cpu_clock import use_cpu_clock
from experience_sets import data_sets
from ratios import geometric_mean

from kshot.app.auto import command
from kshot.app.auto.mixing import learner_of, mix
from kshot.app.auto.plans import MIXTURE
from kshot.app.auto.question import Question
from kshot.app.auto.ranking import Expectation
from kshot.evaluation.evaluate import evaluate
from kshot.files import owned

TUNED = ("exam", "school", "radon", "incomes", "wages", "homes", "storms", "boys", "loans", "batters", "sacramento",
         "pupils")  # fmt: skip
NEW = ("gcse", "language", "milk", "star", "spruces", "cigarettes", "firms", "murders", "lessons", "young_men",
       "products", "companies", "driving", "exhaust", "hotels", "ames")  # fmt: skip
CLOSED_FORM = ("partial_pooling", "boosted_residual")
TASKS = 200


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The test errors of the best on validation and of the mixture."""
    values = data_sets(options.out / "data", options.shared)[name] | {"seed": seed, "task_seed": seed}
    folder = options.out / "runs" / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    with owned(folder):
        question = Question.of(values, [])
        race, _ = command.start(question, question.base(), folder, 60 * options.minutes, lambda line: None)
        race.plans = [plan for plan in race.plans if plan.name in CLOSED_FORM]
        race.run(race.plans, dict.fromkeys(CLOSED_FORM, Expectation(0.0, 0.0, None)), shortest=1.0)
        best = race.ranked()[0]
        mix(race, question.base().evaluate.num_val_tasks, 120)
        mixture = race.entrants[MIXTURE]
        metric = race.target.metric
        found = {"name": name, "seed": seed, "metric": metric, "best": best.plan.name, "mixture": mixture.failure}
        entered = {"best": best} | ({} if mixture.failure else {"mixture": mixture})
        for key, entrant in entered.items():
            result = evaluate(learner_of(race, entrant), race.source, split="test", num_tasks=TASKS, audit=False)
            found[f"{key}_error"] = result.metrics[metric].mean
        if not mixture.failure:
            found["mixture"] = mixture.plan.about
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*TUNED, *NEW])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/mixtures"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the large data sets")
    options = parser.parse_args()
    use_cpu_clock()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for name in options.only:
        for seed in options.seeds:
            if not any((each["name"], each["seed"]) == (name, seed) for each in done):
                done.append(measure(name, seed, options))
                with results.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
                print(json.dumps(done[-1]), flush=True)
    print("| table | best on validation | mixture | its test error over that of the best |\n| --- | --- | --- | --- |")
    for each in done:
        ratio = each.get("mixture_error", each["best_error"]) / each["best_error"]
        print(f"| {each['name']} | {each['best']} | {each['mixture']} | {ratio:.3f} |")
    for title, names in (("tuned on", TUNED), ("new", NEW)):
        ratios = [
            each.get("mixture_error", each["best_error"]) / each["best_error"] for each in done if each["name"] in names
        ]
        if ratios:
            print(f"| {title}, geometric mean of {len(ratios)} | | | **{geometric_mean(ratios)}** |")


if __name__ == "__main__":
    main()
