"""What a teacher said, on disk: a folder of safetensors shards and a manifest."""

from mkd_fast.teacher.cache.fingerprint import (
    Fingerprints,
    fingerprint_chat_template,
    fingerprint_model,
    fingerprint_tokenizer,
    token_hashes,
)
from mkd_fast.teacher.cache.merge import merge
from mkd_fast.teacher.cache.reader import CachedBatch, TeacherCache
from mkd_fast.teacher.cache.summary import CacheSummary
from mkd_fast.teacher.cache.verify import Damage, verify

__all__ = [
    "CacheSummary",
    "CachedBatch",
    "Damage",
    "Fingerprints",
    "TeacherCache",
    "fingerprint_chat_template",
    "fingerprint_model",
    "fingerprint_tokenizer",
    "merge",
    "token_hashes",
    "verify",
]
