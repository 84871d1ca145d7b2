"""How recipes are read: the file, its errors, and what a command line changes of it."""

import dataclasses
import errno
import re
from typing import ClassVar

import pytest
from recipe_text import write

from mkd_fast.checks.wording import is_ours
from mkd_fast.train.config import load
from mkd_fast.train.recipe import decisive_settings


def test_results_are_kept_under_what_decides_them_in_words_of_the_version_that_kept_them():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        AS_BEFORE: ClassVar[dict[str, int]] = {"passes": 1}
        rate: float = 0.5
        passes: int = 2

    assert decisive_settings(Settings(passes=1)) == {"rate": 0.5}
    assert decisive_settings(Settings()) == {"rate": 0.5, "passes": 2}


def test_whole_numbers_do_for_fractions(tmp_path):
    rate = load(write(tmp_path, "[train]\nlearning_rate = 1")).train.learning_rate
    assert (rate, type(rate)) == (1.0, float)


def test_the_recipe_is_named(tmp_path):
    path = write(tmp_path, "[train]\nepoch = 1")
    with pytest.raises(ValueError, match=re.escape(f"{path}: [train]: keys must be known")):
        load(path)


def test_a_recipe_that_is_not_utf8(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'[run]\nfolder = "\xff"')
    with pytest.raises(ValueError, match="must be TOML, got 'utf-8' codec"):
        load(path)


def test_a_missing_recipe(tmp_path):
    message = f"{tmp_path / 'absent.toml'} must be a recipe, a TOML file, got No such file"
    with pytest.raises(FileNotFoundError, match=re.escape(message)) as caught:
        load(tmp_path / "absent.toml")
    assert caught.value.errno == errno.ENOENT


def test_a_folder_for_a_recipe(tmp_path):
    with pytest.raises(IsADirectoryError, match="must be a recipe, a TOML file") as caught:
        load(tmp_path)
    assert is_ours(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("train.epochs", "7", 7),
        ("train.learning_rate", "1e-3", 1e-3),
        ("run.folder", "runs/my run", "runs/my run"),  # no quotes needed
        ("run.folder", '"runs/quoted"', "runs/quoted"),
        ("data.seen", '["en", "de"]', ("en", "de")),
        ("student.depth", "[0, 2]", (0, 2)),
        ("student.depth", "last", "last"),
        ("scratch.enabled", "false", False),
        ("teacher.model", "./a=b", "./a=b"),
    ],
)
def test_overrides_replace_what_the_recipe_says(tmp_path, name, value, wanted):
    path = write(tmp_path, '[run]\nfolder = "other"\n[train]\nepochs = 2')
    section, _, key = name.partition(".")
    assert getattr(getattr(load(path, {name: value}), section), key) == wanted


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("epochs", "3", ValueError, "--set takes section.key=value, got 'epochs'."),
        ("train.", "3", ValueError, "--set takes section.key=value, got 'train.'."),
        ("tran.epochs", "3", ValueError, "Did you mean 'train'?"),
        ("train.epoch", "3", ValueError, "Did you mean 'epochs'?"),
        ("train.epochs", "many", TypeError, "epochs must be int, got 'many'."),
        ("loss.x", "3", TypeError, "keys must stand in a section, got 'loss' outside of any."),
    ],
)
def test_overrides_are_checked_as_the_recipe_is(tmp_path, name, value, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        load(write(tmp_path, "loss = 1\n" if name == "loss.x" else ""), {name: value})
