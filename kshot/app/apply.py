"""`kshot adapt`, `kshot predict` and `kshot generate`: applications of a trained run to a user's files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kshot.app.build import device_of
from kshot.app.inputs import image_files
from kshot.app.trained import load
from kshot.data.text.vocabulary import UNKNOWN
from kshot.files import check_writable, csv_text, whole_file
from kshot.learners.generation import generate
from kshot.sources.corpus import CorpusPreprocessor
from kshot.types import to


def adapt_run(
    run_dir: Path, support: Path, out: Path, *, before: Path | None = None, resize: bool, invert: bool
) -> None:
    """Adapt to a user's examples, or extend the state `before` by them, and write the state."""
    if out.exists():
        raise ValueError(f"{out} exists and is never overwritten; choose another --out")
    check_writable(out)
    run = load(run_dir)
    known = None if before is None else run.load_state(before)
    adapted = run.adapt(support, before=known, resize=resize, invert=invert)
    run.save_state(out, adapted)
    classes = adapted.classes
    of_classes = f" of {len(classes)} classes: {', '.join(classes)}" if classes else ""
    print(f"adapted to {adapted.num_examples} examples{of_classes}; state in {out}")


def predict_run(
    run_dir: Path, state_file: Path, inputs: list[Path], *, resize: bool, invert: bool, masks: Path | None = None
) -> int:
    """Print predictions with an adapted state as CSV; for text, also its bits per symbol on standard error.

    Args:
        masks: folder for a predicted mask of each image, `STEM.png`, which is created.

    Returns:
        The number of inputs without a prediction; the column "error" says why.
    """
    run = load(run_dir)
    adapted = run.load_state(state_file)
    keep = None if masks is None else mask_writer(masks, image_files(inputs))
    columns = run.predict(adapted, inputs, resize=resize, invert=invert, masks=keep)
    rows = zip(*columns.values())
    figures = ([float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in row] for row in rows)
    print(csv_text([list(columns), *figures]), end="")
    if isinstance(run.preprocessor, CorpusPreprocessor):
        _, _, unit, _ = columns
        total = sum(columns[unit])
        print(f"{sum(columns['bits']) / total:.4f} bits per {unit[:-1]} over {total:,}", file=sys.stderr)
    failed = [error for error in columns.get("error", []) if error]
    if failed:
        print(f"kshot: no prediction for {len(failed)} of {len(columns['error'])}: {failed[0]}", file=sys.stderr)
    return len(failed)


def mask_writer(folder: Path, files: Iterable[Path]) -> Callable[[Path, np.ndarray], None]:
    """A function that writes the mask of an image file as a grey PNG of its name in a folder, which is made.

    Raises:
        ValueError: two of the files have one name, or a mask exists.
    """
    from PIL import Image

    for name, count in Counter(path.stem for path in files).items():
        if count > 1:
            raise ValueError(f"{count} images are called {name}, and {folder} has one mask of each name: predict apart")
        if (folder / f"{name}.png").exists():
            raise ValueError(f"{folder / name}.png exists and is never overwritten; choose another --masks")

    def write(file: Path, mask: np.ndarray) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / f"{file.stem}.png") as temporary:
            Image.fromarray(mask).save(temporary, "PNG")

    return write


def generate_run(run_dir: Path, state_file: Path, prompt: str, **options: Any) -> None:
    """Print a prompt and its continuation under an adapted state, with the options of `generate`.

    Raises:
        ValueError: a run on other tasks than running text, or a prompt that is empty or has unknown characters.
    """
    run = load(run_dir)
    preprocessor = run.preprocessor
    if not isinstance(preprocessor, CorpusPreprocessor):
        raise ValueError(f"{run_dir} was not trained on running text (source corpus) and cannot generate any")
    if not prompt:
        raise ValueError("the prompt is empty: give at least one character, such as a line feed")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("the prompt is not valid UTF-8; a character may have been cut in two")
    symbols = torch.from_numpy(preprocessor.encode(prompt)).long()
    unknown = sorted({character for character, symbol in zip(prompt, symbols.tolist()) if symbol == UNKNOWN})
    if preprocessor.unit == "characters" and unknown:
        raise ValueError(
            f"the prompt contains {' '.join(map(repr, unknown))}, which no training text of {run_dir} does; leave "
            "it out, or train a run with unit: bytes, which covers all characters"
        )
    state = run.load_state(state_file).state
    device = device_of(run.spec)
    learner, context = run.learner.to(device), preprocessor.length
    written = generate(learner, to(state, device), symbols.to(device), context=context, **options)
    print(preprocessor.decode([*symbols.tolist(), *written.tolist()]))
