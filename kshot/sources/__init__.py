"""The task sources that kshot ships, one for each `kind` of a run file."""

from kshot.sources.corpus import corpus
from kshot.sources.functions import gaussian_processes, sinusoids
from kshot.sources.glyphs import glyphs
from kshot.sources.huggingface import from_hf
from kshot.sources.images import images
from kshot.sources.masks import masks
from kshot.sources.multilabel_images import multilabel_images
from kshot.sources.omniglot import omniglot, omniglot_runs
from kshot.sources.pixels import pixels
from kshot.sources.ratings.movielens import movielens
from kshot.sources.ratings.source import ratings
from kshot.sources.series import series
from kshot.sources.table import table
from kshot.sources.tabular_prior import tabular_priors
from kshot.sources.text import text
from kshot.sources.tfrecord import tfrecord
from kshot.tasks.frozen import episodes
from kshot.tasks.mixture import mixture

__all__ = [
    "corpus",
    "episodes",
    "from_hf",
    "gaussian_processes",
    "glyphs",
    "images",
    "masks",
    "mixture",
    "movielens",
    "multilabel_images",
    "omniglot",
    "omniglot_runs",
    "pixels",
    "ratings",
    "series",
    "sinusoids",
    "table",
    "tabular_priors",
    "text",
    "tfrecord",
]
