"""A stage rehearsed on fake tensors: the task's own loss, the loop's own optimizer, the capture.

So no family of models has a formula here, and what changes in a loss, a model or the optimizer
changes the plan. Autocast is that of the device the recipe names; the tensors are the CPU's.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mkd_fast.losses.targets import TeacherHead
from mkd_fast.teacher.cache.manifest import Plan
from mkd_fast.teacher.kept import Keeper
from mkd_fast.teacher.runners import ResidentTeacher, outputs_of, token_batch
from mkd_fast.train.attention import attention
from mkd_fast.train.device import autocast, is_bfloat16
from mkd_fast.train.layer_calls import layer_calls
from mkd_fast.train.loop import Step, Task
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.optimizer import freeze, make_optimizer
from mkd_fast.train.planning.ledger import Ledger, Peak

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mkd_fast.data.batches import Batch

# What memory is held for, in the order in which it is shown.
WEIGHTS, GRADIENTS, MOMENTS = "weights", "gradients", "moments"
TEACHER_HEAD, BATCH = "teacher's head", "batch"
ACTIVATIONS, LOSS, BACKWARD, STEP = "activations", "head and loss", "backward pass", "optimizer"
KEPT = "what is kept"


def rehearse_step(
    make_model: Callable[[], "PreTrainedModel"],
    task: Task,
    step: Step,
    config: OptimConfig,
    device: torch.device,
) -> Peak:
    """What a training step holds, once the optimizer has a state.

    Args:
        make_model: builds the model.
        task: whose loss is computed.
        step: what of; its values play no part.
        config: ``[finetune]`` or ``[train]``.
        device: where it will be computed.
    """
    _make_tables(config)
    with _rehearsing() as ledger:
        ledger.moment = WEIGHTS
        model = make_model().train()
        ledger.label([*model.parameters(), *model.buffers()], WEIGHTS)
        freeze(model, config.freeze)
        optimizer = make_optimizer(model, config)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        ledger.label(_moments(optimizer, trained), MOMENTS)
        ledger.moment = BATCH
        step, head = _faked(step)
        ledger.label(head, TEACHER_HEAD)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(
                lambda p: ledger.label([p.grad], GRADIENTS)
            )
        ledger.open()
        with (
            attention(model, config, device) as choose_attention,
            layer_calls(model, compile="no", checkpointing=config.checkpointing),
        ):
            choose_attention(step.batch)
            for _ in range(min(config.accumulate, 2)):  # the second part adds to gradients
                ledger.moment = ACTIVATIONS
                with _noting_head(model, ledger), _cast(device, config):
                    out = task.loss(model, step)
                ledger.moment = BACKWARD
                out.loss.backward()
                del out
        ledger.moment = STEP
        nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        return ledger.peak


@contextmanager
def _rehearsing() -> Iterator[Ledger]:
    """Fake tensors, a ledger of them, and the caller's random state as it was."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Ledger())


def _cast(device: torch.device, config: OptimConfig) -> AbstractContextManager[Any]:
    """Autocast as that device would have it, for tensors of the CPU."""
    is_cast = is_bfloat16(device, config.precision)
    return autocast(torch.device("cpu"), "bfloat16" if is_cast else "float32")


def _make_tables(config: OptimConfig) -> None:
    """Let an optimizer make what it makes once in a process, of which the values are needed."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(64, 64)
    _moments(make_optimizer(layer, replace(config, head_rate=1.0)), [*layer.parameters()])


def _moments(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> list[Tensor]:
    """The optimizer's state as after a first step."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [inner for value in values if isinstance(value, Tensor) for inner in _inner(value)]


def _inner(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, or those that a tensor subclass keeps its values in."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _inner(getattr(tensor, name))


def _faked(value: Any) -> tuple[Any, list[Tensor]]:
    """A step with fake tensors in place of its own, and a teacher's head among them."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype), []
    if isinstance(value, tuple):
        made = [_faked(item) for item in value]
        return tuple(item for item, _ in made), [tensor for _, heads in made for tensor in heads]
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: _faked(getattr(value, f.name)) for f in fields(value)}
        heads = [tensor for _, of_field in found.values() for tensor in of_field]
        made_of = {name: item for name, (item, _) in found.items()}
        if isinstance(value, TeacherHead):
            heads += [made_of[name] for name in ("weight", "bias") if made_of[name] is not None]
        return replace(value, **made_of), heads
    return value, []


@contextmanager
def _noting_head(model: "PreTrainedModel", ledger: Ledger) -> Iterator[None]:
    """What a language model's head makes is the loss's, and so is all that comes after a model."""
    head = model.get_output_embeddings()

    def is_at_loss(*_: Any) -> None:
        if ledger.moment == ACTIVATIONS:
            ledger.moment = LOSS

    hooks = [model.register_forward_hook(is_at_loss)]
    if head is not None:
        hooks.append(head.register_forward_pre_hook(is_at_loss))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rehearse_capture(
    make_model: Callable[[], "PreTrainedModel"], batch: "Batch", plan: Plan
) -> Peak:
    """What a capture holds while its teacher reads the largest batch, and that size once more.

    Args:
        make_model: builds the teacher.
        batch: its largest one.
        plan: what is kept.
    """
    read = token_batch(batch)
    with _rehearsing() as ledger:
        ledger.moment = WEIGHTS
        model = make_model()
        ledger.label([*model.parameters(), *model.buffers()], WEIGHTS)
        ledger.moment = BATCH
        (input_ids, mask), _ = _faked((read.input_ids, read.attention_mask))
        tokens = replace(read, input_ids=input_ids, attention_mask=mask)
        runner, launched = ResidentTeacher(model, plan, None), []
        ledger.open()
        ledger.moment = ACTIVATIONS
        with _noting_head(model, ledger):
            for _, outputs in runner.run([tokens, tokens]):
                ledger.moment = KEPT
                logits = outputs.logits
                num_columns = runner.num_head_columns if logits is None else logits.shape[-1]
                keeper = Keeper(plan, outputs, outputs_of(runner.config, plan, num_columns))
                launched.append(keeper.launch(tokens, outputs))
                del outputs, logits
                ledger.moment = ACTIVATIONS
        return ledger.peak
