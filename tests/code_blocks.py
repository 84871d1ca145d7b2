"""Runs the code of a Markdown page, block after block, as somebody who reads it would.

Python shares one namespace, files one folder, so that each block goes on from those before it.
``bash`` holds commands, ``console`` commands after ``$`` and what they print. A recipe in ``toml``
is loaded, and written to the folder where its first line is its name, as in ``# recipe.toml``.
``text`` is what the block before it prints. HTML comments, which readers do not see, say the rest:

    <!-- setup: python          code that is run, but not shown; up to the end of the comment
    <!-- appended: ARGUMENTS    to each mkd-fast command of the next block, so that it is short
    <!-- not run: REASON        the next block is not run; its mkd-fast commands are only parsed
    <!-- not compared: REASON   the next ``text`` changes from run to run

What is neither run nor marked is an error.
"""

import contextlib
import glob
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from cli_call import call
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from mkd_fast.cli import app
from mkd_fast.cli_common import overrides
from mkd_fast.study import config as study_config
from mkd_fast.train import config as train_config

ROOT = Path(__file__).parents[1]
COMMENT = re.compile(r"<!-- (setup|appended|not run|not compared)\b:?")
_PROGRESS = re.compile(r"^  .* \d+:\d\d left\n", re.MULTILINE)  # a terminal wipes it away
_ASSIGNMENT = re.compile(r"(\w+)=(.*)")


class BlockError(Exception):
    """A block that does not do what its page says: where, and what is wrong."""


@dataclass(frozen=True)
class Block:
    """A piece of a page's code.

    Attributes:
        page: the file.
        line: number of its first line.
        language: as the fence says; that of a set-up is ``python``.
        code: what stands between the fences.
        notes: of the comments before it, by their first words.
    """

    page: Path
    line: int
    language: str
    code: str
    notes: dict[str, str] = field(default_factory=dict)

    def error(self, what: object) -> BlockError:
        """An error that names the place."""
        return BlockError(f"{self.page.name}:{self.line}: {what}")


def blocks_of(page: Path) -> Iterator[Block]:
    """Every block of a page, set-ups too, in order."""
    lines = enumerate(page.read_text("utf-8").splitlines(), 1)
    notes: dict[str, str] = {}
    for number, line in lines:
        if (found := COMMENT.match(line)) is not None:
            text = line[found.end() :]
            while "-->" not in text:
                text += "\n" + next(lines)[1]
            text = text.partition("-->")[0].strip()
            if found[1] == "setup":
                yield Block(page, number + 1, "python", text.removeprefix("python"))
            else:
                notes[found[1]] = text
        elif line.startswith("```"):
            code = _until_fence(lines)
            yield Block(page, number + 1, line[3:].strip(), "\n".join(code) + "\n", notes)
            notes = {}


def _until_fence(lines: Iterator[tuple[int, str]]) -> list[str]:
    found = []
    for _, line in lines:
        if line.startswith("```"):
            return found
        found.append(line)
    return found


def run_page(page: Path, folder: Path) -> list[str]:
    """Run all blocks of a page in a folder; what was not run, and why.

    Raises:
        BlockError: a block fails, prints something else, or is neither run nor marked.
    """
    reader = _Reader({"__name__": page.stem})
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        patch.setenv("MKD_FAST_HOME", str(folder / "home"))
        for block in blocks_of(page):
            reader.take(block)
    return reader.not_run


@dataclass
class _Reader:
    """Somebody at the keyboard.

    Attributes:
        names: what Python code has defined so far.
        printed: by the last block.
        not_run: a line for each block that was passed over.
    """

    names: dict[str, Any]
    printed: str = ""
    not_run: list[str] = field(default_factory=list)

    def take(self, block: Block) -> None:
        """Do what a block says."""
        for note in ("not run", "not compared"):
            if note in block.notes:
                if not block.notes[note]:
                    raise block.error(f"a reason is missing: <!-- {note}: REASON -->")
                where = f"{block.page.name}:{block.line}"
                self.not_run.append(f"{where} {note}: {block.notes[note]}")
        if block.language == "text":
            self._compare(block)
        elif block.language in ("bash", "console"):
            self._commands(block)
        elif "not run" in block.notes:
            pass
        elif block.language == "python":
            self._python(block)
        elif block.language == "toml":
            _recipe(block)
        else:
            raise block.error(f"a block of {block.language!r} needs <!-- not run: REASON -->")

    def _python(self, block: Block) -> None:
        code = "\n" * (block.line - 1) + block.code  # so that a traceback has the page's lines
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(code, str(block.page), "exec"), self.names)
        except Exception as error:
            raise block.error(repr(error)) from error
        self.printed = output.getvalue()

    def _compare(self, block: Block) -> None:
        if "not compared" not in block.notes and block.code.rstrip() != self.printed.rstrip():
            raise block.error(f"what is printed is\n{self.printed}")

    def _commands(self, block: Block) -> None:
        printed = []
        for command, shown in _commands_of(block):
            environment, words = _split(command)
            if not words:
                continue
            if words[0] == "mkd-fast":
                words += shlex.split(block.notes.get("appended", ""))
                _check(block, words[1:])
            if "not run" in block.notes:
                _check_names(block, words)
                continue
            if words[0] != "mkd-fast":
                raise block.error(f"{words[0]} is not run here: <!-- not run: REASON -->")
            printed.append(_called(block, words[1:], environment))
            if shown and shown.rstrip() != printed[-1].rstrip():
                raise block.error(f"{command} prints\n{printed[-1]}")
        self.printed = "".join(printed)


def _commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """Each command, on one line, and what the page says that it prints."""
    code = block.code.replace("\\\n", " ")
    if block.language == "bash":
        yield from ((line, "") for line in code.splitlines())
        return
    if not code.startswith("$ "):
        raise block.error("console begins with a command: $ mkd-fast ...")
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def _split(command: str) -> tuple[dict[str, str], list[str]]:
    """A command's environment and its words, patterns of files replaced by what they match."""
    words, environment = shlex.split(command, comments=True), {}
    while words and (found := _ASSIGNMENT.fullmatch(words[0])):
        environment[found[1]] = found[2]
        words = words[1:]
    return environment, [name for word in words for name in sorted(glob.glob(word)) or [word]]


def _check(block: Block, words: list[str]) -> None:
    """Parse a command as ``mkd-fast`` does, and load the recipe that it names, if any."""
    command, context = get_command(app), None
    try:
        while isinstance(command, TyperGroup):
            context = typer.Context(command, context, info_name="mkd-fast")
            _, command, words = command.resolve_command(context, words)
        arguments = command.make_context("mkd-fast", list(words), context).params
    except TyperException as error:
        raise block.error(error.format_message()) from error
    if (recipe := arguments.get("recipe")) is None:
        return
    path = next((path for path in (recipe, ROOT / recipe) if path.exists()), None)
    if path is None:
        raise block.error(f"there is no {recipe}, neither here nor in the repository")
    load = study_config.load if command.name == "study" else train_config.load
    try:
        load(path, overrides(arguments["set_"]))
    except (ValueError, TypeError) as error:
        raise block.error(error) from error


def _check_names(block: Block, words: list[str]) -> None:
    """Files of the repository and modules that a command names exist."""
    for previous, word in zip(["", *words], words, strict=False):
        is_file = re.fullmatch(r"(?:recipes|examples|benchmarks)/[\w/.-]+", word)
        if is_file and not (ROOT / word).exists():
            raise block.error(f"there is no {word}")
        if previous == "-m" and word.startswith("mkd_fast") and not importlib.util.find_spec(word):
            raise block.error(f"there is no module {word}")


def _called(block: Block, words: list[str], environment: dict[str, str]) -> str:
    """What the command prints, its bars left out."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        result = call(*words)
    if result.exit_code:
        message = result.output or repr(result.exception)
        raise block.error(f"mkd-fast {' '.join(words)}: exit code {result.exit_code}\n{message}")
    return _PROGRESS.sub("", result.stdout)


def _recipe(block: Block) -> None:
    named = re.match(r"# ([\w./-]+\.toml)\b", block.code)
    path = Path(named[1] if named else "unnamed.toml")
    path.write_text(block.code, encoding="utf-8")
    load = study_config.load if "[study]" in block.code else train_config.load
    try:
        load(path)
    except (ValueError, TypeError) as error:
        raise block.error(error) from error
