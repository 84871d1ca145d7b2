"""Text to token batches: users' files and hub datasets, the home-intent task, splits, batches."""

from mkd_fast.data.batches import Batch, collate, evaluation_batches, length_grouped_batches
from mkd_fast.data.tables import HubSource
from mkd_fast.data.tagged import TaggedText, load_tagged
from mkd_fast.data.text import LabelledText, Text, load_text
from mkd_fast.data.tokens import TokenisedText, TokenisedWords, tokenise, tokenise_words

__all__ = [
    "Batch",
    "HubSource",
    "LabelledText",
    "TaggedText",
    "Text",
    "TokenisedText",
    "TokenisedWords",
    "collate",
    "evaluation_batches",
    "length_grouped_batches",
    "load_tagged",
    "load_text",
    "tokenise",
    "tokenise_words",
]
