"""Copy-initialisation: a student that starts as a part of its teacher.

Privileged students (arXiv 2406.16524): weights copied from the fine-tuned teacher are worth more
than the distillation that follows. The student is built from its own config, as from_pretrained
would build it again, and every tensor in it is then taken from the teacher; one that cannot be is
an error, and so is a tensor of the teacher that nothing accounts for.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mkd_fast.checks import student as checks
from mkd_fast.layer_list import find_layer_list, layers_of
from mkd_fast.skeleton import text_config, unfilled
from mkd_fast.student.depth import choose_layers
from mkd_fast.student.importance import layer_changes
from mkd_fast.student.layers import KeptLayers, keep_layers
from mkd_fast.student.plan import Source, plan_copy, tied_names
from mkd_fast.student.report import CopiedTensor, CopyReport, PartSize
from mkd_fast.student.structure import (
    drop_absent_modules,
    embedding_prefixes,
    offset_positions,
    padding_index,
    word_table,
)
from mkd_fast.student.vocabulary import TokenMap
from mkd_fast.student.width import WidthRequest, narrow

PARTS = ("word embeddings", "other embeddings", "layers", "head")


def copy_init(
    teacher_model: PreTrainedModel,
    depth: str | Sequence[int] = "stride",
    num_layers: int | None = None,
    hidden_size: int | None = None,
    keep_token_ids: Sequence[int] | Tensor | None = None,
    *,
    layer_list: str | None = None,
    calibration: Iterable[Any] | None = None,
    num_heads: int | None = None,
    num_key_value_heads: int | None = None,
    intermediate_size: int | None = None,
    width: str | None = None,
    compensate: bool = True,
) -> PreTrainedModel:
    """A student with the teacher's own weights: fewer layers, units, rows of the vocabulary.

    Args:
        teacher_model: a transformers model, with or without a task head, on one device. It is left
            as it is, and the student shares no memory with it.
        depth: "stride", "first", "last", "first_last", "importance" or layer numbers; see
            `choose_layers`.
        num_layers: layers of the student. None is half of the teacher's, rounded up.
        hidden_size: units of the student's residual stream. None keeps the teacher's. Where a
            family's heads fill the stream (BERT), so many heads are kept.
        keep_token_ids: distinct ids of the teacher's vocabulary to keep, in the order of their new
            ids; `trim_tokenizer` gives them with the tokenizer they belong to. None keeps all.
        layer_list: the name of the nn.ModuleList of layers, where the model does not tell.
        calibration: batches of text with input_ids and attention_mask [B, S], as `capture` takes
            them. "importance" drops the layers that change their hidden states least on them;
            "activation" and "pca" choose units by them, and need not many tokens more than units.
            A narrower student is much closer to its teacher with them.
        num_heads: query heads, which are kept or dropped whole. None keeps the teacher's.
        num_key_value_heads: None keeps whole groups of query heads and their key/value head; a
            number keeps so many of the groups, and as many query heads of each.
        intermediate_size: feed-forward units. None keeps the teacher's.
        width: how units are chosen: "uniform", evenly; "activation", those that do most on the
            calibration text; "pca", which first turns the residual stream to its principal
            directions. See `mkd_fast.student.units` and `stream`. None is "activation" where there
            is calibration text, else "uniform".
        compensate: for "activation" and "pca", scale norms for the size of fewer units, and read
            from what is kept what it tells of the rest. False leaves weights the teacher's own.

    Returns:
        A model of the teacher's class, in eval mode; dtype and device of each tensor are the
        teacher's, every parameter requires a gradient. On text inside the kept vocabulary its
        hidden states and class logits are, bit for bit, those of the teacher with the kept layers
        only. The logits of a masked-LM head are the same dot products, but fewer: the
        matrix product may sum them in another order. A narrower student computes less, and what
        it computes differs.

    Raises:
        ValueError: an argument out of its range, or a teacher that cannot be copied right: its
            layers are not found, one of them would be built otherwise in its new place, it is
            quantised, on the meta device or on several devices, it has tensors that its config
            does not describe, or its units cannot be told apart.
        TypeError: teacher_model is not a transformers model.
    """
    return copy_with_report(
        teacher_model,
        depth,
        num_layers,
        hidden_size,
        keep_token_ids,
        layer_list=layer_list,
        calibration=calibration,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        intermediate_size=intermediate_size,
        width=width,
        compensate=compensate,
    )[0]


def copy_with_report(
    teacher_model: PreTrainedModel,
    depth: str | Sequence[int] = "stride",
    num_layers: int | None = None,
    hidden_size: int | None = None,
    keep_token_ids: Sequence[int] | Tensor | None = None,
    *,
    layer_list: str | None = None,
    calibration: Iterable[Any] | None = None,
    num_heads: int | None = None,
    num_key_value_heads: int | None = None,
    intermediate_size: int | None = None,
    width: str | None = None,
    compensate: bool = True,
) -> tuple[PreTrainedModel, CopyReport]:
    """The student of `copy_init`, and the account of where each of its tensors came from."""
    _check_copyable(teacher_model)
    if width is None:
        width = "uniform" if calibration is None else "activation"
    request = WidthRequest(
        hidden_size, num_heads, num_key_value_heads, intermediate_size, width, compensate
    )
    token_map = _token_map(teacher_model, keep_token_ids)
    list_name = find_layer_list("copy_init", teacher_model, layer_list)
    if calibration is not None and not request.is_empty:
        calibration = list(calibration)  # depth and width each read it
    ranks_layers = depth == "importance" or request.is_empty
    scores = _scores(
        teacher_model, list_name, depth, num_layers, calibration if ranks_layers else None
    )
    kept = keep_layers(teacher_model, list_name, depth, num_layers, scores)
    narrowing = narrow(teacher_model, list_name, request, calibration)
    if narrowing is not None:
        narrowing.write(kept.config)

    student = _empty_student(teacher_model, kept.config, token_map)
    narrowed = None if narrowing is None else narrowing.narrowed
    sources = plan_copy(teacher_model, student, list_name, kept.layers, token_map, narrowed)
    weights = teacher_model.state_dict()
    student.load_state_dict(
        {name: source.take(weights) for name, source in sources.items()}, assign=True
    )
    nn.Module.to(student, teacher_model.device)  # what is computed; the rest is there already
    _cast_buffers_like(teacher_model, student)
    student.tie_weights()
    student.train(False)
    return student, _report(teacher_model, student, list_name, kept, sources)


def _check_copyable(teacher: PreTrainedModel) -> None:
    if not isinstance(teacher, PreTrainedModel):
        raise checks.not_a_transformers_model(type(teacher).__name__)
    if getattr(teacher, "is_quantized", False) or not all(
        parameter.is_floating_point() for parameter in teacher.parameters()
    ):
        raise checks.teacher_not_copyable("quantised weights", "Dequantise it first.")
    devices = sorted({str(tensor.device) for tensor in teacher.state_dict().values()})
    if len(devices) > 1 or "meta" in devices:
        raise checks.teacher_not_copyable(
            f"weights on {' and '.join(devices)}",
            "Load it whole onto one device: from_pretrained without device_map.",
        )


def _scores(
    teacher: PreTrainedModel,
    layer_list: str,
    depth: str | Sequence[int],
    num_layers: int | None,
    calibration: Iterable[Any] | None,
) -> tuple[float, ...] | None:
    """What ranks the layers, where text is given to rank them on."""
    if calibration is None:
        return None
    if depth != "importance":
        raise checks.calibration_unused()
    # A number out of range is told before the text is read.
    choose_layers("first", len(layers_of(teacher, layer_list)), num_layers)
    return layer_changes(teacher, calibration, layer_list)


def _token_map(
    teacher: PreTrainedModel, keep_token_ids: Sequence[int] | Tensor | None
) -> TokenMap | None:
    if keep_token_ids is None:
        return None
    if text_config(teacher) is not teacher.config:
        raise checks.vocabulary_of_several_models(type(teacher).__name__)
    return TokenMap.of(keep_token_ids, teacher.config.vocab_size)


def _empty_student(
    teacher: PreTrainedModel, config: PretrainedConfig, token_map: TokenMap | None
) -> PreTrainedModel:
    """The model that config and the kept tokens describe, with weights still to be filled in."""
    if token_map is not None:
        config.vocab_size = len(token_map.keep_token_ids)
        token_map.renumber(config)
    positions = offset_positions(teacher)
    if positions is not None:
        # The table moves with the id of the padding token, so that as many tokens fit as before.
        config.max_position_embeddings += config.pad_token_id - padding_index(teacher, positions)
    student = unfilled(teacher, config)
    drop_absent_modules(student, teacher)
    if teacher.can_generate() and teacher.generation_config is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
        if token_map is not None:
            token_map.renumber(student.generation_config)
    return student


def _cast_buffers_like(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """What is not saved, such as rotary frequencies, has been computed anew: in float32."""
    saved = student.state_dict().keys()
    theirs = dict(teacher.named_buffers())
    for path, module in student.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name not in saved and name in theirs and buffer.is_floating_point():
                setattr(module, name.rpartition(".")[2], buffer.to(theirs[name].dtype))


def _report(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layer_list: str,
    kept: KeptLayers,
    sources: Mapping[str, Source],
) -> CopyReport:
    tie_of = {name: names[0] for names in tied_names(student) for name in names[1:]}
    tensors = tuple(
        CopiedTensor(
            name,
            sources[name].name,
            f"tied to {tie_of[name]}" if name in tie_of else sources[name].how,
            tuple(tensor.shape),
        )
        for name, tensor in student.state_dict().items()
    )
    before, after = _sizes(teacher, layer_list), _sizes(student, layer_list)
    parts = tuple(PartSize(part, *before[part], *after[part]) for part in PARTS)
    return CopyReport(kept.layers, layer_list, tensors, parts, kept.scores)


def _sizes(model: PreTrainedModel, layer_list: str) -> dict[str, tuple[int, int]]:
    """Parameters and bytes of each part, tensors that are tied counted once."""
    words = word_table(model)
    embeddings = embedding_prefixes(model, layer_list)
    # The first prefix that fits decides; the last one fits all.
    prefixes = dict(
        zip(PARTS, ((f"{words}.",), embeddings, (f"{layer_list}.",), ("",)), strict=True)
    )
    sizes = dict.fromkeys(PARTS, (0, 0))
    weights = model.state_dict()
    for name, *_ in tied_names(model):
        tensor = weights[name]
        part = next(part for part, prefix in prefixes.items() if name.startswith(prefix))
        parameters, size = sizes[part]
        sizes[part] = (parameters + tensor.numel(), size + tensor.nbytes)
    return sizes
