"""A trained run as an object: `kshot.load("runs/x")` opens its folder, without the data that it was trained on.

Only a `Baseline` that `kshot auto` kept is fitted to the data again.

Shape legend: n examples, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.app.build import Shapes, build_learner, build_model, build_source, device_of, has_head, shapes_of
from kshot.app.folder import RunFolder, read_spec
from kshot.app.inputs import image_files, read_image, read_images, read_table, support_images, support_table
from kshot.app.spec import Spec, parse_spec
from kshot.bounded import parse_json, read_bytes
from kshot.data.images.in_memory import ImageData, kept_images, kept_pictures
from kshot.data.tables.frames import TableLike, is_path
from kshot.deciding.adjusting import set_learner
from kshot.deciding.decisions import Round, best_round
from kshot.evaluation.baselines import fit_baselines
from kshot.evaluation.rejection import OUTSIDE, novelty
from kshot.evaluation.target import Target
from kshot.files import read_json, sha256_of
from kshot.learner import Learner
from kshot.learners.heads.head_learner import HeadLearner
from kshot.sources.corpus import CorpusPreprocessor
from kshot.sources.image_files import ImagePreprocessor
from kshot.sources.masks import MaskPreprocessor
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import META, WEIGHTS, Checkpoints, load_checkpoint, load_state, save_state
from kshot.types import Batch, Split, Tree, to, tree_map

CHANGEABLE = ("source", "target", "evaluate", "baselines", "device")
"""Keys of the run file that may be changed when a trained run is evaluated."""

IMAGES_AT_ONCE = 64

Columns = dict[str, list[Any]]
"""A table: the name of each column, and its cells."""


class Adapted(NamedTuple):
    """The state that a learner adapted to one task, with the data that predictions need besides it.

    Attributes:
        classes: names of the task's classes, in the order of the logits; empty for regression.
        kept: the data on the support set that the preprocessor needs, as JSON.
        num_examples: number of support examples of the latest adaptation.
    """

    state: Tree
    classes: list[str]
    kept: dict[str, Any]
    num_examples: int = 0


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, opened by `load`.

    Attributes:
        path, spec, shapes: the folder, the run file, and the shapes of one example.
        preprocessor: converts files into inputs; None if the tasks were not read from files.
        learner, round, num_steps: the learner with the weights of the best round, the number of that round, and that of
            the outer steps taken until its end.
        weights, checkpoint: SHA-256 of the weights, and the folder of the checkpoint that they were read from.
        reads: (phase, split) for each split that a phase of the run has read.

    Example:
        >>> run = kshot.load("runs/characters")  # doctest: +SKIP
        >>> adapted = run.adapt("my-drawings")  # doctest: +SKIP
        >>> run.predict(adapted, ["new.png"])["label"]  # doctest: +SKIP
        ['alpha']
    """

    path: Path
    spec: Spec
    shapes: Shapes
    preprocessor: Preprocessor | None
    learner: Learner
    round: int
    num_steps: int
    weights: str
    checkpoint: Path
    reads: list[tuple[str, Split]]

    @property
    def report(self) -> dict[str, Any] | None:
        """The contents of report.json; None before the run has ended. Raises DamagedFile if it is not this run's."""
        return RunFolder(self.path).read_report()

    def check_shapes(self, source: TaskSource) -> None:
        """Raise ValueError if the tasks of a source have other shapes than the learner takes."""
        found, known = shapes_of(source), self.shapes
        if found["inputs"] != known["inputs"]:
            raise ValueError(f"these tasks have inputs {found['inputs']}, and the run was trained on {known['inputs']}")
        if found["targets"] != known["targets"] and has_head(self.spec):
            raise ValueError(
                f"the model of {self.path} tells {known['targets'][-1]} classes apart, and these tasks have "
                f"{found['targets'][-1]}: keep source.ways, or train a learner for any number of ways, such as protonet"
            )

    def adapt(
        self,
        support: Path | str | TableLike | ImageData,
        *,
        before: Adapted | None = None,
        resize: bool = False,
        invert: bool = False,
    ) -> Adapted:
        """Adapt to a user's examples, as `kshot adapt` does.

        Args:
            support: examples with their targets as the run's source takes them: a file, a folder, or a table or images
                in memory.
            before: a state to be extended by the examples; by default the learner adapts to them alone.
            resize, invert: whether images of another size are resized, which they are in any case for a pretrained
                encoder, and whether brightness is inverted.

        Raises:
            ValueError: examples that do not fit the run, or a state that cannot be extended.
        """
        self._check_invert(invert)
        inputs, targets, kept = self._support(self._located(support), resize=resize, invert=invert)
        classes: list[str] = []
        if isinstance(targets, list):
            known = before.classes if before else []
            classes = known + sorted(set(targets) - set(known))
            labels = torch.tensor([classes.index(label) for label in targets])
            batch = Batch.of(inputs, labels, ways=self._ways(classes))
        else:
            batch = Batch.of(inputs, targets)
        device = device_of(self.spec)
        learner, batch = self.learner.to(device).eval(), to(batch, device)
        with torch.no_grad():
            if before is not None:
                state = learner.extend(to(before.state, device), batch)
            elif isinstance(learner, HeadLearner):
                state = learner.adapt(batch, extendable=True)
            else:
                state = learner.adapt(batch)
        return Adapted(state, classes, kept, len(batch.weight))

    def predict(
        self,
        adapted: Adapted,
        inputs: Path | str | TableLike | Sequence[Any],
        *,
        resize: bool = False,
        invert: bool = False,
        masks: Callable[[Path, np.ndarray], object] | None = None,
    ) -> Columns:
        """Predict for a user's examples, as `kshot predict` does.

        Args:
            adapted: result of `adapt` or `load_state`.
            inputs: a file or folder, or several, as the run's source takes them; a table in memory; or images in
                memory, of Pillow or tensors (C, H, W), one or several.
            resize, invert: as in `adapt`.
            masks: called with each image file and its predicted mask, uint8 (height, width), of a run of source masks:
                the values of the masks of the support set, 0 for the background, and 255 for the margins that are cut
                off, as an image is cropped to a square.

        Returns:
            A list for each column: "label" and the probability of each class for classification, with "novelty" if the
            run rejects out-of-scope examples; the bits of each window for running text; else the predicted values.
            A column "error" is there if an image cannot be read or a prediction is not finite; it says why.

        Raises:
            ValueError: a file that is missing or does not fit the run, or masks of a run that predicts none.
        """
        if masks is not None and not isinstance(self.preprocessor, MaskPreprocessor):
            raise ValueError(f"{self.path} predicts no masks: they are predicted by runs of source masks")
        self._check_invert(invert)
        listed = isinstance(inputs, list | tuple) and all(map(is_path, inputs))
        in_memory = self._reads_images and not listed and not is_path(inputs)
        located: list[Path | TableLike]
        if in_memory:
            located = [*kept_pictures(inputs if isinstance(inputs, list | tuple) else [inputs])]
        else:
            located = [self._located(each) for each in cast("Sequence[Any]", inputs if listed else [inputs])]
        paths = [path for path in located if isinstance(path, Path)]
        for path in paths:
            if not path.exists():
                raise ValueError(f"there is no {path}")
        preprocessor = self.preprocessor
        if isinstance(preprocessor, CorpusPreprocessor):
            return self._bits(preprocessor, adapted.state, paths)
        if isinstance(preprocessor, ImagePreprocessor) or (adapted.classes and preprocessor is None):
            read = self._reader(resize=resize, invert=invert)
            columns = self._predict_images(adapted, image_files(paths), read, masks)
            if in_memory:
                columns = {"row": list(range(1, len(columns.pop("path")) + 1))} | columns
            return columns
        if preprocessor:
            values = [preprocessor.inputs(each, adapted.kept) for each in located]
        else:
            values = [read_table(path, self.shapes["inputs"][-1]) for path in paths]
        prediction = self.logits(adapted.state, tree_map(lambda *leaves: torch.cat(leaves), *values))
        return _tell_not_finite(prediction, self._columns(prediction, adapted))

    def _predict_images(
        self,
        adapted: Adapted,
        files: list[Path],
        read: Callable[[Path], Tensor],
        masks: Callable[[Path, np.ndarray], object] | None,
    ) -> Columns:
        """The columns for image files, of which few are in memory at once, unless all are needed to predict each."""
        preprocessor = self.preprocessor
        assert preprocessor is None or isinstance(preprocessor, ImagePreprocessor)
        columns, errors = Columns(), list[str]()
        at_once = IMAGES_AT_ONCE if self.learner.inference == "inductive" else len(files)
        for chunk in (files[start : start + at_once] for start in range(0, len(files), at_once)):
            images, failed = read_images(chunk, read)
            errors += failed
            if not images:
                continue
            inputs = torch.stack(images)
            logits = self.logits(adapted.state, preprocessor.encoded(inputs) if preprocessor else inputs)
            if preprocessor is None or adapted.classes:
                found = self._labels(logits, adapted.classes)
            else:
                found = preprocessor.answers(logits, adapted.kept)
            for name, cells in found.items():
                columns.setdefault(name, []).extend(cells)
            if masks is not None and isinstance(preprocessor, MaskPreprocessor):
                readable = (file for file, error in zip(chunk, failed) if not error)
                for file, of_one in zip(readable, logits):
                    masks(file, preprocessor.mask_of(of_one, read_bytes(file), str(file), adapted.kept))
        if not columns:
            raise ValueError(f"none of {len(files)} images can be read; the first: {errors[0]}")
        return {"path": [str(file) for file in files]} | _spread(columns, errors)

    def _columns(self, prediction: Tensor, adapted: Adapted) -> Columns:
        preprocessor = self.preprocessor
        rows: Columns = {"row": list(range(1, len(prediction) + 1))}
        if adapted.classes:
            return rows | self._labels(prediction, adapted.classes)
        if preprocessor:
            return preprocessor.answers(prediction, adapted.kept)
        several = prediction.shape[1] > 1
        return rows | {f"prediction{i if several else ''}": column for i, column in enumerate(prediction.T.tolist())}

    def logits(self, state: Tree, inputs: Tree) -> Tensor:
        """The learner's prediction (n, ...) for inputs (n, ...), on the CPU."""
        device = device_of(self.spec)
        with torch.no_grad():
            return self.learner.to(device).eval().predict(to(state, device), to(inputs, device)).cpu()

    def save_state(self, path: Path | str, adapted: Adapted) -> None:
        """Write an adapted state to a file that `load_state` and `kshot predict` read."""
        meta = {"classes": json.dumps(adapted.classes), "kept": json.dumps(adapted.kept)}
        save_state(Path(path), adapted.state, meta | {"weights_sha256": self.weights, "run": self.spec.name})

    def load_state(self, path: Path | str) -> Adapted:
        """Read an adapted state; ValueError if it was adapted from other weights than this run's."""
        state, meta = load_state(Path(path))
        if meta.get("weights_sha256") != self.weights:
            raise ValueError(
                f"{path} was not adapted from the weights in {self.path}: adapt again with `kshot adapt {self.path}`"
            )
        return Adapted(state, parse_json(meta["classes"]), parse_json(meta.get("kept", "{}")))

    @property
    def _reads_images(self) -> bool:
        shape = self.shapes["inputs"]
        pixels = self.preprocessor is None and isinstance(shape, list) and len(shape) == 3
        return pixels or isinstance(self.preprocessor, ImagePreprocessor)

    def _check_invert(self, invert: bool) -> None:
        if invert and not (self._reads_images and type(self.preprocessor) in (ImagePreprocessor, type(None))):
            raise ValueError(f"{self.path} classifies no images by examples alone: leave out invert")

    def _located(self, data: Any) -> Path | TableLike:
        """A path, that of images in memory, or a table if the run reads tables; ValueError if it reads neither."""
        if is_path(data):
            return Path(data)
        if self._reads_images:
            images = self.preprocessor
            return images.kept_support(data) if isinstance(images, ImagePreprocessor) else kept_images(data)
        if self.preprocessor is None or not self.preprocessor.reads_tables:
            raise ValueError(f"this run reads files, and was given a {type(data).__name__}: give the path of a file")
        return cast(TableLike, data)

    def _support(
        self, path: Path | TableLike, *, resize: bool, invert: bool
    ) -> tuple[Tree, Tensor | list[str], dict[str, Any]]:
        if self.preprocessor and type(self.preprocessor) is not ImagePreprocessor:
            return self.preprocessor.support(path)
        assert isinstance(path, Path)
        if type(self.preprocessor) is ImagePreprocessor:
            images, labels = support_images(path, self._reader(resize=resize, invert=invert))
            return self.preprocessor.encoded(images), labels, {}
        if objectives.from_name(self.shapes["objective"], allow_import=True).task_specific_classes:
            return *support_images(path, self._reader(resize=resize, invert=invert)), {}
        return *support_table(path, self.shapes["inputs"], self.shapes["targets"]), {}

    def _reader(self, *, resize: bool, invert: bool) -> Callable[[Path], Tensor]:
        """How an image file is read: as the pretrained encoder needs it, if there is one."""
        if isinstance(self.preprocessor, ImagePreprocessor):
            return partial(self.preprocessor.image, invert=invert)
        return partial(read_image, shape=self.shapes["inputs"], resize=resize, invert=invert)

    def _ways(self, classes: list[str]) -> int:
        """The width of the one-hot targets: that of the model's last layer if it has one, else one per class."""
        if len(classes) < 2:
            raise ValueError(f"classification needs at least two classes, got {len(classes)}: {', '.join(classes)}")
        if not has_head(self.spec):
            return len(classes)
        ways = self.shapes["targets"][-1]
        if len(classes) > ways:
            raise ValueError(
                f"this run's model tells {ways} classes apart, the support holds {len(classes)}: train with more ways"
            )
        return ways

    def _labels(self, logits: Tensor, classes: list[str]) -> Columns:
        """The most likely class of each row or `OUTSIDE`, the probabilities, and the novelty if the run rejects."""
        logits = logits[:, : len(classes)]
        probabilities = logits.softmax(1)
        labels = [classes[number] for number in probabilities.argmax(1).tolist()]
        columns: Columns = {f"p({name})": column for name, column in zip(classes, probabilities.T.tolist())}
        if self.spec.reject is not None:
            rule = read_json(RunFolder(self.path).rejection)
            scores = novelty(logits, rule["score"]).tolist()
            labels = [OUTSIDE if score > rule["threshold"] else label for label, score in zip(labels, scores)]
            columns["novelty"] = scores
        return {"label": labels} | columns

    def _bits(self, preprocessor: CorpusPreprocessor, state: Tree, files: list[Path]) -> Columns:
        """The bits that a learner needs for texts: a row for each window of each file."""
        unit = "bytes" if preprocessor.unit == "bytes" else "characters"
        columns: Columns = {"file": [], "window": [], unit: [], "bits": []}
        for file in files:
            inputs, targets = preprocessor.windows(file)
            log_probability = self.logits(state, inputs).log_softmax(-1)
            chosen = log_probability.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
            columns["file"] += [str(file)] * len(targets)
            columns["window"] += range(1, len(targets) + 1)
            columns[unit] += preprocessor.counted(targets).sum(1).tolist()
            columns["bits"] += (-(chosen * (targets >= 0)).sum(1) / math.log(2)).tolist()
        return columns


def start_from(learner: Learner, path: Path | str) -> str:
    """Give a learner the weights of a run's best round, and return a sentence on them; other shapes keep their own.

    Raises:
        ValueError: no finished run, or none of its weights has the name and shape of one of the learner's.
    """
    run = load(path)
    own, other = learner.state_dict(), run.learner.state_dict()
    taken = {name: value for name, value in other.items() if name in own and own[name].shape == value.shape}
    if not set(taken) & {name for name, _ in learner.named_parameters()}:
        raise ValueError(
            f"{path} is a run of learner {run.spec.learner.kind}, of which no weight has the name and shape of one of "
            "this run's: take the same model, or leave out --init-from"
        )
    learner.load_state_dict(own | taken)
    left = [name for name in own if name not in taken]
    others = f"; {len(left)} others start anew, such as {left[0]}" if left else ""
    return f"starts from {len(taken)} weights of {path}, round {run.round} ({run.weights[:16]}…){others}"


def _spread(columns: Columns, errors: list[str]) -> Columns:
    """Columns of the examples without an error, None for the others; and the errors as a column if there are any."""
    if not any(errors):
        return columns
    cells = {name: iter(column) for name, column in columns.items()}
    spread = {name: [None if error else next(cell) for error in errors] for name, cell in cells.items()}
    return spread | {"error": errors}


def _tell_not_finite(prediction: Tensor, columns: Columns) -> Columns:
    """The columns, and if predictions (n, ...) are not finite a column that says so."""
    wrong = (~prediction.flatten(1).isfinite().all(1)).tolist()
    if not any(wrong) or any(len(column) != len(wrong) for column in columns.values()):
        return columns
    errors = ["the prediction is not finite: look for missing or extreme inputs" * bad for bad in wrong]
    return columns | {"error": errors}


def load(path: Path | str, overrides: Sequence[str] = ()) -> TrainedRun:
    """Open a run folder: the trained learner, its preprocessor and its run file.

    Args:
        path: the folder.
        overrides: `PATH=VALUE`, each changes a key of `CHANGEABLE`, to evaluate on other tasks.

    Raises:
        ValueError: the folder is no run folder, holds no finished round, or has a damaged checkpoint; an override of
            another key.
    """
    path = Path(path)
    spec, folder = read_spec(path), RunFolder(path)
    if overrides:
        for override in overrides:
            if override.partition("=")[0].split(".")[0].strip() not in CHANGEABLE:
                raise ValueError(f"--set {override}: a trained run takes changes of {', '.join(CHANGEABLE)} only")
        spec = parse_spec(spec.to_yaml(), str(folder.spec), list(overrides))
    folder.check_files()
    latest = Checkpoints(folder.train).latest(may_go_back=False)
    rounds = [] if latest is None else read_json(latest / META)["rounds"]
    best = best_round([Round.from_json(entry) for entry in rounds], Target.parse(spec.target))
    if best is None or not folder.shapes.exists():
        raise ValueError(
            f"{path} holds no finished round yet; continue with `kshot run {folder.spec} --out {path} --resume`"
        )
    folder.check_rounds(len(rounds))
    shapes = read_json(folder.shapes)
    kept = read_json(folder.preprocessor) if folder.preprocessor.exists() else None
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    checkpoint = folder.train / best.checkpoint
    set_learner(learner, read_json(checkpoint / META).get("changed", {}))
    load_checkpoint(checkpoint, learner)
    fit_baselines(learner, lambda: build_source(spec))
    return TrainedRun(
        path=path,
        spec=spec,
        shapes=shapes,
        preprocessor=preprocessor_from_json(kept) if kept else None,
        learner=learner,
        round=best.number,
        num_steps=best.step,
        weights=sha256_of(checkpoint / WEIGHTS),
        checkpoint=checkpoint,
        reads=folder.reads(),
    )
