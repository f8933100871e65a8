"""Whether experience knows how uncertain it is: expected gains of plans on data sets that it has not seen.

    python benchmarks/expectations.py

For each data set of what comes with kshot, the gain of each plan over the best simple method is compared with what is
expected from the other data sets, without those of the same data. Printed are the correlation, the root mean squared
errors of the expectation and of no gain, and how the deviations in units of the expected spread are distributed: they
have mean 0 and standard deviation 1, and 95 % are within 2, if the spread is right. Trials are validation figures, so
that their noise is part of the spread.
"""

from __future__ import annotations

import math

import numpy as np
from experience_sets import relatives

from kshot.app.auto.plans import BASELINE
from kshot.app.auto.ranking import expect, gain_of
from kshot.deciding.experience import Experience

LEAST_WEIGHT = 0.5
"""Of similar data sets together, below which nothing is known of a plan."""


def main() -> None:
    trials = Experience("sqlite://").trials()
    rows = []
    for name in sorted({trial.data_set for trial in trials}):
        mine = [each for each in trials if each.data_set == name and each.plan["learner"]["kind"] != BASELINE]
        others = [each for each in trials if each.data_set not in relatives(name) | {name}]
        for trial in mine:
            plan, gain = str(trial.plan["name"]), gain_of(trial)
            expected = expect([plan], trial.descriptors, others)[plan]
            if expected.weight > LEAST_WEIGHT and math.isfinite(gain):
                rows.append((gain, expected.gain, expected.spread))
    gain, mean, spread = np.array(rows).T
    apart = (gain - mean) / spread
    print(f"{len(rows)} plans on data sets; correlation {np.corrcoef(gain, mean)[0, 1]:.2f}")
    errors = (np.sqrt(np.mean(each**2)) for each in (gain - mean, gain))
    print("root mean squared error {:.3f}, of no gain {:.3f}".format(*errors))
    print(f"deviations in spreads: mean {apart.mean():.2f}, standard deviation {apart.std():.2f}", end=", ")
    print(f"{np.mean(np.abs(apart) < 2):.1%} within 2; median spread {np.median(spread):.2f}")


if __name__ == "__main__":
    main()
