"""Real sentences in several languages without a hub, for causal and masked language models.

They are what Home Assistant tells its users (PyPI package ``homeassistant``, Apache-2.0, 51 MB,
fetched once and not installed): descriptions and messages of some 700 integrations, translated
by volunteers. A document is what one integration says in one language, mostly a paragraph; the
same integration says about the same in each of its languages. This is a narrow domain in a
plain style: 300 to 600 kB a language (French 180 kB), enough to compare losses and teachers on,
too little to pretrain on.
"""

import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mkd_fast.checks import data as checks
from mkd_fast.packaged import Wheel, fetch, home_folder

LANGUAGES = ("en", "de", "fr", "es", "ru", "zh")
WHEEL = Wheel(
    package="homeassistant",
    version="2026.2.3",
    sha256="8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c",
)

_MEMBER = re.compile(
    r"homeassistant/components/(?P<integration>.+)/translations/(?P<language>.+)\.json"
)
_NAMES_IN_WHEEL = {"zh": "zh-Hans"}
_SENTENCE = re.compile(r".*[.!?…。！？][\"'»”」)]?")
# What is filled in later, and links: no text.
_MARKUP = re.compile(r"[{}<>\[\]]|https?:")


def running_text(
    languages: Sequence[str] = LANGUAGES, *, max_bytes: int | None = None
) -> dict[str, list[str]]:
    """Return the documents of each language, sorted by integration; no sentence occurs twice.

    Args:
        languages: names such as ``"de"`` or ``"pt-BR"``; ``"zh"`` is short for ``"zh-Hans"``.
        max_bytes: per language, stop before the document that would pass it (UTF-8); None: all.

    Returns:
        By language (in the order asked for) its documents: sentences, each on its own line.

    Raises:
        ValueError: a language that the package lacks.
        RuntimeError: pip could not fetch exactly the pinned wheel.
    """
    return {
        language: list(_first(texts.values(), max_bytes))
        for language, texts in named_documents(languages).items()
    }


def named_documents(languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """The same, all of it, each document by the name of its integration.

    Arguments and errors as ``running_text``.
    """
    with zipfile.ZipFile(_wheel()) as archive:
        members = _members(archive)
        for language in languages:
            if _NAMES_IN_WHEEL.get(language, language) not in members:
                raise checks.unknown_text_language(language, sorted(members))
        # A translation keeps the English sentence where nobody has translated it yet.
        english = {
            line for _, text in _documents(archive, members["en"]) for line in text.split("\n")
        }
        return {
            language: dict(
                _documents(
                    archive,
                    members[_NAMES_IN_WHEEL.get(language, language)],
                    without=english if language != "en" else set(),
                )
            )
            for language in languages
        }


def _wheel() -> Path:
    """The wheel in the home folder, downloaded if it is not there."""
    folder = home_folder() / "text"
    kept = folder / f"{WHEEL.package}-{WHEEL.version}.whl"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            fetch(WHEEL, Path(scratch)).replace(kept)
    return kept


def _members(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    """The files of each language, sorted."""
    members: dict[str, list[str]] = {}
    for name in sorted(archive.namelist()):
        if match := _MEMBER.fullmatch(name):
            members.setdefault(match["language"], []).append(name)
    return members


def _documents(
    archive: zipfile.ZipFile, members: Iterable[str], without: Iterable[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each integration's name, and what is new in its file.

    No sentence comes twice, and none of ``without``.
    """
    seen = set(without)
    for member in members:
        said = dict.fromkeys(_sentences(json.loads(archive.read(member))))
        new = [sentence for sentence in said if sentence not in seen]
        seen.update(new)
        if new:
            match = _MEMBER.fullmatch(member)
            assert match is not None, "_members() found it"
            yield match["integration"], "\n".join(new)


def _sentences(strings: Any) -> Iterator[str]:
    """Walk through nested mappings of strings, and leave out labels and what has markup."""
    if isinstance(strings, dict):
        for value in strings.values():
            yield from _sentences(value)
    else:
        text = " ".join(strings.split())
        if _SENTENCE.fullmatch(text) and not _MARKUP.search(text):
            yield text


def _first(documents: Iterable[str], max_bytes: int | None) -> Iterator[str]:
    num_bytes = 0
    for document in documents:
        num_bytes += len(document.encode())
        if max_bytes is not None and num_bytes > max_bytes:
            return
        yield document
