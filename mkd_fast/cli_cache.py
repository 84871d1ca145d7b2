"""``mkd-fast cache ...``: look at what a teacher left on disk, check it, mend it, hand it on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mkd_fast.checks import cache as checks
from mkd_fast.cli_common import Settings, overrides, reports_errors

if TYPE_CHECKING:
    from mkd_fast.teacher.cache.manifest import Manifest

cache = typer.Typer(no_args_is_help=True, help="Look at, check, mend and hand on a teacher cache.")

Cache = Annotated[Path, typer.Argument(help="A cache's folder.")]
_reports_errors = reports_errors("Stopped. No finished file was lost.")
T = TypeVar("T")


def _shown(name: str, items: Sequence[T], size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """The same items, with a bar of how much is done."""
    from mkd_fast import progress

    with progress.bar(name, sum(map(size, items))) as bar:
        yield from bar.over(items, size)


@cache.command()
@_reports_errors
def info(path: Cache) -> None:
    """Show what a cache holds, its bytes per token, and where it comes from."""
    from mkd_fast.teacher.cache.reader import TeacherCache
    from mkd_fast.teacher.cache.summary import read_unfinished

    state, manifest = "unfinished; capture goes on from here", read_unfinished(path)
    if manifest is None:
        state, manifest = "finished", TeacherCache.open(path).manifest
    for section, entries in _description(manifest, state).items():
        typer.echo(section)
        width = max(map(len, entries))
        for name, value in entries.items():
            typer.echo(f"  {name:<{width}}  {value}")


def _description(manifest: "Manifest", state: str) -> dict[str, Mapping[str, object]]:
    from mkd_fast.teacher.cache.summary import summarise

    plan, outputs, summary = manifest.plan, manifest.outputs, summarise(manifest)
    layers = " ".join(map(str, summary.hidden_layers))
    sizes = {**summary.bytes_per_token, "together": sum(summary.bytes_per_token.values())}
    return {
        "cache": {
            "state": state,
            "kept": ", ".join(summary.keep),
            "hidden layers": f"{layers} in {plan.hidden_dtype}" if layers else "none",
            "temperatures": " ".join(map(str, summary.temperatures)) or "any",
            "samples": f"{summary.num_samples:,}",
            "tokens": f"{summary.num_tokens:,}",
            "shards": f"{len(manifest.shards):,}",
            "bytes": f"{summary.num_bytes:,}",
            "of the head": f"{summary.head_bytes:,}",
        },
        "teacher": {
            "columns": f"{outputs.num_columns:,}",
            "softcap": outputs.softcap or "none",
            "logit scale": outputs.logit_scale,
        },
        "fingerprints": {n: v or "not recorded" for n, v in asdict(plan.fingerprints).items()},
        "bytes per token": {part: f"{size:10,.2f}" for part, size in sizes.items()},
    }


@cache.command()
@_reports_errors
def verify(path: Cache) -> None:
    """Read every byte and compare it with its checksum: a line and exit code 1 for damage."""
    from mkd_fast.teacher.cache.verify import verify

    if not path.exists():
        raise checks.missing_cache(path)
    damages = verify(path, lambda files: _shown("verify", files))
    for damage in damages:
        typer.echo(f"{damage.file}: {damage.reason}")
    if damages:
        raise typer.Exit(1)
    typer.echo("every file is as it was written")


@cache.command()
@_reports_errors
def repair(
    path: Cache,
    recipe: Annotated[
        Path | None, typer.Option(help="Where teacher and text are, if shards must be redone.")
    ] = None,
    set_: Settings = None,
) -> None:
    """Write what is damaged again, byte for byte as it was."""
    if recipe is None:
        from mkd_fast.teacher.repair import repair

        damages = repair(path)
    else:
        from mkd_fast.train.config import load
        from mkd_fast.train.run import Run

        damages = Run(load(recipe, overrides(set_))).repair(path)
    for damage in damages:
        typer.echo(f"repaired {damage.file}: {damage.reason}")
    if not damages:
        typer.echo("every file is as it was written")


@cache.command()
@_reports_errors
def merge(
    out: Annotated[Path, typer.Argument(help="The new cache's folder.")],
    paths: Annotated[list[Path], typer.Argument(help="Finished caches, in order.")],
) -> None:
    """Make one cache of several captures of the same teacher."""
    from mkd_fast.teacher.cache.merge import merge

    merged = merge(paths, out)
    typer.echo(f"{len(merged):,} samples in {out}")


@cache.command()
@_reports_errors
def export(
    path: Cache,
    file: Annotated[Path, typer.Argument(help="Ends in .parquet or .arrow.")],
) -> None:
    """Write the records for other tools: a row a sample, decoded."""
    from mkd_fast.teacher.cache.reader import TeacherCache
    from mkd_fast.teacher.exchange import export

    export(TeacherCache.open(path), file, lambda groups: _shown("export", groups, len))


@cache.command("import")
@_reports_errors
def import_(
    files: Annotated[list[Path], typer.Argument(help="JSONL or Parquet; a row a sample.")],
    out: Annotated[Path, typer.Argument(help="The new cache's folder.")],
    vocab_size: Annotated[int, typer.Option(help="Columns of the teacher's logits.")],
    top_k: Annotated[int, typer.Option(help="Largest log-probabilities kept of a token.")] = 20,
    teacher: Annotated[
        str | None, typer.Option(help="Recorded as its fingerprint, e.g. name and revision.")
    ] = None,
) -> None:
    """Make a cache of top-k log-probabilities that an inference server returned."""
    from mkd_fast import progress
    from mkd_fast.teacher.cache.fingerprint import Fingerprints
    from mkd_fast.teacher.row_files import count_rows, read_rows
    from mkd_fast.teacher.served import import_logprobs

    with progress.bar("import", count_rows(files)) as bar:
        import_logprobs(
            read_rows(files),
            out,
            top_k=top_k,
            vocab_size=vocab_size,
            fingerprints=Fingerprints(teacher=teacher),
            progress=lambda state: bar.update(state.num_samples, f"{state.num_tokens:,} tokens"),
        )
