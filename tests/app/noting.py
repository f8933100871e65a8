"""A baseline of run files that notes which processes adapt it, for tests of several processes."""

import os
import time
from pathlib import Path

from kshot.learners import SupportMean
from kshot.objectives import Objective
from kshot.types import Batch, Tree

NOTED = "KSHOT_TEST_NOTED"
"""Environment variable: the folder that receives a file named by each process."""


class Noting(SupportMean):
    """The mean of the support set, which takes long enough to be shared."""

    def _adapt(self, support: Batch) -> Tree:
        time.sleep(0.02)
        (Path(os.environ[NOTED]) / os.environ.get("RANK", "alone")).touch()
        return super()._adapt(support)


def support_mean(objective: Objective) -> Noting:
    """The baseline, for run files."""
    return Noting(objective)
