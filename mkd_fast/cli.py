"""``mkd-fast``: the stages of a run one by one or all at once, and what this machine can do."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mkd_fast.cli_cache import cache
from mkd_fast.cli_common import Settings, overrides, reports_errors

if TYPE_CHECKING:
    from mkd_fast.train.run import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil large multilingual transformers into small ones.",
)
app.add_typer(cache, name="cache")

RunFolder = Annotated[Path, typer.Argument(help="A run.folder of mkd-fast distill.")]
ModelName = Annotated[str, typer.Option("--model", help="student, or scratch.")]
Recipe = Annotated[Path, typer.Argument(help="A TOML file; see recipes/.")]
_reports_errors = reports_errors("Stopped. The same command goes on from the last checkpoint.")


def _run(recipe: Path, settings: list[str] | None) -> "Run":
    from mkd_fast.train.config import load
    from mkd_fast.train.run import Run

    return Run(load(recipe, overrides(settings)))


@app.command()
@_reports_errors
def distill(recipe: Recipe, set_: Settings = None) -> None:
    """Run a whole recipe: data, teacher, capture, student, train, evaluate."""
    from mkd_fast.train.stages import distill

    distill(recipe, overrides(set_))


@app.command()
@_reports_errors
def capture(
    recipe: Recipe,
    set_: Settings = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Run the teacher layer by layer in this much, e.g. 2GiB.")
    ] = None,
) -> None:
    """Fine-tune the teacher if need be, and write its outputs to the cache."""
    of_memory = [] if max_memory is None else [f"capture.max_memory={max_memory}"]
    _ = _run(recipe, [*(set_ or []), *of_memory]).cache


@app.command()
@_reports_errors
def student(recipe: Recipe, set_: Settings = None) -> None:
    """Copy-initialise the student from the fine-tuned teacher, and say what came from where."""
    typer.echo(_run(recipe, set_).origins)


@app.command()
@_reports_errors
def train(recipe: Recipe, set_: Settings = None) -> None:
    """Train the student, and its rival from scratch, from the cache."""
    from mkd_fast.train.stages import train

    train(_run(recipe, set_))


@app.command()
@_reports_errors
def evaluate(recipe: Recipe, set_: Settings = None) -> None:
    """Score every model of the run and write the report and plots."""
    from mkd_fast.train.stages import evaluate

    evaluate(_run(recipe, set_))


@app.command()
@reports_errors("Stopped.")
def plan(
    recipe: Recipe,
    memory: Annotated[
        str | None, typer.Option(help="What there is, e.g. 8GiB; of the GPU if on one.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of every sample: reads no text, and no tokenizer.")
    ] = None,
    set_: Settings = None,
) -> None:
    """Predict each stage's peak memory, and what makes it fit: exit code 1 if one does not."""
    from mkd_fast.checks.wording import positive
    from mkd_fast.train.config import load, num_bytes
    from mkd_fast.train.planning.plan import plan

    if length is not None:
        positive("plan", "--length", length)
    memory_bytes = None if memory is None else num_bytes("plan", "--memory", memory)
    found = plan(load(recipe, overrides(set_)), memory_bytes, length)
    typer.echo(str(found))
    if not found.fits:
        raise typer.Exit(1)


@app.command()
@reports_errors("Stopped. The same command goes on with the cell that was at work.")
def study(
    recipe: Recipe,
    set_: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many cells are missing, and how long.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Begin nothing that would end later, e.g. 60min or 2h.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the report goes, e.g. docs/study/intents.")
    ] = None,
) -> None:
    """Train every student of a grid that is not trained yet, and report what they show."""
    from mkd_fast.study.pace import parse_duration
    from mkd_fast.study.report import write_report
    from mkd_fast.study.run import predict
    from mkd_fast.study.run import study as run_study

    seconds = None if budget is None else parse_duration(budget)
    if dry_run:
        typer.echo(str(predict(recipe, overrides(set_))))
        return
    state = run_study(recipe, overrides(set_), budget_seconds=seconds)
    typer.echo(str(state))
    if state.num_finished > state.num_failed:
        write_report(state.folder, out or state.folder)


@app.command()
@reports_errors("Stopped.")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("runs.html"),
) -> None:
    """Compare runs in one HTML page: settings, scores per language, sizes, times, loss curves."""
    from mkd_fast.sharing.compare import write_comparison

    write_comparison(runs, out)
    typer.echo(str(out))


@app.command()
@reports_errors("Stopped watching; the run goes on.")
def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Show it as it is and end.")] = False,
) -> None:
    """Show a run's training as it goes: losses, tokens/s, waiting, time left."""
    from mkd_fast.sharing.watch import watch

    watch(run, once=once)


@app.command()
@reports_errors("Stopped. What was uploaded stays; the same command goes on.")
def push(
    run: RunFolder,
    repo: Annotated[str, typer.Option(help="Name of the repository, or owner/name.")],
    model: ModelName = "student",
    private: Annotated[bool, typer.Option("--private", help="Make it for few to see.")] = False,
) -> None:
    """Upload a finished run's student, with its card, to the hub."""
    from mkd_fast.sharing.push import push

    typer.echo(push(run, repo, model=model, private=private))


@app.command()
@reports_errors("Stopped. Nothing half-written was kept.")
def export(
    run: RunFolder,
    model: ModelName = "student",
    format_: Annotated[Literal["onnx"], typer.Option("--format", help="Of the file.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="A new folder; else RUN/onnx/MODEL.")] = None,
) -> None:
    """Write a finished run's student as ONNX: checked against torch on test text, and timed."""
    from mkd_fast.sharing.onnx import export

    typer.echo(str(export(run, model=model, out=out)))


@app.command()
@_reports_errors
def info() -> None:
    """Show versions, devices, and which kernels are built or why not."""
    from mkd_fast.environment import environment

    for section, entries in environment().items():
        typer.echo(section)
        for name, value in entries.items():
            typer.echo(f"  {name:<14} {value}")


@app.command()
@_reports_errors
def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="All of them if none is named.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    tiny: Annotated[bool, typer.Option("--tiny", help="Show that it runs, not how fast.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the ratios as SVG.")] = False,
    without: Annotated[
        list[str] | None, typer.Option(metavar="RIVAL", help="Leave out, e.g. torch.compile.")
    ] = None,
) -> None:
    """Time every kernel beside its rivals, as a share of the machine's limit."""
    from mkd_fast.benchmarks.run import bench

    bench(ops or [], out, is_tiny=tiny, plots=plot, rivals_left_out=without or [])


def main() -> None:
    """Entry point of ``mkd-fast``."""
    sys.exit(app())
