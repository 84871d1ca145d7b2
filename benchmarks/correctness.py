"""Every fused kernel on this device against float64, on a short list of cases with a reason each.

The tests are more thorough, but need the test suite's packages; these need torch and triton alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mkd_fast import LossSpec, SampledTeacher, SparseTeacher, kd_loss
from mkd_fast.benchmarks.case import Case
from mkd_fast.benchmarks.inputs import Inputs, exact, with_gradients
from mkd_fast.benchmarks.judge import judge

_DIVERGENCES: dict[str, dict[str, Any]] = {
    "forward_kl": {},
    "reverse_kl": {},
    "jeffreys": {},
    "jsd": {"beta": 0.3},
    "skew_forward_kl": {"beta": 0.1},
    "skew_reverse_kl": {"beta": 0.1},
    "tvd": {},
    "alpha_beta": {"alpha_beta": (0.4, 0.7)},
    "logit_mse": {},
}
_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
_NUM_TOKENS = 37


@dataclass(frozen=True)
class Check:
    """One case: what is compared is loss and gradients of ``kd_loss``.

    Attributes:
        name: unique, with the reason.
        num_columns: V.
        dtypes: of the student's and the teacher's logits.
        spec: fields of LossSpec.
        tail: None for a dense teacher; ``"sampled"``, or one of TAILS for the 16 largest.
        num_layers: of matched hidden states, [N, 3, 200].
    """

    name: str
    num_columns: int
    dtypes: tuple[torch.dtype, torch.dtype] = (_BF16, _BF16)
    spec: dict[str, Any] = field(default_factory=dict)
    tail: Any = None
    num_layers: int = 0

    def case(self, device: torch.device) -> Case:
        """As a case that is judged; it is never timed."""
        hidden_weight = 0.3 if self.num_layers else 0.0
        spec = LossSpec(temperature=2.0, ce_weight=0.5, hidden_weight=hidden_weight, **self.spec)
        reference = partial(self._loss_of, spec=spec, impl="eager")
        return Case(
            name=self.name,
            make_inputs=partial(self._make_inputs, device),
            exact=exact(reference),
            plain=with_gradients(reference),
            variants={"fused": with_gradients(partial(reference, impl="fused"))},
            num_bytes=0,
        )

    def _make_inputs(self, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int, dtype: torch.dtype) -> Tensor:
            drawn = torch.randn(size, generator=generator, device=device)
            return drawn.mul_(3.0).to(dtype)

        size = (_NUM_TOKENS, self.num_columns)
        labels = torch.randint(self.num_columns, size[:1], generator=generator, device=device)
        labels[::5] = -100
        arguments: dict[str, Tensor | tuple[Tensor, ...]] = {
            "student": normal(*size, dtype=self.dtypes[0]).requires_grad_(),
            "teacher": normal(*size, dtype=self.dtypes[1]),
            "labels": labels,
        }
        if self.num_layers:
            for side in ("student", "teacher"):
                layers = [normal(_NUM_TOKENS, 3, 200, dtype=_BF16) for _ in range(self.num_layers)]
                arguments[f"{side}_hidden"] = tuple(
                    layer.requires_grad_(side == "student") for layer in layers
                )
        return Inputs(arguments)

    def _loss_of(self, student: Tensor, teacher: Tensor, labels: Tensor, **fields: Any) -> Tensor:
        return kd_loss(student, self._kept(teacher), labels, **fields).loss

    def _kept(self, teacher: Tensor) -> Tensor | SparseTeacher | SampledTeacher:
        """The teacher as it is, or what is kept of it."""
        if self.tail is None:
            return teacher
        logits, ids = teacher.topk(16)
        precise = teacher if teacher.dtype == torch.float64 else teacher.float()
        log_z = (precise / 2.0).logsumexp(-1)  # at the checks' temperature
        if self.tail == "sampled":
            return SampledTeacher(ids.int(), (precise / 2.0 - log_z[:, None]).exp().gather(1, ids))
        return SparseTeacher(ids.int(), logits, log_z, tail=self.tail)


CHECKS = (
    *(
        Check(f"{name}, {width}", num_columns, spec={"divergence": name, **fields})
        for name, fields in _DIVERGENCES.items()
        for width, num_columns in (("rows on chip", 1000), ("rows in blocks", 9000))
    ),
    Check("rows off the 16 bytes", 10_001),
    Check("XLM-R's vocabulary", 250_002),
    Check("28 intents, float32", 28, (_FP32, _FP32)),
    Check("bfloat16 student, float32 teacher", 9000, (_BF16, _FP32)),
    Check("float16 student, bfloat16 teacher", 9000, (_FP16, _BF16)),
    Check("softcap", 9000, spec={"softcap": 5.0, "logit_scale": 0.7}),
    Check("teacher's own temperature", 1000, spec={"teacher_temperature": 0.7}),
    Check("a sum over tokens", 9000, spec={"reduction": "sum"}),
    Check("hidden layers beside logits", 1000, num_layers=3),
    Check("hidden layers, cosine", 1000, spec={"hidden_distance": "cosine"}, num_layers=2),
    *(
        Check(f"top 16, {tail}", 9000, tail=tail)
        for tail in ("bucket", "renormalize", "drop", "uniform")
    ),
    Check("top 16, reverse KL", 9000, spec={"divergence": "reverse_kl"}, tail="bucket"),
    Check(
        "top 16, alpha_beta, drop",
        9000,
        tail="drop",
        spec={"divergence": "alpha_beta", "alpha_beta": (0.5, 0.5)},
    ),
    Check("sampled", 9000, tail="sampled"),
)


def check(
    device: torch.device,
    checks: Sequence[Check],
    *,
    is_time_left: Callable[[], bool] = lambda: True,
) -> Iterator[dict[str, object]]:
    """A row for each case: right, wrong, or what was raised. Goes on until the time is up."""
    for each in checks:
        if not is_time_left():
            return
        row: dict[str, object] = {"check": each.name, "error_of_budget": float("nan")}
        try:
            verdict = judge(each.case(device), each.case(device).make_inputs(0))["fused"]
        except Exception as error:  # a kernel that does not compile here is a result as well
            row["verdict"] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            row["error_of_budget"] = verdict.error_of_budget
            row["verdict"] = "right" if verdict.refused is None else "WRONG"
        yield row
