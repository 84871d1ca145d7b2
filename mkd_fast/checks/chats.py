"""Errors about chats, and the templates that write them."""

from mkd_fast.checks.wording import type_error, value_error

_OTHER_TEMPLATE = (
    "Mark what the assistant says in the template with {% generation %} and {% endgeneration %}, "
    "or give the tokenizer another."
)


def not_messages(place: object, row: int, found: object) -> TypeError:
    """Images, tool calls, or another shape of chats."""
    return type_error(
        "load_chats",
        f"messages of {place} must be lists of a role and a content, both text",
        f"{found!r} in row {row}",
        "Convert them, or remove the row.",
    )


def empty_message(place: object, row: int, role: str) -> ValueError:
    """Nothing is said."""
    return value_error(
        "load_chats",
        f"every message of {place} must say something",
        f"an empty one of {role!r} in row {row}",
        "Remove it.",
    )


def chat_without_answer(place: object, row: int) -> ValueError:
    """Nothing in it would be learnt."""
    return value_error(
        "load_chats",
        f"every chat of {place} must have a message of the role 'assistant'",
        f"none in row {row}",
        "Remove the row, or rename the role.",
    )


def no_chat_template(name: str) -> ValueError:
    """Nothing says how the tokenizer's model is spoken to."""
    return value_error(
        "write_chats",
        "the tokenizer must have a chat template",
        f"{name!r} without one",
        "Name a model that was tuned on chats, or set tokenizer.chat_template and save it.",
    )


def template_refuses(name: str, row: int, error: Exception) -> ValueError:
    """Turns in another order, a role it does not know."""
    return value_error(
        "write_chats",
        f"the chat template of {name!r} must take every chat",
        f"{str(error)!r} for chat {row}, or for its beginning",
        "Mend or remove that chat.",
    )


def answers_not_found(name: str, row: int, found: int, wanted: int) -> ValueError:
    """Generation blocks that are not one an answer."""
    return value_error(
        "write_chats",
        f"the chat template of {name!r} must have a generation block for each answer",
        f"{found} for the {wanted} of chat {row}",
        "Mend the template.",
    )


def answer_changed(name: str, row: int, content: str, found: str) -> ValueError:
    """What was taken for the answer is not what was said."""
    return value_error(
        "write_chats",
        f"the chat template of {name!r} must show where an answer is, as {content[:60]!r}",
        f"{found[:60]!r} in its place, in chat {row}",
        _OTHER_TEMPLATE,
    )


def begins_with_answer(name: str, row: int) -> ValueError:
    """There is no beginning to compare with."""
    return value_error(
        "write_chats",
        f"by the chat template of {name!r}, which has no generation blocks, a chat must begin with "
        "another message than an answer",
        f"chat {row}, which does not",
        "Mend or remove that chat.",
    )


def beginning_changes(name: str, row: int, number: int) -> ValueError:
    """Old thoughts taken out, a system message put in: what an answer is cannot be told."""
    return value_error(
        "write_chats",
        f"the chat template of {name!r} must write the beginning of a chat alike, whatever follows",
        f"another one up to message {number} of chat {row}",
        _OTHER_TEMPLATE,
    )


def nothing_to_say(max_length: int) -> ValueError:
    """Texts of one token, or answers beyond the longest sample."""
    return value_error(
        "causal_text",
        "some text must have a token to be said within max_length",
        f"none within {max_length}",
        "Raise data.max_length.",
    )
