"""What a teacher can hand over: running it over a text once, and keeping what it said."""

from mkd_fast.teacher.cache import (
    CachedBatch,
    CacheSummary,
    Fingerprints,
    TeacherCache,
    fingerprint_chat_template,
    fingerprint_model,
    fingerprint_tokenizer,
    merge,
    token_hashes,
    verify,
)
from mkd_fast.teacher.capture import CaptureProgress, capture
from mkd_fast.teacher.exchange import export
from mkd_fast.teacher.repair import repair
from mkd_fast.teacher.row_files import read_rows
from mkd_fast.teacher.served import import_logprobs

__all__ = [
    "CacheSummary",
    "CachedBatch",
    "CaptureProgress",
    "Fingerprints",
    "TeacherCache",
    "capture",
    "export",
    "fingerprint_chat_template",
    "fingerprint_model",
    "fingerprint_tokenizer",
    "import_logprobs",
    "merge",
    "read_rows",
    "repair",
    "token_hashes",
    "verify",
]
