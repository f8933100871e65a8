"""The contract of a task source, and the samplers that cut tasks out of rows."""

from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.frozen import episodes, freeze
from kshot.tasks.group_tasks import GroupTasks
from kshot.tasks.label_tasks import LabelTasks
from kshot.tasks.loader import from_loader
from kshot.tasks.mask_tasks import MaskClass, MaskTasks
from kshot.tasks.mixture import mixture
from kshot.tasks.names import with_names
from kshot.tasks.read_log import watched
from kshot.tasks.source import TaskSource, generator

__all__ = [
    "ClassTasks",
    "GroupTasks",
    "LabelTasks",
    "MaskClass",
    "MaskTasks",
    "TaskSource",
    "episodes",
    "freeze",
    "from_loader",
    "generator",
    "mixture",
    "watched",
    "with_names",
]
