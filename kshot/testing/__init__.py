"""Contract checks for learners and task sources, those of the library and those of users; needs no pytest."""

from kshot.testing.learner_checks import check_learner, learner_checks
from kshot.testing.source_checks import check_source, source_checks
from kshot.testing.tasks import make_task

__all__ = ["check_learner", "check_source", "learner_checks", "make_task", "source_checks"]
