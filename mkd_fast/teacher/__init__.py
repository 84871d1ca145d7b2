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
from mkd_fast.teacher.repair import repair

__all__ = [
    "CacheSummary",
    "CachedBatch",
    "CaptureProgress",
    "Fingerprints",
    "TeacherCache",
    "capture",
    "fingerprint_chat_template",
    "fingerprint_model",
    "fingerprint_tokenizer",
    "merge",
    "repair",
    "token_hashes",
    "verify",
]
