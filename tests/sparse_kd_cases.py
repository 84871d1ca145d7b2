"""Cases of sparse_kd on the CPU, each named after the reason it exists."""

import dataclasses
from typing import Any

import torch
from dense_kd_input import BF16, COMMON_DIVERGENCES, F16, F32, normal
from hidden_cases import hidden_states
from torch import Tensor

from mkd_fast import PackedSampledTeacher, SampledTeacher, SparseTeacher
from mkd_fast.losses.targets import TAILS

# N tokens, V vocabulary, K kept ids

KeptTeacher = SparseTeacher | SampledTeacher | PackedSampledTeacher


def case(
    num_rows: int,
    num_columns: int,
    num_kept: int,
    tail: str = "bucket",
    *,
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32),
    id_dtype: torch.dtype = torch.int32,
    size: float = 3.0,
    has_labels: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """Arguments of kd_loss: the top of random logits or a sample, and a slot empty in some rows."""
    limit = fields.get("vocab_size", num_columns)
    teacher_NV = normal(num_rows, limit, seed=1, dtype=dtypes[1], size=size)
    arguments = {
        "student_logits": normal(num_rows, num_columns, seed=0, dtype=dtypes[0], size=size),
        "teacher": kept(teacher_NV, num_kept, tail, id_dtype, fields),
        "reduction": "none",
    }
    if has_labels:
        labels = torch.randint(limit, (num_rows,), generator=torch.Generator().manual_seed(2))
        labels[2::5] = fields.get("ignore_index", -100)
        arguments |= {"labels": labels, "ce_weight": 0.5}
    return arguments | fields


def kept(
    teacher_NV: Tensor, num_kept: int, tail: str, id_dtype: torch.dtype, fields: dict[str, Any]
) -> KeptTeacher:
    """What a teacher of these logits leaves, its ids in no order."""
    logits_NK, ids_NK = teacher_NV.topk(num_kept, -1)
    order = torch.randperm(num_kept, generator=torch.Generator().manual_seed(3))
    logits_NK, ids_NK = logits_NK[:, order], ids_NK[:, order].to(id_dtype)
    if num_kept < teacher_NV.shape[1]:
        ids_NK[1::3, 1:2] = -1
    if tail in ("sampled", "packed"):
        counts_K = torch.arange(num_kept).remainder(7) + 1
        num_draws = max(1, int(counts_K.sum()))
        if tail == "packed":
            return packed(ids_NK, counts_K.expand_as(ids_NK), num_draws)
        weights_K = (counts_K / num_draws).to(teacher_NV.dtype)
        return SampledTeacher(ids_NK, weights_K.repeat(len(ids_NK), 1))
    exact_NV = teacher_NV.double() * fields.get("teacher_logit_scale", 1.0)
    if cap := fields.get("teacher_softcap", fields.get("softcap")):
        exact_NV = cap * torch.tanh(exact_NV / cap)
    temperature = fields.get("teacher_temperature", fields.get("temperature", 1.0))
    return SparseTeacher(ids_NK, logits_NK, (exact_NV / temperature).logsumexp(-1).float(), tail)


def packed(
    ids_NK: Tensor, counts_NK: Tensor, num_draws: int, id_bits: int = 18
) -> PackedSampledTeacher:
    """Three bytes an entry, as the cache writes them; a negative id is an empty slot."""
    counts_NK = counts_NK.masked_fill(ids_NK < 0, 0).long()
    entries_NK = ids_NK.long().clamp(min=0) | counts_NK << id_bits
    bytes_NK3 = torch.stack([entries_NK >> shift & 255 for shift in (0, 8, 16)], -1)
    return PackedSampledTeacher(bytes_NK3.to(torch.uint8), num_draws, id_bits)


def map_tensors(teacher: KeptTeacher, change: Any) -> KeptTeacher:
    """The same teacher with each tensor changed."""
    tensors = {f.name: getattr(teacher, f.name) for f in dataclasses.fields(teacher)}
    changed = {name: change(t) for name, t in tensors.items() if isinstance(t, Tensor)}
    return dataclasses.replace(teacher, **changed)


def student_knows(num_kept: int, by: float, **fields: Any) -> dict[str, Any]:
    """The student's logits of kept ids lie higher (or lower) than the others."""
    arguments = case(6, 2000, num_kept, has_labels=False, **fields)
    raised = arguments["student_logits"].gather(1, arguments["teacher"].ids.long().clamp(min=0))
    ids = arguments["teacher"].ids.long().clamp(min=0)
    arguments["student_logits"].scatter_(1, ids, raised + by)
    return arguments


def one_hot_teacher(tail: str) -> dict[str, Any]:
    """All of the teacher's probability lies on one kept id; the others have none, or next to it."""
    arguments = case(6, 300, 3, tail)
    logits = torch.tensor([[0.0, -1000.0, -torch.inf]]).expand(6, 3)
    ids = torch.tensor([[7, 200, 8]]).expand(6, 3)
    return arguments | {"teacher": SparseTeacher(ids, logits, torch.zeros(6), tail)}


def nothing_kept_in_a_row(tail: str) -> dict[str, Any]:
    arguments = case(6, 50, 4, tail)
    teacher = arguments["teacher"]
    ids = teacher.ids.clone()
    ids[3] = -1
    return arguments | {"teacher": dataclasses.replace(teacher, ids=ids)}


def without_some_columns(divergence: str, **fields: Any) -> dict[str, Any]:
    """The student takes many columns for impossible, but none that the teacher kept."""
    arguments = case(6, 2500, 16, divergence=divergence, has_labels=False, **fields)
    student, teacher = arguments["student_logits"], arguments["teacher"]
    is_kept = torch.zeros(6, 2501, dtype=torch.bool)
    is_kept.scatter_(1, teacher.ids.long().where(teacher.ids >= 0, torch.tensor(2500)), True)
    is_left_out = torch.arange(2500) % 3 == 0
    is_left_out[1024:2048] = True  # a whole block
    student.masked_fill_(is_left_out & ~is_kept[:, :-1], -torch.inf)
    return arguments


def first_block_impossible() -> dict[str, Any]:
    arguments = case(6, 2500, 2, has_labels=False)
    ids = torch.tensor([[2000, 2100]], dtype=torch.int32).expand(6, 2)
    arguments["student_logits"] -= 1e4
    arguments["student_logits"][:, :1024] = -torch.inf
    return arguments | {"teacher": dataclasses.replace(arguments["teacher"], ids=ids)}


def too_much_mass(tail: str) -> dict[str, Any]:
    """log_z is a rounding too low, so that the kept probabilities sum to more than 1."""
    arguments = case(6, 40, 40, tail, has_labels=False)
    teacher = arguments["teacher"]
    return arguments | {"teacher": dataclasses.replace(teacher, log_z=teacher.log_z - 1e-5)}


def strided(tail: str) -> dict[str, Any]:
    """Elements of no tensor are next to each other."""
    arguments = case(33, 33, 5, tail)
    teacher = map_tensors(arguments["teacher"], lambda t: torch.stack([t, t], -1)[..., 0])
    return arguments | {"student_logits": arguments["student_logits"].T, "teacher": teacher}


def in_wider_rows(tail: str) -> dict[str, Any]:
    """Rows of ids and values are parts of longer ones."""
    arguments = case(6, 77, 9, tail)
    cut = map_tensors(arguments["teacher"], lambda t: t[:, 2:] if t.dim() > 1 else t)
    return arguments | {"teacher": cut}


DIVERGENCES = {
    **COMMON_DIVERGENCES,
    "alpha_beta": {"divergence": "alpha_beta", "alpha_beta": (0.6, 0.3)},
}
ALPHA_BETAS = ((0.0, 0.0), (0.5, -0.5), (0.7, 0.0), (0.0, 0.7), (1.5, -0.4), (0.6, 0.4))
KINDS = (*TAILS, "sampled", "packed")
MASK = torch.tensor([True, False, True, True, False, True])
HIDDEN = hidden_states((6, 33), (6, 33))

# A case is named after the reason it exists.
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name}, {tail}": case(6, 2777, 16, tail, temperature=2.0, **fields)
        for name, fields in DIVERGENCES.items()
        for tail in TAILS
    },
    **{
        f"alpha_beta {a}, {b}": case(6, 900, 16, divergence="alpha_beta", alpha_beta=(a, b))
        for a, b in ALPHA_BETAS
    },
    **{
        f"{name} of its first distribution": case(6, 900, 16, divergence=name, beta=1.0)
        for name in ("skew_forward_kl", "skew_reverse_kl")
    },
    **{
        f"{name} of its second distribution": case(6, 900, 16, divergence=name, beta=0.0)
        for name in ("skew_forward_kl", "skew_reverse_kl")
    },
    **{
        f"{name} at temperature {t}, {tail}": case(6, 60, 7, tail, temperature=t, **fields)
        for name, fields in DIVERGENCES.items()
        for tail in ("bucket", "uniform")
        for t in (0.1, 1.0, 7.3)
    },
    **{
        f"{name}, the student's mass outside the kept ids is {mass}": student_knows(16, by, **f)
        for name, f in DIVERGENCES.items()
        for mass, by in (("small", 12.0), ("tiny", 40.0), ("beyond float", 200.0), ("all", -40.0))
    },
    **{
        f"{name}, the student's columns outside are impossible": without_some_columns(**fields)
        for name, fields in DIVERGENCES.items()
    },
    **{
        f"{student} student, {values} {kind}": case(6, 1055, 9, kind, dtypes=(student, values))
        for student in (F32, BF16, F16)
        for values in (F32, BF16, F16)
        for kind in ("bucket", "sampled")
    },
    **{f"{kind}, int64 ids": case(6, 300, 9, kind, id_dtype=torch.int64) for kind in KINDS},
    **{f"{kind}, no ids": case(6, 300, 0, kind) for kind in KINDS},
    **{f"{kind}, every id": case(6, 60, 60, kind) for kind in KINDS},
    **{f"{kind}, every id of several blocks": case(3, 3000, 3000, kind) for kind in KINDS},
    **{f"{kind}, all ids but one": case(6, 60, 59, kind) for kind in KINDS},
    **{f"{kind}, one column": case(6, 1, 1, kind) for kind in KINDS},
    **{f"{kind}, fewer columns than a register": case(6, 3, 2, kind) for kind in KINDS},
    **{f"{kind}, exactly one block": case(6, 1024, 8, kind) for kind in KINDS},
    **{f"{kind}, one row": case(1, 500, 8, kind) for kind in KINDS},
    **{f"{kind}, strided": strided(kind) for kind in KINDS},
    **{f"{kind}, in wider rows": in_wider_rows(kind) for kind in KINDS},
    **{f"{kind}, huge logits": case(6, 999, 12, kind, size=1e4) for kind in KINDS},
    **{
        f"{kind}, huge logits, low temperature": case(6, 999, 12, kind, size=1e4, temperature=0.1)
        for kind in KINDS
    },
    **{
        f"{kind}, softcap and logit scales": case(
            6, 2777, 12, kind, softcap=4.0, logit_scale=0.7, teacher_logit_scale=-1.3
        )
        for kind in KINDS
    },
    **{f"{kind}, 250,002 columns": case(2, 250_002, 64, kind) for kind in KINDS},
    **{f"{kind}, hidden states": case(6, 40, 4, kind) | HIDDEN for kind in KINDS},
    **{f"{tail}, one-hot teacher": one_hot_teacher(tail) for tail in TAILS},
    **{f"{tail}, nothing kept in a row": nothing_kept_in_a_row(tail) for tail in TAILS},
    **{f"{tail}, kept probabilities sum to more than 1": too_much_mass(tail) for tail in TAILS},
    "first block impossible, all logits far below 0": first_block_impossible(),
    "250,002 columns in bfloat16": case(2, 250_002, 64, dtypes=(BF16, BF16)),
    "gradient past the caches, unaligned": case(9, 131_075, 64),
    "gradient past the caches, kept ids of every block": case(9, 131_075, 5000, dtypes=(BF16, F32)),
    "softcap at a temperature": case(6, 77, 5, temperature=3.0, softcap=2.0, teacher_softcap=None),
    "teacher's own softcap": case(6, 77, 5, teacher_softcap=3.0),
    "teacher's own temperature": case(6, 77, 5, temperature=2.0, teacher_temperature=0.7),
    "no T squared": case(6, 77, 5, temperature=3.0, temperature_squared=False),
    "padded vocabulary": case(6, 80, 5, vocab_size=70),
    "padded vocabulary, sampled": case(6, 80, 5, "sampled", vocab_size=70, dtypes=(BF16, F32)),
    "no labels": case(6, 77, 5, has_labels=False),
    "labels only mark tokens": case(6, 77, 5, ce_weight=0.0, temperature=3.0),
    "label's exponentials are squares": case(6, 2777, 5, temperature=2.0),
    "label's exponentials are its own": case(6, 2777, 5, temperature=3.0),
    "labels are kept ids": case(6, 30, 29, temperature=3.0),
    "no kd weight": case(6, 77, 5, kd_weight=0.0),
    "mean": case(40, 77, 5, reduction="mean"),
    "sum": case(40, 77, 5, reduction="sum"),
    "mean over other tokens": case(6, 77, 5, reduction="mean", num_tokens=100.0),
    "mask": case(6, 77, 5, mask=MASK),
    "mean over a mask": case(6, 77, 5, mask=MASK, has_labels=False, reduction="mean"),
    "nothing counts": case(6, 77, 5, mask=torch.zeros(6, dtype=torch.bool), reduction="mean"),
    "no rows": case(0, 77, 5, reduction="mean"),
    "hidden states, masked tokens": case(6, 40, 4, mask=MASK) | HIDDEN,
}
