"""Copy-initialisation: a student whose weights are the teacher's own."""

from mkd_fast.student.copy import copy_init, copy_with_report
from mkd_fast.student.depth import choose_layers
from mkd_fast.student.report import CopyReport
from mkd_fast.student.starts import embeddings_only, scratch_like
from mkd_fast.student.tokenizer import (
    check_same_splits,
    token_ids_of_text,
    trim_tokenizer,
    used_token_ids,
)
from mkd_fast.student.vocabulary import TokenMap

__all__ = [
    "CopyReport",
    "TokenMap",
    "check_same_splits",
    "choose_layers",
    "copy_init",
    "copy_with_report",
    "embeddings_only",
    "scratch_like",
    "token_ids_of_text",
    "trim_tokenizer",
    "used_token_ids",
]
