"""`kshot data`: list, add, check and freeze data sets. Heavy imports are inside the commands, to keep `--help` fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kshot.app.arguments import Override
from kshot.app.completion import data_sets, run_files, run_files_and_data_sets

data = typer.Typer(help="Data sets: list, add, check.", no_args_is_help=True)


@data.command("list")
def data_list() -> None:
    """List the known data sets and where they are."""
    from kshot.data import library

    rows = library.known()
    width = max(len(row.name) for row in rows)
    for row in rows:
        place = "built in" if row.built_in else row.folder or f"not found; `kshot data add {row.name}` fetches it"
        opened = "" if row.has_factory else f"; files for source kind {row.kind}"
        about = (f"{row.description}; {row.licence}; split {row.split}{opened}", row.homepage)
        typer.echo("\n".join([f"{row.name:<{width}}  {place}", *(f"{'':<{width}}  {line}" for line in about if line)]))


@data.command("add")
def data_add(
    name: Annotated[str, typer.Argument(help="A known set; see `kshot data list`.", autocompletion=data_sets)],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PATH|URL",
            help="Folder, archive or URL of the data set; by default $KSHOT_MIRROR/NAME if set, otherwise the "
            "publisher's URL.",
        ),
    ] = None,
) -> None:
    """Download or copy a data set to where kshot looks for it, and check it; interrupted downloads are resumed."""
    from kshot.app.known_sets import open_known
    from kshot.app.progress import fetching
    from kshot.app.screen import Screen
    from kshot.data import library

    try:
        with fetching(Screen(stderr=True)) as progress:
            added = library.add(name, from_, progress, open_tasks=open_known)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command resumes.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"added {added.folder}\n{added.trust}")


@data.command("check")
def data_check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE.yaml|RECIPE|SET",
            help="A run file, a recipe, or a set of `kshot data list`.",
            autocompletion=run_files_and_data_sets,
        ),
    ],
    set_: Override = None,
    json: Annotated[Path | None, typer.Option(help="JSON file for the findings.")] = None,
    html: Annotated[Path | None, typer.Option(help="HTML file for the findings, with pictures of a few tasks.")] = None,
    examples: Annotated[int, typer.Option(help="Maximum number of examples to compare.", min=1)] = 50_000,
    tasks: Annotated[int, typer.Option(help="Number of tasks of each split to check.", min=1)] = 100,
) -> None:
    """Find problems of the data before training: copies across splits, leaked targets, damaged images, and more.

    For the name of a known data set, only its contents are counted. Exit code: 0, or 2 if there is an error among the
    findings, or the data cannot be read.
    """
    from kshot.data import library

    if not set_ and not json and not html and name in [row.name for row in library.known()]:
        from kshot.app.known_sets import open_known

        counts = library.check(name, open_known)
        if not counts:
            typer.echo(f"{name}: its tasks are drawn at run time, without end")
        for split, numbers in counts.items():
            typer.echo(f"{split:<6}" + ", ".join(f"{count:,} {what}" for what, count in numbers.items()))
        return
    from kshot.app.check import check_run_file
    from kshot.app.errors import INVALID
    from kshot.app.screen import Screen
    from kshot.app.spec import load_spec

    spec = load_spec(name, set_)
    found = check_run_file(
        spec, num_examples=examples, num_tasks=tasks, json_file=json, html_file=html, console=Screen()
    )
    raise typer.Exit(INVALID if found.worst == "error" else 0)


@data.command("freeze")
def data_freeze(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|FILE.yaml", help="Run file with the source of the tasks.", autocompletion=run_files
        ),
    ],
    out: Annotated[Path, typer.Option(help="File for the tasks, .safetensors.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    tasks: Annotated[int, typer.Option(help="Number of tasks, from the first.", min=1)] = 600,
    set_: Override = None,
) -> None:
    """Write tasks to a file, to share them exactly; a source of kind episodes reads it."""
    from kshot.app.build import build_source
    from kshot.app.spec import load_spec
    from kshot.files import check_writable
    from kshot.tasks import freeze

    spec = load_spec(recipe, set_)
    if out.exists():
        raise ValueError(f"{out} exists and is never written over; choose another --out")
    check_writable(out)
    sha256 = freeze(build_source(spec), out, split=split, num_tasks=tasks)  # type: ignore[arg-type]  # which refuses others
    typer.echo(f"{out}: {tasks} {split} tasks, episodes {sha256}")
