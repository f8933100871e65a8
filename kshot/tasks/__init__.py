"""Where tasks come from: the contract of a source, and the sources that kshot ships."""

from kshot.tasks.fewshot import ClassTasks
from kshot.tasks.glyphs import glyphs
from kshot.tasks.omniglot import omniglot
from kshot.tasks.source import TaskSource
from kshot.tasks.synthetic import sinusoids

__all__ = ["ClassTasks", "TaskSource", "glyphs", "omniglot", "sinusoids"]
