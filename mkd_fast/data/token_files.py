"""Tokens of a text, written once and mapped into memory ever after.

A folder of ``.npy`` files, an array each, and ``about.json``, written last: what the tokens are of,
and the sha256 of each file. So a restart does not tokenise again, and the system keeps in memory
what is being read and lets go of the rest. Files are read through once when they are opened, to
compare their sums; where one does not agree, or they are of another text, tokenizer or setting,
they are made anew.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mkd_fast.data.causal import CausalText
from mkd_fast.data.masked import MaskedText
from mkd_fast.data.tokens import TokenisedText, TokenisedWords
from mkd_fast.files import make_folder, read_json, replacing, sha256_of_file, write_json

ABOUT = "about.json"
_VERSION = 1
_CLASSES = {kind.__name__: kind for kind in (TokenisedText, TokenisedWords, MaskedText, CausalText)}
T = TypeVar("T", bound=TokenisedText)


def mapped_tokens(
    folder: Path,
    what: Mapping[str, Any],
    make: Callable[[], T],
    tell: Callable[[str], None] = lambda _: None,
) -> T:
    """The tokens that a folder holds of ``what``, made and written there if need be.

    Args:
        folder: of the tokens of any texts; these get one of their own in it.
        what: all that decides what the tokens are: fingerprints and settings, as JSON has them.
        make: tokenises.
        tell: is told why tokens that are there are made anew.

    Raises:
        OSError: the disk is full or not writable; no half-written tokens are taken for whole.
    """
    key = json.dumps({"version": _VERSION, **what}, sort_keys=True)
    own = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    found, fault = _opened(own, key)
    if found is None:
        if fault:
            tell(f"{own} is made anew: {fault}")
        _write(make(), own, key)
        found, fault = _opened(own, key)
    assert found is not None, fault
    return found  # type: ignore[return-value]  # of the class that was written


def _write(tokens: TokenisedText, folder: Path, key: str) -> None:
    make_folder(folder)
    (folder / ABOUT).unlink(missing_ok=True)
    sums, numbers = {}, {}
    for field in dataclasses.fields(tokens):
        value = getattr(tokens, field.name)
        if isinstance(value, np.ndarray):
            path = folder / f"{field.name}.npy"
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, value, allow_pickle=False)
            sums[field.name] = sha256_of_file(path)
        else:
            numbers[field.name] = int(value)
    about = {"of": key, "class": type(tokens).__name__, "sha256": sums, "numbers": numbers}
    write_json(folder / ABOUT, about)


def _opened(folder: Path, key: str) -> tuple[TokenisedText | None, str]:
    """Tokens that are whole, or what is wrong with those that are there."""
    try:
        about = read_json(folder / ABOUT)
        if about is None:
            return None, ""
        if about["of"] != key:
            return None, "it is of another text, tokenizer or setting"
        for name, wanted in about["sha256"].items():
            if sha256_of_file(folder / f"{name}.npy") != wanted:
                return None, f"{name}.npy is damaged"
        fields: dict[str, Any] = {n: _mapped(folder / f"{n}.npy") for n in about["sha256"]}
        return _CLASSES[about["class"]](**fields, **about["numbers"]), ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{ABOUT} or a file it names cannot be read ({error})"


def _mapped(path: Path) -> "np.ndarray[Any, Any]":
    """An array whose pages are read when they are used; whoever writes to it writes to a copy."""
    if np.load(path, allow_pickle=False, mmap_mode="r").size == 0:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    return np.asarray(np.load(path, allow_pickle=False, mmap_mode="c"))
