"""Text to token batches: users' files and hub datasets, the home-intent task, splits, batches."""

from mkd_fast.data.batches import Batch, collate, evaluation_batches, length_grouped_batches
from mkd_fast.data.text import HubSource, LabelledText, load_text
from mkd_fast.data.tokens import TokenisedText, tokenise

__all__ = [
    "Batch",
    "HubSource",
    "LabelledText",
    "TokenisedText",
    "collate",
    "evaluation_batches",
    "length_grouped_batches",
    "load_text",
    "tokenise",
]
