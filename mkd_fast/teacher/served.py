"""Importing what a served teacher said: top-k log-probabilities become a cache like any other.

A row is a mapping with

    sample_id     a whole number that no other row has
    token_ids     the sample's tokens; or prompt_token_ids, input_ids
    logprobs      a list; or prompt_logprobs, input_top_logprobs, top_logprobs

Entry i of the list is the distribution that predicted token i, so it is stored at position i - 1,
where a teacher's logits for it would be; entry 0 is None, since nothing predicts the first token.
A list that is shorter than the tokens belongs to the last of them: the tokens of prompt and answer
with the log-probabilities of the answer are a row too. Where nothing is known (at the last token
there never is) every slot is empty: give such positions no label. An entry is one of

    {id: {"logprob": x, ...}, ...}               vLLM; ids may be text, as JSON makes them
    {"token_id:id": x, ...}                      OpenAI's completions, as vLLM serves them
    [{"token": "token_id:id", "logprob": x}, ..] and its chat, with return_tokens_as_token_ids
    [[x, id, text], ...]                         SGLang
    [{"id": id, "logprob": x}, ...]              what fits a Parquet column best
    None                                         nothing known

The first K by log-probability are kept; vLLM adds the prompt's own token to the K it was asked
for where it is not among them, and writes -9999 for minus infinity. The numbers must be what the
teacher says at temperature 1 (vLLM: ``--logprobs-mode raw_logprobs``, its default).

Sources: vLLM, ``PromptLogprobs`` in vllm/logprobs.py, ``LogprobsProcessor`` in
vllm/v1/engine/logprobs.py, ``clamp_prompt_logprobs`` and ``_get_decoded_token`` in
vllm/entrypoints (docs.vllm.ai/en/v0.10.2/api/vllm/logprobs.html, github.com/vllm-project/vllm
pull 7453 and issue 2043). SGLang, ``detokenize_top_logprobs_tokens`` in
python/sglang/srt/managers/tokenizer_manager.py; ``logprob_start_len=0`` asks for every token.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from mkd_fast.checks import served as checks
from mkd_fast.teacher.cache.fingerprint import Fingerprints, token_hashes
from mkd_fast.teacher.cache.kinds import TopK, logits_kinds, parse_keep
from mkd_fast.teacher.cache.manifest import MANIFEST, Outputs, Plan
from mkd_fast.teacher.cache.reader import TeacherCache
from mkd_fast.teacher.cache.writer import Records, open_writer
from mkd_fast.teacher.capture import DEFAULT_SHARD_BYTES, CaptureProgress
from mkd_fast.teacher.row_files import Row

# N tokens of a batch, K kept

_TOKENS = ("token_ids", "prompt_token_ids", "input_ids")
_LOGPROBS = ("logprobs", "prompt_logprobs", "input_top_logprobs", "top_logprobs")
_ROWS_A_BATCH = 64
# what rounding in the server may add to probabilities that sum to 1; raw logits are far above
_MOST_MASS = 1.01


def import_logprobs(
    rows: Iterable[Row],
    path: str | Path,
    *,
    top_k: int,
    vocab_size: int,
    fingerprints: Fingerprints | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    resume: bool = True,
    progress: Callable[[CaptureProgress], None] | None = None,
) -> TeacherCache:
    """Write a cache of kind ``topk:K`` from log-probabilities, with log_z 0 at temperature 1.

    Stopped at any moment and called again with the same arguments, it goes on after the last
    finished shard, as ``capture`` does.

    Args:
        rows: as the module describes them, in the same order whenever they are iterated; from
            ``read_rows`` of files, or made of a server's answers as they come.
        path: the cache's folder; made if need be.
        top_k: K; a position of which less is known has empty slots.
        vocab_size: real columns of the teacher's logits.
        fingerprints: of the teacher, whatever tells it from others, of tokenizer and text.
        shard_bytes: a shard is closed when it holds this much.
        resume: False removes what an earlier import has left in the folder.
        progress: called after each batch.

    Returns:
        The finished cache, open.

    Raises:
        ValueError: a row that is not of this kind, an id outside the vocabulary, numbers that are
            no log-probabilities, a sample twice; each is named. Or other rows than those of the
            run that is resumed.
        RuntimeError: another process is writing there.
        OSError: the disk is full or not writable.
    """
    checks.positive("import_logprobs", "vocab_size", vocab_size)
    checks.positive("import_logprobs", "shard_bytes", shard_bytes)
    plan = Plan(
        keep=parse_keep(f"topk:{top_k}"),
        vocab_size=vocab_size,
        logits_dtype="float32",
        last_hidden_dtype=None,
        temperatures=(1.0,),
        proposal_exponent=1.0,
        seed=0,
        hidden_layers=(),
        hidden_dtype="float32",
        shard_bytes=shard_bytes,
        fingerprints=fingerprints or Fingerprints(),
    )
    (kind,), folder = logits_kinds(plan, vocab_size), Path(path)
    assert isinstance(kind, TopK), "the plan keeps no other"
    if resume and (folder / MANIFEST).exists():
        cache = TeacherCache.open(folder)
        plan.require("import_logprobs", cache.manifest.plan, folder)
        return cache
    with open_writer(folder, plan, resume=resume) as writer:
        unread = map(_sample, rows)
        while batch := list(itertools.islice(unread, _ROWS_A_BATCH)):
            ids = np.array([sample.id for sample in batch], np.int64)
            hashes = _hashes(batch)
            if writer.skip(ids, hashes):
                continue
            writer.begin(Outputs(vocab_size), kind.specs("token"))
            writer.add(_records(kind, batch, ids, hashes))
            if progress is not None:
                progress(CaptureProgress(writer.num_samples, writer.num_tokens))
        writer.finish()
    return TeacherCache.open(folder)


@dataclass(frozen=True)
class _Sample:
    """A row: its id, its tokens int32 ``[S]``, and its entries as they came."""

    id: int
    token_ids: NDArray[np.int32]
    entries: Sequence[Any]


def _sample(row: Row) -> _Sample:
    try:
        sample = _Sample(
            int(np.int64(operator.index(_field(row, ("sample_id",))))),
            np.array([operator.index(token) for token in _field(row, _TOKENS)], np.int32),
            list(_field(row, _LOGPROBS)),
        )
    except (AttributeError, ValueError, TypeError, OverflowError) as error:
        raise checks.unreadable_row(row, _TOKENS, _LOGPROBS) from error
    num_tokens, num_entries = len(sample.token_ids), len(sample.entries)
    if num_entries > num_tokens:
        raise checks.more_entries_than_tokens(sample.id, num_tokens, num_entries)
    if 0 < num_entries == num_tokens and sample.entries[0]:
        raise checks.first_token_predicted(sample.id)
    return sample


def _field(row: Row, names: Iterable[str]) -> Any:
    # one, or nobody knows which entries belong to which tokens
    (value,) = (row[name] for name in names if row.get(name) is not None)
    return value


def _hashes(batch: list[_Sample]) -> NDArray[np.uint64]:
    tokens = [torch.from_numpy(sample.token_ids) for sample in batch]
    real = [torch.ones_like(token_ids) for token_ids in tokens]
    return token_hashes(pad_sequence(tokens, True), pad_sequence(real, True))


def _records(
    kind: TopK, batch: list[_Sample], ids: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> Records:
    lengths = np.array([len(sample.token_ids) for sample in batch], np.int64)
    shape = int(lengths.sum()), kind.num_kept
    ids_NK, logprobs_NK = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    for sample, end in zip(batch, np.cumsum(lengths).tolist(), strict=True):
        # what predicted a token lies one before it
        for row, entry in enumerate(sample.entries, end - len(sample.entries) - 1):
            if not entry:
                continue
            known = _largest(kind, sample.id, entry)
            logprobs_NK[row] = known[0][1]  # empty slots lie at no distance
            for slot, (token_id, logprob) in enumerate(known):
                ids_NK[row, slot], logprobs_NK[row, slot] = token_id, logprob
    made = {"ids": ids_NK, "logits": logprobs_NK, "log_z": np.zeros((shape[0], 1), np.float32)}
    return Records(ids, hashes, {"token": lengths}, kind.on_host(made).tensors)


def _largest(kind: TopK, sample_id: int, entry: Any) -> list[tuple[int, float]]:
    """The first K of an entry's ids and log-probabilities, by falling log-probability."""
    try:
        known = dict(_pairs(entry))
        largest = sorted(known.items(), key=lambda pair: (-pair[1], pair[0]))[: kind.num_kept]
        mass = sum(math.exp(logprob) for _, logprob in largest)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise checks.unreadable_entry(sample_id, entry) from error
    if not 0 <= min(known) <= max(known) < kind.num_columns:
        raise checks.id_outside_vocabulary(sample_id, entry, kind.num_columns)
    if not (mass <= _MOST_MASS and largest[0][1] > -math.inf):
        raise checks.not_logprobs(sample_id, entry, mass)
    return largest


def _pairs(entry: Any) -> Iterator[tuple[int, float]]:
    """Ids and log-probabilities in any of the layouts."""
    if not isinstance(entry, Mapping):
        for item in entry:
            if isinstance(item, Mapping):
                token_id = item["id"] if "id" in item else _marked(item["token"])
                yield operator.index(token_id), float(item["logprob"])
            else:
                logprob, token_id, *_ = item
                yield operator.index(token_id), float(logprob)
        return
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield int(key), float(value["logprob"])
        elif isinstance(value, int | float):
            yield key if isinstance(key, int) else _marked(key), float(value)
        else:  # vLLM's own object
            yield int(key), float(value.logprob)


def _marked(token: str) -> int:
    """The id in ``token_id:id``; text by itself may be digits, and is no id."""
    mark, _, token_id = token.partition(":")
    if mark != "token_id":
        raise ValueError(token)
    return int(token_id)
