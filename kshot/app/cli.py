"""The command line. Heavy imports are inside the commands, to keep `--help` fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from kshot.app.arguments import Invert, Override, Resize, RunDir
from kshot.app.completion import recipe_names, run_files
from kshot.app.data import data
from kshot.app.experience import experience

app = typer.Typer(
    help="Meta-learning for real tasks: pretrain, adapt, evaluate, decide, repeat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")
app.add_typer(experience, name="experience")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kshot {version('kshot')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Meta-learning for real tasks: pretrain, adapt, evaluate, decide, repeat."""


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE|FILE.yaml", help="A recipe's name, or a run file.", autocompletion=run_files),
    ],
    set_: Override = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; a new one under runs/ by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    init_from: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Start from the weights of another run's best round.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", help="Run once per seed, in folders seed-0, seed-1…, with a common report."),
    ] = None,
    processes: Annotated[
        str,
        typer.Option(
            metavar="N|auto", help="Processes that share the tasks of each step; auto: as many as are fastest."
        ),
    ] = "1",
    profile: Annotated[bool, typer.Option("--profile", help="Measure where the time of a round goes.")] = False,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Copy the folder to s3://…, gs://… or file://…; see --resume.")
    ] = None,
) -> None:
    """Pretrain, then train, evaluate and decide until the target is met; then test and report.

    Exit code: 0 if the target was met (by every seed) and the test does not contradict, 1 if not, 2 for invalid input,
    3 if an audit failed and the test figure is not to be trusted, 130 if interrupted, 143 if ended by SIGTERM or
    SIGUSR1, after a checkpoint.
    """
    from kshot.app.spec import load_spec

    spec = load_spec(recipe, set_)
    from rich.console import Console

    from kshot.app import processes as group
    from kshot.app.execute import execute
    from kshot.app.mirror import take_from_mirror
    from kshot.app.process_count import count_of, fastest_count
    from kshot.app.resumable import resumable
    from kshot.app.screen import Screen
    from kshot.app.seeds import parse_seeds

    count = count_of(processes)
    if (count != 1 or group.is_member()) and (seeds or spec.evaluate.folds):
        raise ValueError("several processes share one run: leave out --seeds and evaluate.folds, or --processes")
    if mirror and group.is_member() and not group.is_launched():
        raise ValueError(
            "--mirror goes with one process, or with --processes: torchrun's have no common folder to fill"
        )
    several = [] if seeds is None else parse_seeds(seeds)
    code, report = 0, None
    with resumable(out, spec.name, resume=resume) as folder:
        if count is None:
            count = fastest_count(spec, recipe, set_ or (), folder, resume=resume, say=Screen().print)
        if count > 1:
            words = ["run", recipe, "--out", str(folder), *(f"--set={each}" for each in set_ or ())]
            words += ["--resume"] * resume + ["--profile"] * profile
            words += [f"--init-from={init_from}"] if init_from else []
            if mirror is not None:
                take_from_mirror(mirror, folder, resume=resume)
                words.append(f"--mirror={mirror}")
            code = group.launch(words, count)
        else:
            with group.member(folder, resume) as (place, resume):
                console = Console(quiet=True) if group.is_silent() else None
                report = execute(
                    spec, place, seeds=several, resume=resume, init_from=init_from, profile=profile, mirror=mirror,
                    console=console,
                )  # fmt: skip
    if not report:
        raise typer.Exit(code)  # of other processes, or of this one, which only trained
    from kshot.app.terminal import print_summary
    from kshot.evaluation.report.conclusion import conclude

    print_summary(report, folder)
    raise typer.Exit(conclude(report).exit_code)


@app.command()
def auto(
    data_: Annotated[
        str,
        typer.Argument(
            metavar="FILE.yaml|RECIPE|DATA",
            help="A run file without a plan, a table, or a folder with a folder of images or texts for each class.",
            autocompletion=run_files,
        ),
    ],
    minutes: Annotated[float, typer.Option(help="Time for the whole.", min=0.1)] = 15.0,
    set_: Override = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; a new one under runs/ by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted call in --out.")] = False,
) -> None:
    """Choose a learner, a model and their settings within a time limit, and test the best once.

    Simple baselines are tried first; then learners in the order that experience suggests, those that do better on
    validation tasks for longer. If none is better than the best simple baseline, that one is kept.

    With few classes or groups, --set evaluate.folds=5 chooses and tests in five folds, so that each is tested once.

    Exit code: as of `kshot run`; 0 where no target is given.
    """
    from kshot.app.auto.command import auto as find
    from kshot.app.resumable import resumable
    from kshot.app.terminal import print_summary
    from kshot.evaluation.report.conclusion import conclude

    with resumable(out, f"auto-{Path(data_).stem}", resume=resume) as folder:
        report = find(data_, folder, minutes=minutes, overrides=set_ or (), resume=resume)
    print_summary(report, folder)
    raise typer.Exit(conclude(report).exit_code)


@app.command()
def sweep(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="FILE.yaml|RECIPE",
            help="A run file with a section 'search', or a recipe.",
            autocompletion=run_files,
        ),
    ],
    trials: Annotated[int, typer.Option(help="Number of trials, of all workers together.", min=1)] = 40,
    minutes: Annotated[float, typer.Option(help="Time for the search.", min=0.01)] = 30.0,
    workers: Annotated[int, typer.Option(help="Number of workers, of one thread each.", min=1)] = 2,
    launcher: Annotated[str, typer.Option(metavar="processes|ray", help="Where the workers are.")] = "processes",
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database that several calls share; a file in --out by default."),
    ] = None,
    set_: Override = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; a new one under runs/ by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted call in --out.")] = False,
) -> None:
    """Search over settings of a run file, on validation tasks, and test the best once.

    The section 'search' has a range or choices for each setting, such as train.outer_lr: {low: 0.0001, high: 0.01, log:
    true} or learner.kind: [maml, anil].

    Exit code: as of `kshot run`; 0 if the best trial is of another call that shares the study, which tests it.
    """
    from kshot.app.resumable import resumable
    from kshot.app.sweep.command import sweep as search
    from kshot.app.terminal import print_summary
    from kshot.evaluation.report.conclusion import conclude

    with resumable(out, f"sweep-{Path(recipe).stem}", resume=resume) as folder:
        report = search(
            recipe,
            folder,
            trials=trials,
            minutes=minutes,
            workers=workers,
            launcher=cast("Any", launcher),
            storage=storage,
            overrides=set_ or (),
            resume=resume,
        )
    if "test" not in report:
        raise typer.Exit
    print_summary(report, folder)
    raise typer.Exit(conclude(report).exit_code)


@app.command()
def evaluate(
    run_dir: RunDir,
    tasks: Annotated[int, typer.Option(help="Number of tasks.", min=2)] = 600,
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, report.json and tasks.csv; none by default.")
    ] = None,
    episodes_sha256: Annotated[
        str | None, typer.Option(metavar="HASH", help="Fail if the episodes have another hash.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Whether to evaluate the baselines too.")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Evaluate on other tasks, such as source.shots=5."),
    ] = None,
) -> None:
    """Evaluate the best round of a run on unseen tasks, with baselines without meta-learning.

    --set changes keys of source, target, evaluate and baselines, such as source.ways=20; the learner stays as it is.
    Exit code: 0, 2 for invalid input, 3 if an audit failed and the figures are not to be trusted.
    """
    from kshot.app.evaluate import evaluate_run

    report = evaluate_run(
        run_dir,
        num_tasks=tasks,
        split=split,
        as_json=json,
        out=out,
        episodes_sha256=episodes_sha256,
        with_baselines=baselines,
        overrides=set_,
    )
    raise typer.Exit(0 if report["trusted"] else 3)


@app.command()
def transfer(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs.")],
    to: Annotated[list[Path], typer.Option(help="A folder or file of other data; give the option for each.")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the reports.")],
    shots: Annotated[
        list[int] | None,
        typer.Option(help="Number of support examples, per class if any; give it for each. 1 and 5.", min=1),
    ] = None,
    tasks: Annotated[int, typer.Option(help="Number of tasks of each evaluation.", min=2)] = 600,
    baselines: Annotated[bool, typer.Option(help="Whether to evaluate the baselines too.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Take the evaluations that --out holds already.")] = False,
) -> None:
    """Evaluate runs on the tasks of other data sets: a table over data sets and numbers of shots.

    All classes or groups of the other data are test ones. Baselines are tuned on the run's own validation tasks.
    """
    from kshot.app.transfer import transfer_runs

    counts = sorted(set(shots or (1, 5)))
    transfer_runs(run_dirs, to, out, shots=counts, num_tasks=tasks, with_baselines=baselines, resume=resume)


@app.command()
def compare(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs, of several seeds, or of evaluations.")
    ],
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV file for the table, with unrounded numbers.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="HTML file for the table.")] = None,
) -> None:
    """Rank runs on the same test episodes by their figures, with costs and significant differences."""
    from kshot.app.screen import Screen
    from kshot.app.terminal import compare_runs

    compare_runs(run_dirs, csv, html, Screen())


@app.command()
def adapt(
    run_dir: RunDir,
    support: Annotated[Path, typer.Option(help="Folder with a folder of images for each class, a CSV, or a text.")],
    out: Annotated[Path, typer.Option(help="File for the adapted state.")],
    state: Annotated[Path | None, typer.Option(help="A state to extend by the examples, of new classes too.")] = None,
    resize: Resize = False,
    invert: Invert = False,
) -> None:
    """Adapt to a few of your own examples, and write the state.

    A CSV has the columns path,label for images (paths relative to the CSV), or numbers with the target in the last
    column. A run on running text takes a text file.
    """
    from kshot.app.apply import adapt_run

    adapt_run(run_dir, support, out, before=state, resize=resize, invert=invert)


@app.command(context_settings={"allow_extra_args": True})
def predict(
    context: typer.Context,
    run_dir: RunDir,
    state: Annotated[Path, typer.Option(help="State written by `kshot adapt`.")],
    inputs: Annotated[list[Path], typer.Option(help="Images, folders of images, tables, or texts: one or more.")],
    resize: Resize = False,
    invert: Invert = False,
    masks: Annotated[Path | None, typer.Option(help="Folder for a predicted mask of each image, as PNG.")] = None,
) -> None:
    """Predict with an adapted state; CSV on standard output. For texts: the bits of each window.

    An input that cannot be read does not stop the others: the column error says why. Exit code: 0, or 2 if there are
    such inputs, or nothing can be predicted.
    """
    from kshot.app.apply import predict_run
    from kshot.app.errors import INVALID

    inputs = [*inputs, *map(Path, context.args)]  # all names after --inputs
    raise typer.Exit(INVALID if predict_run(run_dir, state, inputs, resize=resize, invert=invert, masks=masks) else 0)


@app.command()
def recommend(
    run_dir: RunDir,
    user: Annotated[
        Path | None, typer.Option(help="CSV with a row for each known rating: item, rating, as in training.")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of items.", min=1)] = 10,
    ask: Annotated[int, typer.Option(help="Number of items to suggest asking the user about.", min=0)] = 1,
    interview: Annotated[
        int,
        typer.Option(metavar="N", help="First ask for N ratings, each item selected by the previous answers.", min=0),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="CSV file for the ratings of the interview.")] = None,
    personal: Annotated[
        float, typer.Option(help="Weight of what the user's ratings change; 0 orders by expected rating.", min=0)
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items that a user has not rated, with reasons, and items to ask the user about next."""
    from kshot.app import recommend as recommending
    from kshot.app.screen import Screen

    if interview:
        recommending.interview(
            run_dir,
            user,
            count=interview,
            top=top,
            out=out,
            answer=lambda question: typer.prompt(question, default="", show_default=False),
            console=Screen(),
        )
    else:
        recommending.recommend_run(run_dir, user, top=top, ask=ask, as_json=json, personal=personal)


@app.command()
def generate(
    run_dir: RunDir,
    state: Annotated[Path, typer.Option(help="State written by `kshot adapt`, of the author to imitate.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    length: Annotated[int, typer.Option(help="Number of characters (or bytes) to generate.", min=1)] = 500,
    temperature: Annotated[float, typer.Option(help="Below 1 favours likely symbols; 0 takes the likeliest.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Sample from the fewest symbols with this total probability.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Random seed of sampling.")] = 0,
) -> None:
    """Continue a prompt in the style of an author, by a state adapted to a page of theirs (source corpus)."""
    from kshot.app.apply import generate_run

    generate_run(run_dir, state, prompt, length=length, temperature=temperature, top_p=top_p, seed=seed)


@app.command()
def export(
    run_dir: RunDir,
    onnx: Annotated[
        Path | None,
        typer.Option(help="A folder for predict.onnx and adapt.onnx, or a file NAME.onnx for predict alone."),
    ] = None,
    browser: Annotated[
        Path | None,
        typer.Option(metavar="PAGE.html", help="One page that adapts and predicts in a browser, without a network."),
    ] = None,
    keras: Annotated[
        Path | None, typer.Option(help="A file .keras, or .weights.h5 for the weights alone, of a Keras model.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="State of `kshot adapt`, to be part of what is written.")] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(help="For --browser: onnxruntime-web of npm, packed or as a folder; by default in the cache."),
    ] = None,
) -> None:
    """Write a trained run for use without torch: graphs of ONNX, a page for browsers, or a Keras model for any backend.

    A learner that adapts by gradient steps exports predict alone to ONNX, and says so. A Keras model comes with its
    inner steps as JSON. Preprocessing is part of a page, and not of the others.
    """
    from kshot.app.export import export_run

    for sentence in export_run(run_dir, onnx=onnx, browser=browser, keras=keras, state=state, runtime=onnxruntime_web):
        typer.echo(sentence)


@app.command()
def doctor(
    path: Annotated[Path, typer.Argument(metavar="RUN_DIR|STATE", help="Folder of a run, or a state of `adapt`.")],
) -> None:
    """Find what is damaged in a run folder, and say what can be saved. Nothing is changed.

    Exit code: 0, 2 if something is damaged.
    """
    from kshot.app.doctor import doctor_run
    from kshot.app.errors import INVALID
    from kshot.app.screen import Screen

    raise typer.Exit(INVALID if doctor_run(path, Screen()) else 0)


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="Print this one, to start your own from.", autocompletion=recipe_names),
    ] = None,
) -> None:
    """List the recipes that come with kshot, or print one."""
    from kshot.app.importing import nearest
    from kshot.app.spec import recipes as known
    from kshot.yaml_files import parse_yaml

    texts = known()
    if name is not None:
        if name not in texts:
            raise ValueError(f"there is no recipe {name!r}{nearest(name, texts)}; `kshot recipes` lists them")
        typer.echo(texts[name], nl=False)
        return
    for name, text in texts.items():
        typer.echo(f"{name:<{max(map(len, texts))}}  {parse_yaml(text, name).values['about']}")


def main() -> None:
    """Run the command line; see `kshot.app.errors` for the exit codes. Errors are a sentence on standard error."""
    from kshot.app.errors import exit_code, prepare_streams, sentence
    from kshot.app.processes import note_exit_code, says_errors
    from kshot.app.screen import visible

    prepare_streams()
    try:
        app()
    except SystemExit as stop:
        sys.exit(note_exit_code(stop.code))
    except Exception as error:
        if says_errors():
            typer.echo(f"kshot: {visible(sentence(error))}", err=True)
        lost = isinstance(error, ConnectionError)  # another process, so that torchrun shall start all again
        sys.exit(exit_code(error) if lost else note_exit_code(exit_code(error)))
