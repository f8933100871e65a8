"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a key, such as source.shots=5 or train.outer_lr=0.01."),
]
Resize = Annotated[bool, typer.Option("--resize", help="Scale images to the size that the run was trained on.")]
Invert = Annotated[bool, typer.Option("--invert", help="Invert brightness, such as dark strokes on white.")]
