"""Trained learners of small tables: files of weights that describe their learner, and those that the package holds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from kshot import objectives
from kshot.files import DamagedFile
from kshot.learners.amortised.prior_fitted import PriorFitted, prior_fitted
from kshot.training.checkpoint import load_state, save_state


def save_weights(learner: PriorFitted, path: str | Path) -> None:
    """Write a learner to a safetensors file, with its objective and the arguments of `prior_fitted` in the header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tabular.safetensors"
        >>> save_weights(prior_fitted(classes=5, width=48), path)
        >>> load_weights(path).sizes["width"]
        48
    """
    arguments = {"objective": objectives.name_of(learner.objective), **learner.sizes}
    save_state(Path(path), dict(learner.state_dict()), {"prior_fitted": json.dumps(arguments)})


def load_weights(path: str | Path) -> PriorFitted:
    """The learner of a file of `save_weights`, in evaluation mode.

    Raises:
        DamagedFile: a ValueError; the file is missing, damaged, or of another version of `prior_fitted`.
    """
    tensors, meta = load_state(Path(path))
    try:
        arguments = json.loads(meta["prior_fitted"])
        learner = prior_fitted(objective=objectives.from_name(arguments.pop("objective")), **arguments)
        learner.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFile(f"{path} holds no weights of a learner prior_fitted of this version: {reason}") from None
    return learner.eval().requires_grad_(False)


@cache
def packaged(name: Literal["classifier", "regressor"]) -> PriorFitted:
    """The learner of a file of the package, which is read once."""
    return load_weights(Path(__file__).with_name(f"tabular-{name}.safetensors"))
