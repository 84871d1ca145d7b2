"""Teachers run over batches for a capture: one that is in memory, and one that is streamed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mkd_fast.checks import teacher as checks
from mkd_fast.evaluating import evaluating
from mkd_fast.teacher.cache.fingerprint import token_hashes
from mkd_fast.teacher.cache.kinds import HIDDEN
from mkd_fast.teacher.cache.manifest import Outputs, Plan
from mkd_fast.teacher.kept import TeacherOutputs, TokenBatch

if TYPE_CHECKING:
    from mkd_fast.teacher.streamed import StreamedTeacher


def token_batch(batch: Any) -> TokenBatch:
    """A batch as ``capture`` takes it.

    Raises:
        TypeError: it lacks a tensor.
        ValueError: their shapes do not go together.
    """
    names = ("input_ids", "attention_mask", "sample_ids")
    get = batch.get if isinstance(batch, Mapping) else partial(getattr, batch)
    if missing := [name for name in names if get(name, None) is None]:
        raise checks.batch_without(type(batch).__name__, missing)
    input_ids, mask, sample_ids = (torch.as_tensor(get(name, None)) for name in names)
    if input_ids.shape != mask.shape or sample_ids.shape != input_ids.shape[:1]:
        raise checks.batch_shapes_differ(input_ids.shape, mask.shape, sample_ids.shape)
    real = mask.cpu().bool()
    return TokenBatch(
        input_ids,
        mask,
        sample_ids.cpu().numpy().astype(np.int64),
        token_hashes(input_ids, mask),
        real.sum(1).numpy(),
        real.flatten().nonzero().squeeze(1),
    )


class Runner(Protocol):
    """A teacher that a capture runs."""

    @property
    def config(self) -> Any:
        """The model's, or None."""
        ...

    @property
    def num_head_columns(self) -> int:
        """Rows of its head.

        Raises:
            ValueError: it has none.
        """
        ...

    @property
    def has_head_at_hand(self) -> bool:
        """Whether ``head`` takes no memory of its own, so that it may be called early."""
        ...

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of what makes logits of hidden states; asked for where those are kept."""
        ...

    def run(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, TeacherOutputs]]:
        """What the teacher says about each batch, in order."""
        ...


def runner_of(
    teacher: "nn.Module | StreamedTeacher", plan: Plan, autocast: torch.dtype | None
) -> Runner:
    """What runs a teacher of either kind."""
    if isinstance(teacher, nn.Module):
        return ResidentTeacher(teacher, plan, autocast)
    return StreamedRunner(teacher, plan, autocast)


def outputs_of(config: Any, plan: Plan, num_columns: int) -> Outputs:
    """What a teacher's logits are like.

    Args:
        config: the model's, or None.
        plan: of the capture.
        num_columns: of the logits, padded ones included.

    Raises:
        ValueError: there are fewer columns than the plan says.
    """
    asked = plan.vocab_size or num_columns
    if asked > num_columns:
        raise checks.captured_vocab_too_large(asked, num_columns)
    config = config.get_text_config() if config is not None else None
    softcap = getattr(config, "final_logit_softcapping", None)
    return Outputs(asked, softcap, float(getattr(config, "logit_scale", None) or 1.0))


class ResidentTeacher:
    """A ``transformers`` model, or any module with its ways, run without gradients.

    Args:
        model: called with ``input_ids`` and ``attention_mask``.
        plan: what is to be kept of it.
        autocast: dtype of autocast; None for the model's own.

    Raises:
        ValueError: ``"hidden"`` is to be kept of a model without a linear head.
    """

    def __init__(self, model: nn.Module, plan: Plan, autocast: torch.dtype | None) -> None:
        self._model, self._plan, self._autocast = model, plan, autocast
        self.has_head_at_hand = True
        self._head: nn.Module | None = None
        if HIDDEN in plan.keep:
            find = getattr(model, "get_output_embeddings", lambda: None)
            self._head = find()
            if getattr(self._head, "weight", None) is None:
                raise checks.no_head(type(model).__name__)

    @property
    def config(self) -> Any:
        """The model's, or None."""
        return getattr(self._model, "config", None)

    @property
    def num_head_columns(self) -> int:
        """Rows of its head."""
        if self._head is None:
            raise checks.not_teacher_logits(None)
        return len(self.head()[0])

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of what makes logits of hidden states."""
        head: Any = self._head
        return head.weight, getattr(head, "bias", None)

    def run(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, TeacherOutputs]]:
        """What it says about each batch."""
        into_head: list[Tensor] = []
        needs_logits = self._plan.keep != (HIDDEN,)
        with evaluating(self._model), self._watching_head(into_head, needs_logits):
            for batch in batches:
                outputs = self._outputs(batch)
                last_hidden = into_head.pop() if self._head is not None else None
                states = {n: outputs.hidden_states[n] for n in self._plan.hidden_layers}
                logits = getattr(outputs, "logits", None) if needs_logits else None
                yield batch, TeacherOutputs(logits, states, last_hidden)

    def _outputs(self, batch: TokenBatch) -> Any:
        device = next(self._model.parameters()).device
        options = {"output_hidden_states": True} if self._plan.hidden_layers else {}
        casting = (
            nullcontext() if self._autocast is None else torch.autocast(device.type, self._autocast)
        )
        with torch.inference_mode(), casting:
            return self._model(
                input_ids=batch.input_ids.to(device, non_blocking=True),
                attention_mask=batch.attention_mask.to(device, non_blocking=True),
                **options,
            )

    @contextmanager
    def _watching_head(self, into_head: list[Tensor], needs_logits: bool) -> Iterator[None]:
        """Note what goes into the head; without need for logits, nothing comes out of it."""
        if self._head is None:
            yield
            return
        head: Any = self._head
        hook = head.register_forward_pre_hook(lambda _, inputs: into_head.append(inputs[0]))
        if not needs_logits:
            head.forward = lambda states: states
        try:
            yield
        finally:
            hook.remove()
            head.__dict__.pop("forward", None)


class StreamedRunner:
    """A ``StreamedTeacher``, asked for what a plan keeps.

    Args:
        teacher: open until the capture ends.
        plan: what is to be kept of it.
        autocast: dtype of autocast; None for the model's own.
    """

    def __init__(
        self, teacher: "StreamedTeacher", plan: Plan, autocast: torch.dtype | None
    ) -> None:
        self._teacher, self._plan, self._autocast = teacher, plan, autocast
        self.has_head_at_hand = False

    @property
    def config(self) -> Any:
        """The model's."""
        return self._teacher.model.config

    @property
    def num_head_columns(self) -> int:
        """Rows of its head, which need not be read for that."""
        head: Any = self._teacher.model.get_output_embeddings()
        if head is None:
            raise checks.not_teacher_logits(None)
        return len(head.weight)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of what makes logits of hidden states."""
        return self._teacher.head()

    def run(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, TeacherOutputs]]:
        """What it says about each batch."""
        return self._teacher.run(
            batches,
            hidden_layers=self._plan.hidden_layers,
            wants_logits=self._plan.keep != (HIDDEN,),
            wants_last_hidden=HIDDEN in self._plan.keep,
            autocast=self._autocast,
        )
