"""Errors of the losses room."""

from collections.abc import Iterable, Sequence

from torch import Tensor, device, is_autocast_enabled

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


def spec_and_fields(function: str, fields: Iterable[str]) -> TypeError:
    """Both forms of the specification at once."""
    named = ", ".join(sorted(fields))
    return type_error(
        function,
        "spec= and its fields are two forms of one thing",
        f"spec= and {named}",
        "Put them into the spec: dataclasses.replace(spec, ...).",
    )


def unknown_field(function: str, name: str, known: Iterable[str]) -> TypeError:
    """A keyword that LossSpec has no field for."""
    return type_error(
        function, "keywords must be fields of LossSpec", repr(name), nearest(name, known)
    )


def not_logits(function: str, argument: str, fact: str) -> TypeError:
    """A tensor of floating-point numbers was expected."""
    return type_error(
        function,
        f"{argument} must be a floating-point tensor with a last dimension",
        fact,
        "Pass the raw logits of the model.",
    )


def floating_point(function: str, argument: str, tensor: object) -> None:
    """Raise TypeError unless it is a floating-point tensor with a last dimension."""
    if not isinstance(tensor, Tensor):
        raise not_logits(function, argument, type(tensor).__name__)
    if not tensor.is_floating_point() or tensor.dim() == 0:
        raise not_logits(function, argument, f"{tensor.dtype} {tuple(tensor.shape)}")


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor, told without importing what only those need who have one."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def head(function: str, prefix: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless weight ``[V, D]`` and bias ``[V]`` go with hidden states ``[..., D]``."""
    for name, part in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if is_sharded(part):
            raise sharded_tensor(function, f"{prefix}{name}")
    floating_point(function, f"{prefix}hidden", hidden)
    floating_point(function, f"{prefix}weight", weight)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise value_error(
            function,
            f"{prefix}weight must be [V, {hidden.shape[-1]}], as wide as {prefix}hidden",
            str(tuple(weight.shape)),
            "Pass the weight of the torch.nn.Linear that follows these hidden states.",
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise value_error(
            function,
            f"{prefix}bias must be [V], one for each row of {prefix}weight",
            str(tuple(bias.shape)),
            "Pass the bias of that same head, or leave it out.",
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        on_device(function, f"{prefix}{name}", tensor, hidden.device)
        if tensor.dtype != hidden.dtype and not is_autocast_enabled(hidden.device.type):
            raise type_error(
                function,
                f"{prefix}{name} must have the dtype of {prefix}hidden, {hidden.dtype}",
                str(tensor.dtype),
                "Convert one of them, or run under torch.autocast.",
            )


def on_device(function: str, argument: str, tensor: Tensor, device: device) -> None:
    """Raise ValueError unless the tensor is on the student's device."""
    if tensor.device != device:
        raise other_device(function, argument, device, tensor.device)


def unknown_teacher(function: str, kind: str) -> TypeError:
    """Not something that a teacher can be."""
    return type_error(
        function,
        "teacher must be logits or one of mkd_fast's kinds: SparseTeacher, SampledTeacher, "
        "PackedSampledTeacher, TeacherHead",
        kind,
        "Pass a tensor of logits [..., V] if there are any.",
    )


def vocabulary_mismatch(function: str, student: int, teacher: int) -> ValueError:
    """Unequal widths of the two sides, without vocab_size."""
    return value_error(
        function,
        f"teacher_logits must have the student's vocabulary, {student} columns",
        str(teacher),
        f"Pass vocab_size={min(student, teacher)} if the rest is padding.",
    )


def vocab_size_out_of_range(function: str, vocab_size: int, columns: int) -> ValueError:
    """vocab_size names more columns than there are, or none."""
    return value_error(
        function,
        f"vocab_size must lie in [1, {columns}], the narrower side's columns",
        str(vocab_size),
        "Leave it out if every column is real.",
    )


def leading_shape_mismatch(
    function: str, argument: str, wanted: Sequence[int], got: Sequence[int]
) -> ValueError:
    """A tensor that does not go with the student token by token."""
    return value_error(
        function,
        f"{argument} must have the student's leading shape, {tuple(wanted)}",
        str(tuple(got)),
        "Reshape it, or index the tokens it belongs to.",
    )


def wrong_dtype(function: str, argument: str, wanted: str, got: object) -> TypeError:
    """A tensor of another kind of number."""
    return type_error(function, f"{argument} must be {wanted}", str(got), "Convert it first.")


def labels_missing(function: str, ce_weight: float) -> ValueError:
    """Cross-entropy was asked for without labels."""
    return value_error(
        function,
        "labels must be given when ce_weight is not 0",
        f"ce_weight={ce_weight}",
        "Pass labels, or ce_weight=0.",
    )


def divergence_needs_more(
    function: str, teacher: str, divergence: str, possible: str
) -> ValueError:
    """The divergence asks for what this kind of teacher has not kept."""
    return value_error(
        function,
        f"the divergence of a {teacher} must be {possible}",
        repr(divergence),
        "Choose such a divergence, or pass dense logits or a TeacherHead.",
    )


def num_tokens_not_one(function: str, shape: Sequence[int]) -> ValueError:
    """A denominator for each token."""
    return value_error(
        function,
        "num_tokens must be one number",
        f"a tensor of shape {tuple(shape)}",
        "Pass their sum over the step.",
    )


def label_out_of_range(
    function: str, label: int, row: int, vocab_size: int, ignore_index: int
) -> ValueError:
    """A label that names no column (checked where that costs no device sync)."""
    return value_error(
        function,
        f"labels must lie in [0, {vocab_size}) or be ignore_index={ignore_index}",
        f"{label} at token {row}",
        "Set labels of tokens that do not count to ignore_index.",
    )


def id_out_of_range(function: str, id_: int, row: int, vocab_size: int) -> ValueError:
    """A teacher's id that names no column (checked where that costs no device sync)."""
    return value_error(
        function,
        f"the teacher's ids must lie in [0, {vocab_size}), or be -1 where a slot is empty",
        f"{id_} at token {row}",
        "Map them to the student's vocabulary, and set those it lacks to -1.",
    )


def entries_not_three_bytes(function: str, shape: Sequence[int]) -> ValueError:
    """Packed samples of another layout."""
    return value_error(
        function,
        "PackedSampledTeacher.entries must be [..., K, 3], three bytes an entry",
        str(tuple(shape)),
        "Reshape the bytes of a token to [K, 3].",
    )


def hidden_kinds_mixed(function: str, layers: str, num_int8: int, num_layers: int) -> ValueError:
    """Some layers in eight bits and some not."""
    return value_error(
        function,
        f"teacher_{layers} must be Int8Hidden in every matched layer or in none",
        f"{num_int8} of {num_layers}",
        "Pass dequantised() of those.",
    )


def projections_mismatch(function: str, num_projections: int, num_layers: int) -> ValueError:
    """Not one projection a layer."""
    return value_error(
        function,
        "projections must be one matrix [D_s, D_t], or None, for each matched layer",
        f"{num_projections} for {num_layers} layers",
        "Pass None for layers whose widths agree.",
    )


def projection_shape(function: str, layer: int, width: int, shape: Sequence[int]) -> ValueError:
    """A projection that the student's states cannot be multiplied by."""
    return value_error(
        function,
        f"the projection of layer {layer} must be a matrix of {width} rows, its student's width",
        str(tuple(shape)),
        "Transpose it if it is the weight of a torch.nn.Linear.",
    )


def hidden_missing(function: str, layers: str, fact: str) -> ValueError:
    """One side's hidden states without the other's, or a weight without either."""
    return value_error(
        function,
        f"student_{layers} and teacher_{layers} go together, one tensor per matched layer",
        fact,
        "Pass both, or neither and hidden_weight=0.",
    )


def hidden_shape(
    function: str, argument: str, leading_shape: Sequence[int], shape: Sequence[int]
) -> ValueError:
    """Hidden states that do not go with the student token by token."""
    return value_error(
        function,
        f"{argument} must be [..., D] or [..., S, D] with the student's leading shape, "
        f"{tuple(leading_shape)}",
        str(tuple(shape)),
        "Reshape it, or index the tokens it belongs to.",
    )


def hidden_shape_mismatch(
    function: str, layers: str, layer: int, student: Sequence[int], teacher: Sequence[int]
) -> ValueError:
    """A matched pair of layers of different shapes."""
    return value_error(
        function,
        f"student_{layers}[{layer}] must have its teacher's shape, {tuple(teacher)}",
        str(tuple(student)),
        "Project the student's states first where only the widths differ.",
    )


def hidden_positions_mismatch(
    function: str, layers: str, layer: int, num_positions: int, num_first: int
) -> ValueError:
    """Matched layers of sequences of different lengths."""
    return value_error(
        function,
        f"student_{layers}[{layer}] must have as many positions as the first layer, {num_first}",
        str(num_positions),
        "Match layers of the same sequences.",
    )


def teacher_requires_grad(function: str, argument: str) -> ValueError:
    """The teacher never receives a gradient, and a silent detach would hide a mistake."""
    return value_error(
        function,
        f"{argument} must not require a gradient",
        "requires_grad=True",
        "Run the teacher under torch.no_grad(), or pass its output detached.",
    )


def other_device(function: str, argument: str, wanted: object, got: object) -> ValueError:
    """A tensor on another device than the student."""
    return value_error(
        function,
        f"{argument} must be on the student's device, {wanted}",
        str(got),
        f"Move it with .to({str(wanted)!r}).",
    )


def not_fused(function: str, reason: str) -> RuntimeError:
    """impl='fused' never falls back."""
    return runtime_error(
        function,
        "impl='fused' needs a fused kernel for this input",
        reason,
        "Pass impl=None to take the eager path where there is none.",
    )


def double_backward(function: str) -> RuntimeError:
    """A second derivative would silently lack this loss."""
    return runtime_error(
        function,
        "the fused loss has no second derivative",
        "create_graph=True",
        "Pass impl='eager', which has one.",
    )


def second_backward(function: str) -> RuntimeError:
    """The fused gradient was handed out already."""
    return runtime_error(
        function,
        "the fused loss keeps one gradient, for one backward pass",
        "a second one",
        f"Call {function} again, or pass impl='eager' for retain_graph=True.",
    )


def skip_below_off_cpu(device: object) -> ValueError:
    """To skip columns, the host looks at their gradients."""
    return value_error(
        "linear_kd_loss",
        "skip_below must be None where the host would have to wait for the device",
        f"student_hidden on {device}",
        "Leave it out: it is for CPUs.",
    )


def skip_below_traced() -> ValueError:
    """How many columns are left is known when the gradients are."""
    return value_error(
        "linear_kd_loss",
        "skip_below must be None under torch.compile, which needs shapes that no value decides",
        "a call that is being compiled",
        "Leave it out, or wrap the call in torch.compiler.disable().",
    )


def skip_below_eager(reason: str) -> ValueError:
    """Autograd's own products take every column."""
    return value_error(
        "linear_kd_loss",
        "skip_below must be None where the loss is eager, which would not heed it",
        reason,
        "Leave it out: the eager loss is exact.",
    )


def sharded_tensor(function: str, argument: str) -> TypeError:
    """A DTensor: a shard of a parallel vocabulary and one of FSDP look the same."""
    return type_error(
        function,
        f"{argument} must be a plain tensor",
        "a DTensor",
        "Pass full_tensor() of a parameter that FSDP shards; of a vocabulary that is split over "
        "processes, to_local() with process_group=, vocab_start= and vocab_size=.",
    )


def columns_not_covered(vocab_size: int, columns: Sequence[tuple[int, int]]) -> ValueError:
    """The processes' columns leave some out, or hold some twice."""
    return value_error(
        "linear_kd_loss",
        f"the processes' columns must be all of vocab_size={vocab_size}, each in one of them",
        ", ".join(f"[{begin}, {end})" for begin, end in columns),
        "Pass as vocab_start how many rows of the weight the processes before hold.",
    )


def vocab_sizes_differ(vocab_sizes: Sequence[int]) -> ValueError:
    """The processes do not agree on the vocabulary that they share."""
    return value_error(
        "linear_kd_loss",
        "vocab_size must be the same on all processes of process_group",
        ", ".join(map(str, vocab_sizes)),
        "Pass how many columns are real on all of them together.",
    )


def shard_incomplete(has_group: bool, vocab_start: object, vocab_size: object) -> ValueError:
    """A sharded vocabulary is told by three arguments."""
    return value_error(
        "linear_kd_loss",
        "process_group, vocab_start and vocab_size go together for a vocabulary split over "
        "processes",
        f"process_group={'given' if has_group else None}, vocab_start={vocab_start} and "
        f"vocab_size={vocab_size}",
        "Pass the first id of this process's columns, and how many are real on all of them.",
    )


def no_bucket(kind: str) -> ValueError:
    """Dropped tokens' mass needs a tail to go to."""
    return value_error(
        "TokenMap.target",
        "dropped='bucket' is for a SparseTeacher with tail='bucket'",
        kind,
        "Leave dropped out: what the teacher says is then divided among the kept tokens.",
    )


def not_the_full_vocabulary(function: str, num_columns: int, num_needed: int) -> ValueError:
    """A target that has been cut already, or of another teacher."""
    return value_error(
        function,
        f"teacher must have the full vocabulary, at least {num_needed} columns",
        f"{num_columns}",
        "A target that has the student's columns needs no map.",
    )
