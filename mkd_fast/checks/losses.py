"""Errors of the losses room."""

from collections.abc import Iterable, Sequence

from torch import Tensor, device

from mkd_fast.checks.wording import nearest, runtime_error, type_error, value_error
from mkd_fast.checks.wording import not_negative as not_negative
from mkd_fast.checks.wording import one_of as one_of
from mkd_fast.checks.wording import positive as positive


def beta_out_of_range(beta: float) -> ValueError:
    """Beta is a mixing share."""
    return value_error("LossSpec", "beta must lie in [0, 1]", repr(beta), "0.5 is symmetric.")


def alpha_beta_mismatch(divergence: str, alpha_beta: object) -> ValueError:
    """alpha_beta= goes with its divergence, and with no other."""
    return value_error(
        "LossSpec",
        "alpha_beta must be given with divergence='alpha_beta' and only there",
        f"divergence={divergence!r} and alpha_beta={alpha_beta!r}",
        "Pass e.g. alpha_beta=(0.2, 0.7).",
    )


def spec_and_fields(fields: Iterable[str]) -> TypeError:
    """Both forms of the specification at once."""
    named = ", ".join(sorted(fields))
    return type_error(
        "kd_loss",
        "spec= and its fields are two forms of one thing",
        f"spec= and {named}",
        "Put them into the spec: dataclasses.replace(spec, ...).",
    )


def unknown_field(name: str, known: Iterable[str]) -> TypeError:
    """A keyword that LossSpec has no field for."""
    return type_error(
        "kd_loss", "keywords must be fields of LossSpec", repr(name), nearest(name, known)
    )


def not_logits(function: str, argument: str, fact: str) -> TypeError:
    """A tensor of floating-point numbers was expected."""
    return type_error(
        function,
        f"{argument} must be a floating-point tensor with a last dimension",
        fact,
        "Pass the raw logits of the model.",
    )


def floating_point(argument: str, tensor: object) -> None:
    """Raise TypeError unless it is a floating-point tensor with a last dimension."""
    if not isinstance(tensor, Tensor):
        raise not_logits("kd_loss", argument, type(tensor).__name__)
    if not tensor.is_floating_point() or tensor.dim() == 0:
        raise not_logits("kd_loss", argument, f"{tensor.dtype} {tuple(tensor.shape)}")


def on_device(argument: str, tensor: Tensor, device: device) -> None:
    """Raise ValueError unless the tensor is on the logits' device."""
    if tensor.device != device:
        raise other_device(argument, device, tensor.device)


def unknown_teacher(kind: str) -> TypeError:
    """Not something that a teacher can be."""
    return type_error(
        "kd_loss",
        "teacher must be logits or one of mkd_fast's kinds: SparseTeacher, SampledTeacher, "
        "PackedSampledTeacher, TeacherHead",
        kind,
        "Pass a tensor of logits [..., V] if there are any.",
    )


def vocabulary_mismatch(student: int, teacher: int) -> ValueError:
    """Unequal widths of the two sides, without vocab_size."""
    return value_error(
        "kd_loss",
        f"teacher_logits must have the student's vocabulary, {student} columns",
        str(teacher),
        f"Pass vocab_size={min(student, teacher)} if the rest is padding.",
    )


def vocab_size_out_of_range(vocab_size: int, columns: int) -> ValueError:
    """vocab_size names more columns than there are, or none."""
    return value_error(
        "kd_loss",
        f"vocab_size must lie in [1, {columns}], the narrower side's columns",
        str(vocab_size),
        "Leave it out if every column is real.",
    )


def leading_shape_mismatch(argument: str, wanted: Sequence[int], got: Sequence[int]) -> ValueError:
    """A tensor that does not go with the student's logits token by token."""
    return value_error(
        "kd_loss",
        f"{argument} must have the leading shape of student_logits, {tuple(wanted)}",
        str(tuple(got)),
        "Reshape it, or index the tokens it belongs to.",
    )


def wrong_dtype(argument: str, wanted: str, got: object) -> TypeError:
    """A tensor of another kind of number."""
    return type_error("kd_loss", f"{argument} must be {wanted}", str(got), "Convert it first.")


def labels_missing(ce_weight: float) -> ValueError:
    """Cross-entropy was asked for without labels."""
    return value_error(
        "kd_loss",
        "labels must be given when ce_weight is not 0",
        f"ce_weight={ce_weight}",
        "Pass labels, or ce_weight=0.",
    )


def divergence_needs_more(teacher: str, divergence: str, possible: str) -> ValueError:
    """The divergence asks for what this kind of teacher has not kept."""
    return value_error(
        "kd_loss",
        f"the divergence of a {teacher} must be {possible}",
        repr(divergence),
        "Choose such a divergence, or pass dense logits or a TeacherHead.",
    )


def num_tokens_not_one(shape: Sequence[int]) -> ValueError:
    """A denominator for each token."""
    return value_error(
        "kd_loss",
        "num_tokens must be one number",
        f"a tensor of shape {tuple(shape)}",
        "Pass their sum over the step.",
    )


def label_out_of_range(label: int, row: int, vocab_size: int, ignore_index: int) -> ValueError:
    """A label that names no column (checked where that costs no device sync)."""
    return value_error(
        "kd_loss",
        f"labels must lie in [0, {vocab_size}) or be ignore_index={ignore_index}",
        f"{label} at token {row}",
        "Set labels of tokens that do not count to ignore_index.",
    )


def id_out_of_range(id_: int, row: int, vocab_size: int) -> ValueError:
    """A teacher's id that names no column (checked where that costs no device sync)."""
    return value_error(
        "kd_loss",
        f"the teacher's ids must lie in [0, {vocab_size}), or be -1 where a slot is empty",
        f"{id_} at token {row}",
        "Map them to the student's vocabulary, and set those it lacks to -1.",
    )


def entries_not_three_bytes(shape: Sequence[int]) -> ValueError:
    """Packed samples of another layout."""
    return value_error(
        "kd_loss",
        "PackedSampledTeacher.entries must be [..., K, 3], three bytes an entry",
        str(tuple(shape)),
        "Reshape the bytes of a token to [K, 3].",
    )


def hidden_kinds_mixed(num_int8: int, num_layers: int) -> ValueError:
    """Some layers in eight bits and some not."""
    return value_error(
        "kd_loss",
        "teacher_hidden must be Int8Hidden in every matched layer or in none",
        f"{num_int8} of {num_layers}",
        "Pass dequantised() of those.",
    )


def projections_mismatch(num_projections: int, num_layers: int) -> ValueError:
    """Not one projection a layer."""
    return value_error(
        "kd_loss",
        "hidden_projection must have one matrix [D_s, D_t], or None, for each matched layer",
        f"{num_projections} for {num_layers} layers",
        "Pass None for layers whose widths agree.",
    )


def hidden_missing(fact: str) -> ValueError:
    """One side's hidden states without the other's, or a weight without either."""
    return value_error(
        "kd_loss",
        "student_hidden and teacher_hidden go together, one tensor per matched layer",
        fact,
        "Pass both, or neither and hidden_weight=0.",
    )


def hidden_shape_mismatch(layer: int, student: Sequence[int], teacher: Sequence[int]) -> ValueError:
    """A matched pair of layers of different shapes."""
    return value_error(
        "kd_loss",
        f"student_hidden[{layer}] must have its teacher's shape, {tuple(teacher)}",
        str(tuple(student)),
        "Project the student's states first where only the widths differ.",
    )


def teacher_requires_grad(argument: str) -> ValueError:
    """The teacher never receives a gradient, and a silent detach would hide a mistake."""
    return value_error(
        "kd_loss",
        f"{argument} must not require a gradient",
        "requires_grad=True",
        "Run the teacher under torch.no_grad(), or pass its output detached.",
    )


def other_device(argument: str, wanted: object, got: object) -> ValueError:
    """A tensor on another device than the logits."""
    return value_error(
        "kd_loss",
        f"{argument} must be on the device of student_logits, {wanted}",
        str(got),
        f"Move it with .to({str(wanted)!r}).",
    )


def not_fused(reason: str) -> RuntimeError:
    """impl='fused' never falls back."""
    return runtime_error(
        "kd_loss",
        "impl='fused' needs a fused kernel for this input",
        reason,
        "Pass impl=None to take the eager path where there is none.",
    )


def double_backward() -> RuntimeError:
    """A second derivative would silently lack this loss."""
    return runtime_error(
        "kd_loss",
        "the fused loss has no second derivative",
        "create_graph=True",
        "Pass impl='eager', which has one.",
    )


def second_backward() -> RuntimeError:
    """The fused gradient was handed out already."""
    return runtime_error(
        "kd_loss",
        "the fused loss keeps one gradient, for one backward pass",
        "a second one",
        "Call kd_loss again, or pass impl='eager' for retain_graph=True.",
    )
