"""Where tasks come from: the contract of a source, and the sources that kshot ships."""

from kshot.tasks.corpus import corpus
from kshot.tasks.episodes import episodes, freeze
from kshot.tasks.examples import ArrayExamples, Examples, ImageExamples
from kshot.tasks.fewshot import ClassTasks
from kshot.tasks.from_hf import from_hf
from kshot.tasks.glyphs import glyphs
from kshot.tasks.groups import GroupTasks
from kshot.tasks.images import images
from kshot.tasks.mixture import mixture
from kshot.tasks.movielens import movielens
from kshot.tasks.omniglot import omniglot
from kshot.tasks.omniglot_runs import omniglot_runs
from kshot.tasks.pixels import pixels
from kshot.tasks.ratings import ratings
from kshot.tasks.series import series
from kshot.tasks.source import TaskSource
from kshot.tasks.synthetic import gaussian_processes, sinusoids
from kshot.tasks.tables import table
from kshot.tasks.tabular import tabular_priors
from kshot.tasks.text import text
from kshot.tasks.watching import watched

__all__ = [
    "ArrayExamples",
    "ClassTasks",
    "Examples",
    "GroupTasks",
    "ImageExamples",
    "TaskSource",
    "corpus",
    "episodes",
    "freeze",
    "from_hf",
    "gaussian_processes",
    "glyphs",
    "images",
    "mixture",
    "movielens",
    "omniglot",
    "omniglot_runs",
    "pixels",
    "ratings",
    "series",
    "sinusoids",
    "table",
    "tabular_priors",
    "text",
    "watched",
]
