"""A teacher that is in memory, run over batches."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.fingerprint import token_hashes
from mkd_fast.teacher.cache.head import head_parts
from mkd_fast.teacher.cache.kinds import HIDDEN
from mkd_fast.teacher.cache.manifest import Outputs, Plan
from mkd_fast.teacher.kept import TeacherOutputs, TokenBatch


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
        self._head: nn.Module | None = None
        if HIDDEN in plan.keep:
            find = getattr(model, "get_output_embeddings", lambda: None)
            self._head = find()
            if getattr(self._head, "weight", None) is None:
                raise checks.no_head(type(model).__name__)

    def about(self, outputs: TeacherOutputs) -> Outputs:
        """What its logits are like, from its first outputs.

        Raises:
            ValueError: it has fewer columns than the plan says.
        """
        if self._head is not None:
            weight: Any = self._head.weight
            num_columns = len(weight)
        elif outputs.logits is not None:
            num_columns = outputs.logits.shape[-1]
        else:
            raise checks.not_teacher_logits(None)
        asked = self._plan.vocab_size or num_columns
        if asked > num_columns:
            raise checks.captured_vocab_too_large(asked, num_columns)
        config: Any = getattr(self._model, "config", None)
        config = config.get_text_config() if config is not None else None
        return Outputs(
            asked,
            getattr(config, "final_logit_softcapping", None),
            float(getattr(config, "logit_scale", None) or 1.0),
        )

    def head_parts(self) -> list[Any]:
        """The head's file."""
        assert self._head is not None, "asked for where hidden is kept"
        return head_parts(self._head, self._plan.vocab_size)

    def run(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, TeacherOutputs]]:
        """What it says about each batch."""
        into_head: list[Tensor] = []
        needs_logits = self._plan.keep != (HIDDEN,)
        with _teaching(self._model), self._watching_head(into_head, needs_logits):
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


@contextmanager
def _teaching(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a key-value cache, and everything as it was afterwards."""
    was_training = model.training
    config: Any = getattr(model, "config", None)
    used_cache = getattr(config, "use_cache", None)
    model.eval()
    if used_cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        model.train(was_training)
        if used_cache is not None:
            config.use_cache = used_cache
