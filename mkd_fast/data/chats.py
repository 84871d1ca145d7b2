"""Chats: what people and an assistant say in turn, and which of it the assistant said.

Files are JSONL or Parquet with the columns ``messages``, a list of ``role`` and ``content`` each,
and ``language``. A tokenizer's chat template writes them as text. Its ``generation`` blocks say
what of that is the assistant's; where it has none, an answer is what it writes of a chat up to it,
less what it writes of the chat before it with the prompt to answer. A template that makes these
disagree with the chat is refused: a mask that is a little off trains a little on other things.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mkd_fast.checks import chats as checks
from mkd_fast.data.tables import HubSource, column_names, read_table, strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COLUMNS = ("messages", "language")
SUFFIXES = (".jsonl", ".parquet")
ASSISTANT = "assistant"
Message = dict[str, str]
Span = tuple[int, int]
# As transformers finds it.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Chats:
    """Chats with a language each; every one has an answer."""

    chats: list[list[Message]]
    languages: list[str]
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of chats."""
        return len(self.chats)

    @property
    def texts(self) -> list[str]:
        """What is said, without who says it."""
        return ["\n".join(message["content"] for message in chat) for chat in self.chats]

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of chats and languages, in their order."""
        content = ("chats", self.chats, self.languages)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def languages_present(self) -> tuple[str, ...]:
        """The languages, each once, sorted."""
        return tuple(sorted(set(self.languages)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The chats as rows that ``json`` writes and ``load_chats`` reads."""
        for chat, language in zip(self.chats, self.languages, strict=True):
            yield {"messages": chat, "language": language}

    def select(self, indices: Iterable[int]) -> Self:
        """Return the chats at ``indices``, in that order."""
        rows = list(indices)
        return type(self)([self.chats[row] for row in rows], [self.languages[row] for row in rows])


def has_chats(source: str | Path | HubSource) -> bool:
    """Whether a file has a column ``messages``, or those are a dataset's texts."""
    if isinstance(source, HubSource):
        return source.text_column == COLUMNS[0]
    return COLUMNS[0] in column_names(source)


def load_chats(source: str | Path | HubSource) -> Chats:
    """Read chats from a file or a dataset.

    Args:
        source: a path that ends in ``.jsonl`` or ``.parquet``, a ``HubSource``, or the bare name
            of a dataset with the columns of the files.

    Raises:
        FileNotFoundError: no such file or dataset.
        ValueError: what ``read_table`` refuses, an empty language or message, or a chat without
            an answer.
        TypeError: a message that is more or less than a role and a text.
    """
    place, table = read_table(source, COLUMNS, SUFFIXES)
    chats = []
    for row, messages in enumerate(table["messages"].to_pylist(), start=1):
        if not isinstance(messages, list):
            raise checks.not_messages(place, row, messages)
        chat = [_message(place, row, message) for message in messages]
        if all(message["role"] != ASSISTANT for message in chat):
            raise checks.chat_without_answer(place, row)
        chats.append(chat)
    return Chats(chats, strings(place, table, "language"))


def _message(place: str, row: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise checks.not_messages(place, row, message)
    given = {name: value for name, value in message.items() if value is not None}
    if set(given) != {"role", "content"} or not all(isinstance(v, str) for v in given.values()):
        raise checks.not_messages(place, row, given)
    if not given["content"].strip():
        raise checks.empty_message(place, row, given["role"])
    return given


@dataclass(frozen=True)
class WrittenChat:
    """A chat as a template writes it: the text, and where the assistant's answers are in it."""

    text: str
    answers: tuple[Span, ...]


def write_chats(
    chats: Sequence[Sequence[Message]], tokenizer: "PreTrainedTokenizerFast"
) -> list[WrittenChat]:
    """Chats by the template of a tokenizer.

    Raises:
        ValueError: there is no template, it does not take a chat, or it does not show which part
            of the text the assistant's answers are; the message names the chat.
    """
    if not tokenizer.chat_template:
        raise checks.no_chat_template(tokenizer.name_or_path)
    template = _Template(tokenizer)
    return [template.written(row, chat) for row, chat in enumerate(chats, start=1)]


class _Template:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._name = tokenizer.name_or_path
        self._source = tokenizer.get_chat_template()
        self._marks_answers = _GENERATION.search(self._source) is not None
        self._special_tokens = tokenizer.special_tokens_map

    def written(self, row: int, chat: Sequence[Message]) -> WrittenChat:
        """The text of a chat, and its answers."""
        text, answers = self._rendered(row, chat)
        if not self._marks_answers:
            answers = self._between_prefixes(row, chat, text)
        said = [message["content"].strip() for message in chat if message["role"] == ASSISTANT]
        if len(answers) != len(said):
            raise checks.answers_not_found(self._name, row, len(answers), len(said))
        for (begin, end), content in zip(answers, said, strict=True):
            if content not in text[begin:end]:
                raise checks.answer_changed(self._name, row, content, text[begin:end])
        return WrittenChat(text, tuple(answers))

    def _between_prefixes(self, row: int, chat: Sequence[Message], text: str) -> list[Span]:
        """What the chat up to each answer has more than the chat before it."""
        answers = []
        for number, message in enumerate(chat):
            if message["role"] != ASSISTANT:
                continue
            if number == 0:
                raise checks.begins_with_answer(self._name, row)
            before, _ = self._rendered(row, chat[:number])
            asked, _ = self._rendered(row, chat[:number], asks=True)
            upto, _ = self._rendered(row, chat[: number + 1])
            if not (text.startswith(upto) and upto.startswith(asked)):
                raise checks.beginning_changes(self._name, row, number + 1)
            # without a prompt to answer, a header of the answer would be taken for a part of it
            answer = upto[len(asked) :]
            if asked == before and not answer.lstrip().startswith(message["content"].strip()):
                raise checks.answer_changed(self._name, row, message["content"], answer)
            answers.append((len(asked), len(upto)))
        return answers

    def _rendered(
        self, row: int, chat: Sequence[Message], *, asks: bool = False
    ) -> tuple[str, list[Span]]:
        """The text of a chat, perhaps with the prompt to answer, and its generation blocks."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        special_tokens: dict[str, Any] = self._special_tokens
        try:
            found: Any = render_jinja_template(  # typed as text alone
                conversations=[[dict(message) for message in chat]],
                chat_template=self._source,
                return_assistant_tokens_mask=self._marks_answers,
                add_generation_prompt=asks,
                **special_tokens,
            )
        except TemplateError as error:
            raise checks.template_refuses(self._name, row, error) from error
        texts, blocks = found
        return texts[0], blocks[0] if self._marks_answers else []
