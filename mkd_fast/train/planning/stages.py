"""Peak memory of each stage of a recipe, part by part.

    fine-tune, train   rehearsed   weights, gradients, moments, activations, head and loss
                       batches     4 steps: the one at work, two made ahead, one in the making
                       heap        what the C library keeps beside them
    capture            rehearsed   weights, activations, what is kept of two batches
                       shards      two: one is filled while one is written
                       heap        as above
      layer by layer   capture.max_memory in place of weights and activations
    copy               weights     of teacher and student
    all                process     Python, torch, transformers; text and tokens

On a GPU, what its memory holds is what counts: the rehearsed parts and its context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from mkd_fast.data.tokens import TokenisedText
from mkd_fast.quiet import quiet_transformers
from mkd_fast.train.config import Config
from mkd_fast.train.device import choose_device
from mkd_fast.train.kinds import kind_of
from mkd_fast.train.loop import Step, Task
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.planning.ledger import Peak
from mkd_fast.train.planning.rehearsal import (
    BATCH,
    MOMENTS,
    TEACHER_HEAD,
    WEIGHTS,
    rehearse_capture,
    rehearse_step,
)
from mkd_fast.train.planning.targets import MadeUpCache, made_up_target, plan_of
from mkd_fast.train.planning.workload import Workload
from mkd_fast.train.task_kinds import Teaching

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FINETUNE, CAPTURE, COPY, TRAIN = "fine-tune", "capture", "copy", "train"
_STAYING = (WEIGHTS, MOMENTS, TEACHER_HEAD, BATCH)
_STEPS_AT_HAND = 4
_SHARDS_AT_HAND = 2
# Of a process that has computed a first step: tables and kernels of oneDNN, threads.
_LIBRARY_BYTES = 48 << 20
# What CUDA, cuBLAS and kernels take of a GPU beside tensors; not measured by this project.
_CONTEXT_BYTES = 600 << 20
# Blocks that come and go leave holes in the C library's heap, which it does not give back: for each
# byte that was in it at most, so many lie in holes. Measured: benchmarks/LOG.md.
_HOLES = 0.38


@dataclass(frozen=True)
class StagePeak:
    """The most memory that a stage takes.

    Attributes:
        stage: which.
        moment: what it is at then.
        parts: bytes, by what they are for.
    """

    stage: str
    moment: str
    parts: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return sum(self.parts.values())


def stages_of(config: Config) -> tuple[str, ...]:
    """Those of a recipe, in their order."""
    stages = (CAPTURE, COPY, TRAIN)
    return stages if config.teacher.finetuned else (FINETUNE, *stages)


def predict(config: Config, work: Workload, stage: str, process_bytes: int) -> StagePeak:
    """A stage's peak.

    Args:
        config: the recipe.
        work: what it computes.
        stage: of ``stages_of``.
        process_bytes: what a process takes that has read the text and computed nothing.
    """
    device = choose_device(config.run.device)
    find = {FINETUNE: _finetuned, CAPTURE: _captured, COPY: _copied, TRAIN: _trained}[stage]
    return _of_process(config, stage, find(config, work, device), process_bytes)


def peak_of_step(
    config: Config,
    stage: str,
    model: "PretrainedConfig",
    task: Task,
    step: Step,
    process_bytes: int,
) -> StagePeak:
    """The peak of a training whose loss is any task's; arguments as ``predict``.

    Args:
        config: the recipe.
        stage: FINETUNE or TRAIN.
        model: the config of what is trained.
        task: whose loss is computed.
        step: of the largest batch.
        process_bytes: of the process.
    """
    device = choose_device(config.run.device)
    optim = config.finetune if stage == FINETUNE else config.train
    found = _stepped(config, model, task, step, optim, device)
    return _of_process(config, stage, found, process_bytes)


_AtPeak = tuple[str, Mapping[str, int]]


def _of_process(config: Config, stage: str, found: _AtPeak, process_bytes: int) -> StagePeak:
    """A stage's peak, from its moment and parts, with what is around it."""
    around, device = {"context": _CONTEXT_BYTES}, choose_device(config.run.device)
    if device.type == "cpu":
        is_causal = "CausalLM" in kind_of(config).auto_class  # which is tried when it is loaded
        computes = is_causal or stage != COPY
        around = {"process": process_bytes + _LIBRARY_BYTES * computes}
    moment, parts = found
    return StagePeak(stage, moment, {**parts, **around})


# A task's loss looks at no text; what it would read is made up.
_NO_TEXT = TokenisedText(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int64), 0)


def _finetuned(config: Config, work: Workload, device: torch.device) -> _AtPeak:
    task = kind_of(config).label_task(_NO_TEXT, 1, 0)
    return _stepped(config, work.teacher, task, Step(work.finetuned), config.finetune, device)


def _trained(config: Config, work: Workload, device: torch.device) -> _AtPeak:
    task, step = distilling(config, work)
    return _stepped(config, work.student, task, step, config.train, device)


def distilling(config: Config, work: Workload) -> tuple[Task, Step]:
    """What training of the student computes, and its largest step."""
    matched = [(ours + 1, theirs + 1) for ours, theirs in enumerate(work.layers)]
    layers = tuple(matched if config.loss_schedule.most_hidden_weight(config.loss) else ())
    cache: Any = MadeUpCache.of(config, work.teacher, tuple(theirs for _, theirs in layers))
    teaching = Teaching(_NO_TEXT, cache, config.loss, layers, work.token_map)
    task = kind_of(config).distill_task(_NO_TEXT, 1, 0, teaching)
    target = made_up_target(config, work.teacher, work.trained, len(layers))
    return task, Step(work.trained, target)


def _stepped(
    config: Config,
    model: "PretrainedConfig",
    task: Task,
    step: Step,
    optim: OptimConfig,
    device: torch.device,
) -> _AtPeak:
    peak = rehearse_step(lambda: build(config, model), task, step, optim, device)
    parts = dict(peak.parts)
    if device.type != "cpu":
        return peak.moment, parts
    batches = {"batches": _STEPS_AT_HAND * optim.accumulate * parts.pop(BATCH, 0)}
    return peak.moment, {**parts, **batches, "heap": _around(peak)}


def _around(peak: Peak) -> int:
    """What is resident beside tensors when most of them are alive.

    The heap is then as large as it ever was, since it gives nothing back, and what does not lie in
    it is there at most.
    """
    staying = sum(peak.parts.get(part, 0) for part in _STAYING)
    heap_bytes = int((1 + _HOLES) * peak.in_heap)
    return max(staying + peak.mapped + heap_bytes - peak.num_bytes, 0)


def _captured(config: Config, work: Workload, device: torch.device) -> _AtPeak:
    layers = tuple(layer + 1 for layer in work.layers) if config.matches_states else ()
    plan = plan_of(config, layers)
    peak = rehearse_capture(lambda: build(config, work.teacher), work.captured, plan)
    parts = dict(peak.parts)
    is_on_cpu = device.type == "cpu"
    if config.capture.max_memory_bytes is not None:
        parts = {"layer by layer": min(config.capture.max_memory_bytes, peak.num_bytes)}
    elif is_on_cpu:
        parts["heap"] = _around(peak)
    if is_on_cpu:
        stored = _stored_bytes(config, work, len(plan.hidden_layers))
        parts["shards"] = min(_SHARDS_AT_HAND * plan.shard_bytes, stored)
    return peak.moment, parts


def _stored_bytes(config: Config, work: Workload, num_layers: int) -> int:
    """Of the cache: 4 bytes a number, 4 an entry of top-k, 3 a draw at most."""
    if work.num_tokens is None or work.num_samples is None:
        return _SHARDS_AT_HAND * config.capture.shard_megabytes << 20
    teacher: Any = work.teacher
    width: int = teacher.get_text_config().hidden_size
    kind, _, count = config.capture.keep.partition(":")
    number_bytes = {"int8": 1, "float32": 4}.get(config.capture.hidden_dtype, 2)
    states = num_layers * width * number_bytes * work.num_tokens
    if kind == "logits":
        has_label_a_text = config.task.kind == "sequence_classification"
        num_rows = work.num_samples if has_label_a_text else work.num_tokens
        num_labels: int = teacher.num_labels
        return states + 4 * num_rows * num_labels
    entry_bytes = {"hidden": 4 * width, "topk": 4 * int(count or 0)}
    return states + work.num_tokens * entry_bytes.get(kind, 3 * int(count or 0))


def _copied(config: Config, work: Workload, device: torch.device) -> _AtPeak:
    """Both models, on the CPU whatever the device is."""
    if device.type != "cpu":
        return "student built", {}
    sizes = {
        f"{whose}'s weights": sum(p.nbytes for p in _on_meta(config, model).parameters())
        for whose, model in (("teacher", work.teacher), ("student", work.student))
    }
    return "student built", sizes


def build(config: Config, model: "PretrainedConfig") -> "PreTrainedModel":
    """A model of the task, in float32, on whatever tensors are made of."""
    auto_class = getattr(transformers, kind_of(config).auto_class)
    with quiet_transformers():
        made: PreTrainedModel = auto_class.from_config(model, dtype=torch.float32)
    return made


def _on_meta(config: Config, model: "PretrainedConfig") -> "PreTrainedModel":
    with torch.device("meta"):
        return build(config, model)
