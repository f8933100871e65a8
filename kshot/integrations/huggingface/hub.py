"""A trained run in the conventions of the Hugging Face Hub, by the mixin of `huggingface_hub`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, constants, snapshot_download

from kshot.app.trained import TrainedRun
from kshot.files import is_empty, read_json, write_json
from kshot.integrations.huggingface.card import TAGS, model_card
from kshot.integrations.huggingface.saved import NEEDED, open_run, save_run


class HubRun(ModelHubMixin, library_name="kshot", tags=[*TAGS]):
    """A trained run that is saved as a folder of the Hub, and opened from one.

    The folder is a small run folder with a model card: `kshot.load`, `kshot adapt` and `kshot predict` take it too. The
    weights are safetensors, and everything that a learner is built from has a checksum that is compared when it is
    opened. Of the user's data it holds what the preprocessor needs: names of columns, classes and items, and the words
    of a vocabulary.

    Args:
        run: of `kshot.load`, or `report.trained`.
        license: identifier of the licence of the weights, as the Hub writes it, such as "cc-by-4.0"; none by default.

    Example:
        >>> HubRun(kshot.load("runs/flowers"), license="cc-by-4.0").push_to_hub("me/flowers")  # doctest: +SKIP
        >>> run = HubRun.from_pretrained("me/flowers").run  # doctest: +SKIP
        >>> run.predict(run.adapt("my-photos"), ["new.jpg"])["label"]  # doctest: +SKIP
    """

    def __init__(self, run: TrainedRun, license: str | None = None) -> None:
        self.run, self.license = run, license

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the folder, which must be empty; as `ModelHubMixin.save_pretrained`.

        Raises:
            ValueError: the folder is not empty, or the run cannot be opened without its data.
        """
        if not is_empty(Path(save_directory)):
            raise ValueError(f"{save_directory} is not empty: choose another folder")
        return super().save_pretrained(save_directory, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Open a folder, or a repository of the Hub; as `ModelHubMixin.from_pretrained`.

        Only safetensors, JSON and YAML are downloaded, and nothing of them is executed.

        Args:
            pretrained_model_name_or_path: the folder, or the repository as "user/name".
            options: of the mixin, such as `revision`, `token` and `local_files_only`; and `allow_import`, whether
                modules that the run file names may be imported, False by default. They are never downloaded.

        Raises:
            ValueError: the folder is damaged, or its run file would import a module.
        """
        config = Path(pretrained_model_name_or_path) / constants.CONFIG_NAME
        if config.exists():
            read_json(config)  # compares its checksum, and says which file is damaged
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the folder to a repository; as `ModelHubMixin.push_to_hub`."""
        options["model_card_kwargs"] = {"repo_id": repo_id, **(options.get("model_card_kwargs") or {})}
        return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, *, repo_id: str = "") -> ModelCard:
        """The model card, with the figures of the run's report."""
        return model_card(self.run, self.license, repo_id)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_run(self.run, save_directory)
        spec = self.run.spec
        about = {"learner": spec.learner.kind, "model": spec.model.kind if spec.model else None}
        write_json(save_directory / constants.CONFIG_NAME, {"library": "kshot", **about, "license": self.license})

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, license: str | None = None, allow_import: bool = False, **options: Any
    ) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, allow_patterns=NEEDED, **options))
        return cls(open_run(folder, allow_import=allow_import), license)
