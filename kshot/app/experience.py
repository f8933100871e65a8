"""`kshot experience`: look at the trials of earlier runs, exchange them between machines, and delete them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kshot.deciding.experience import Experience, Trial

experience = typer.Typer(
    help="Experience: the plans that were tried, on what kind of data, and their figures. It holds descriptors of data "
    "sets, such as the number of rows, and never data, names of columns or classes, or paths.",
    no_args_is_help=True,
)

Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="FILE|URL",
        help="An SQLite file, or a URL such as postgresql://host/name; by default $KSHOT_EXPERIENCE, otherwise a file "
        "in the user's data folder.",
    ),
]
FILE = "JSON lines, .jsonl, .jsonl.gz or .jsonl.xz."
MOST_PLANS = 8
"""Plans that are shown of a kind of task, the most frequent ones."""


@experience.command("show")
def show(
    kind: Annotated[str | None, typer.Option(help="One kind of task, such as regression.")] = None,
    shipped: Annotated[bool, typer.Option(help="Whether to count the trials that come with kshot.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print all trials as JSON lines.")] = False,
    database: Database = None,
) -> None:
    """Show what is known: for each kind of task the numbers of trials, of data sets, and of each plan."""
    import json as json_module

    from kshot.app.screen import visible
    from kshot.deciding.experience import Experience, shipped_trials

    known = Experience(database)
    own = {trial.sha256: trial for trial in known.trials(kind=kind, shipped=False)}
    others = [trial for trial in shipped_trials() if kind in (None, trial.kind) and trial.sha256 not in own]
    trials = [*(others if shipped else []), *own.values()]
    if json:
        for trial in trials:
            typer.echo(json_module.dumps(trial.to_json()))
    else:
        typer.echo(f"{known.place}: {len(own):,} trials" + f", and {len(others):,} that come with kshot" * shipped)
        for row in summary(trials):
            plans = [f"{name} {count}" for name, count in row["plans"].items()]
            more = f" and {len(plans) - MOST_PLANS} more plans" if len(plans) > MOST_PLANS else ""
            counts = f"{row['trials']:,} trials on {row['data_sets']:,} data sets, the latest of {row['latest'][:10]}"
            typer.echo(visible(f"{row['kind'] or 'unknown'}: {counts}; {', '.join(plans[:MOST_PLANS])}{more}"))
    _end(known)


@experience.command("export")
def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=f"A new file of {FILE}")],
    database: Database = None,
) -> None:
    """Write your trials to a file, for other machines or to keep. It can be read before it is given away."""
    from kshot.deciding.experience import Experience

    if path.exists():
        raise ValueError(f"{path} exists and is never written over; choose another file")
    known = Experience(database)
    typer.echo(f"{path}: {known.export(path):,} trials")
    _end(known)


@experience.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=f"A file of `kshot experience export`: {FILE}")],
    database: Database = None,
) -> None:
    """Add the trials of a file. Those that are known are not added again.

    Exit code: 0, or 2 if the file or the database cannot be read, or the file has lines that are no trial.
    """
    from kshot.app.errors import INVALID
    from kshot.deciding.experience import Experience, read_trials

    known, (trials, problems) = Experience(database), read_trials(path)
    added = known.merge(trials)
    if known.problem is None:
        typer.echo(f"{known.place}: {added:,} new trials of {len(trials):,}")
    for problem in problems:
        typer.echo(problem, err=True)
    _end(known)
    raise typer.Exit(INVALID if problems else 0)


@experience.command("forget")
def forget(
    kind: Annotated[str | None, typer.Option(help="Trials of this kind of task.")] = None,
    data_set: Annotated[str | None, typer.Option(help="Trials on this data set.")] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Trials before this date, as 2026-01-31.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All trials; a damaged file is moved aside.")] = False,
    database: Database = None,
) -> None:
    """Delete trials that meet all conditions. Those that come with kshot stay."""
    from kshot.deciding.experience import Experience

    if before is not None:
        from datetime import date

        try:
            date.fromisoformat(before)
        except ValueError:
            raise ValueError(f"--before is a date such as 2026-01-31; got {before!r}") from None
    if all_ == any(value is not None for value in (kind, data_set, before)):
        raise ValueError("name the trials to forget by --kind, --data-set or --before, or give --all alone")
    known = Experience(database)
    count = known.forget(kind=kind, data_set=data_set, before=before, everything=all_)
    if known.problem is None:
        typer.echo(f"{known.place}: {count:,} trials deleted")
    _end(known)


def summary(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """For each kind of task the numbers of trials, of data sets and of each plan, and the time of the latest trial."""
    kinds: dict[str, list[Trial]] = {}
    for trial in trials:
        kinds.setdefault(trial.kind, []).append(trial)
    return [
        {
            "kind": kind,
            "trials": len(members),
            "data_sets": len({trial.data_set for trial in members}),
            "plans": dict(Counter(_name(trial) for trial in members).most_common()),
            "latest": max(trial.created for trial in members),
        }
        for kind, members in sorted(kinds.items())
    ]


def _name(trial: Trial) -> str:
    """The name of a plan, or of its learner if it has none."""
    learner = trial.plan.get("learner", "")
    return str(trial.plan.get("name") or (learner.get("kind", "") if isinstance(learner, dict) else learner))


def _end(known: Experience) -> None:
    """Exit with the code for invalid input where the database could not be used, which was logged."""
    from kshot.app.errors import INVALID

    if known.problem is not None:
        raise typer.Exit(INVALID)
