"""A language model beside its teacher, over one text: what is summed up of it.

Shapes: N pieces, M tokens with a label, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mkd_fast import progress
from mkd_fast.data.batches import PickedBatch, collate, evaluation_batches, labelled_only
from mkd_fast.data.tokens import Pieces
from mkd_fast.losses import LossSpec, TeacherHead, kd_loss
from mkd_fast.student import TokenMap
from mkd_fast.train import models
from mkd_fast.train.heads import BehindHead, behind_head, into_head
from mkd_fast.train.loop import to_device
from mkd_fast.train.task_kinds import Examined

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the logits of both sides take at a time.
_CHUNK_BYTES = 64 << 20
# The columns of the sums.
KL, CROSS_ENTROPY, TOKENS, AGREED, RIGHT = range(5)
NUM_SUMS = 5
# A head with its input, and what is done behind it.
Said = tuple[TeacherHead, BehindHead]


def sums_of_pieces(
    examined: Examined, ours: Pieces, theirs: Pieces, teacher: "PreTrainedModel"
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """KL, cross-entropy, count, how often both find one token likeliest, and it is right; [N, 5].

    Args:
        examined: the model.
        ours: the text in its token ids.
        theirs: likewise the teacher's, with the same labels.
        teacher: is moved to the model's device.
    """
    device = examined.device
    sides = (
        (examined.model.eval(), ours),
        (models.to_device(teacher, device).eval().requires_grad_(False), theirs),
    )
    sums_N5 = torch.zeros(len(ours), NUM_SUMS, dtype=torch.float64, device=device)
    batches = evaluation_batches(ours.lengths, batch_size=examined.batch_size)
    with torch.inference_mode(), progress.bar(f"evaluate {examined.name}", len(ours)) as bar:
        for rows in bar.over(batches, len):
            (ours_of, batch), (theirs_of, _) = (
                said(*side, rows, examined.token_map) for side in sides
            )
            values_M5 = torch.cat(list(values_of(ours_of, theirs_of, batch.labels)))
            sums_N5.index_add_(0, batch.picked_sample_ids, values_M5.double())
    found: np.ndarray[tuple[int, int], np.dtype[np.float64]] = sums_N5.cpu().numpy()
    return found


def said(
    model: "PreTrainedModel", text: Pieces, rows: Sequence[int], token_map: TokenMap | None
) -> tuple[Said, PickedBatch]:
    """Head and its input at some samples' labels, over the student's vocabulary whosever it is.

    Args:
        model: the student, or its teacher.
        text: in its token ids.
        rows: the samples.
        token_map: the student's vocabulary within the teacher's; None where it is the same.
    """
    batch = to_device(labelled_only(collate(text, rows)), model.device)
    head, _ = into_head(model, batch)
    if token_map is not None and len(head.weight) > len(token_map.keep_token_ids):
        restricted = token_map.target(head)
        assert isinstance(restricted, TeacherHead), "it stays of its kind"
        head = restricted
    return (head, behind_head(model.config)), batch


def values_of(ours: Said, theirs: Said, labels_M: Tensor) -> Iterator[Tensor]:
    """What each token adds to the sums, some tokens at a time."""
    (our_head, our_logits), (their_head, their_logits) = ours, theirs
    spec = LossSpec(
        ce_weight=1.0,
        reduction="none",
        softcap=our_logits.softcap,
        teacher_softcap=their_logits.softcap,
        logit_scale=our_logits.scale,
        teacher_logit_scale=their_logits.scale,
    )
    num_tokens = max(1, _CHUNK_BYTES // (8 * len(our_head.weight)))
    for begin in range(0, max(len(labels_M), 1), num_tokens):
        part = slice(begin, begin + num_tokens)
        q, p = (
            functional.linear(head.hidden[part], head.weight, head.bias)
            for head in (our_head, their_head)
        )
        out = kd_loss(q, p, labels_M[part], spec=spec)
        likeliest = q.argmax(-1)
        agrees, is_right = likeliest == p.argmax(-1), likeliest == labels_M[part]
        yield torch.stack([out.kd, out.ce, torch.ones_like(out.kd), agrees, is_right], -1)
