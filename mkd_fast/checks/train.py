"""Errors of the train room."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mkd_fast.checks.files import folder_not_made as folder_not_made
from mkd_fast.checks.wording import is_ours as is_ours
from mkd_fast.checks.wording import (
    message,
    nearest,
    os_error_like,
    runtime_error,
    type_error,
    value_error,
)


def no_such_device(wanted: str, error: Exception) -> RuntimeError:
    """A device that torch does not know or cannot reach."""
    return runtime_error(
        "run",
        "run.device must be a device of this machine",
        f"{wanted!r} ({_first_line(error)})",
        'Use "auto", "cpu" or "cuda".',
    )


def attention_is_fixed(wanted: str, model: str) -> TypeError:
    """A model that cannot be told how to compute attention."""
    return type_error(
        "fit",
        f"a model must be one of transformers for attention = {wanted!r}",
        model,
        'Pass attention = "model".',
    )


def no_head(head_rate: float, model: str) -> TypeError:
    """A model that is all base model, whose head was to learn at a rate of its own."""
    return type_error(
        "fit",
        f"a model must have a head beside its base_model for head_rate = {head_rate:g}",
        model,
        "Pass head_rate = 1.",
    )


def data_not_named(source: str, key: str) -> ValueError:
    """A source without what it reads."""
    return value_error(
        "data",
        f'data.{key} must be given with source = "{source}"',
        "none",
        "Name files with columns text, label, language, or splits of a hub dataset.",
    )


def labels_of_another_task(teacher: Sequence[str], text: Sequence[str]) -> ValueError:
    """A ready classifier whose labels, in the order of its logits, are not the text's."""
    return value_error(
        "data",
        f"a teacher that is fine-tuned already must have the text's labels, {', '.join(text)}",
        ", ".join(teacher),
        "Name a teacher of this task, or set teacher.finetuned = false.",
    )


def no_vocabulary_text(path: str, error: Exception) -> ValueError:
    """The file by which the student's vocabulary is chosen cannot be read."""
    return value_error(
        "data",
        "data.vocabulary_text must be a UTF-8 text file, a sentence a line",
        f"{path}: {error}",
        "Mend it, or leave it out to keep the tokens of the training text.",
    )


def language_without_text(absent: Sequence[str], present: Sequence[str]) -> ValueError:
    """A language is asked for that the text does not have."""
    return value_error(
        "data",
        f"languages must occur in the text ({', '.join(present)})",
        ", ".join(absent) or "none at all",
        "Correct data.seen and data.unseen, or leave them out to take what is there.",
    )


def model_not_loaded(name: str, error: Exception) -> ValueError:
    """Transformers could not load it; its own first line says why."""
    return value_error(
        "teacher",
        f"{name} must be a model that transformers can load",
        _first_line(error),
        "Name a folder written by save_pretrained, or, when online, a hub model.",
    )


def no_language_model_head(name: str, missing: str) -> ValueError:
    """A bare encoder would be given a head of random numbers."""
    return value_error(
        "teacher",
        f"{name} must be a language model with a head",
        f"none of its weights for {missing}",
        "Name one that was trained as such, or set teacher.finetuned = false.",
    )


def looks_ahead(name: str, model_class: str) -> ValueError:
    """What it is to say would stand in its input."""
    return value_error(
        "teacher",
        f"{name} must say each token from those before it",
        f"a {model_class} that looks ahead",
        'Name a causal language model, or set task.kind = "masked_lm".',
    )


def folder_of_another_run(folder: Path, differing: Sequence[str]) -> ValueError:
    """A run folder belongs to one recipe."""
    return value_error(
        "run",
        f"{folder} belongs to a run of one recipe",
        f"another ({'; '.join(differing)})",
        "Pass --set run.folder=..., or remove that folder.",
    )


def folder_of_other_files(folder: Path, file: str) -> ValueError:
    """Somebody's files, that a run might overwrite."""
    return value_error(
        "run",
        "run.folder must be new, empty or a run's own",
        f"{folder} with {file!r} and no run.json",
        "Name another folder.",
    )


def row_too_short(row_tokens: int, longest: int) -> ValueError:
    """A sample is never cut in two."""
    return value_error(
        "recipe: [finetune], [train]",
        f"packing must be at least the longest sample's {longest} tokens",
        f"{row_tokens}",
        "Raise it, or lower data.max_length.",
    )


def not_packed(model_class: str, found: str) -> ValueError:
    """A model that would read one sample as the context of another."""
    return value_error(
        "packing",
        f"samples in a row of {model_class} must be read as if each were alone",
        repr(found.partition(chr(10))[0]),
        "Set packing = 0 for this model.",
    )


def nothing_to_freeze(beginning: str, names: Iterable[str]) -> ValueError:
    """A beginning that no parameter name has."""
    return value_error(
        "fit",
        "freeze must name parameters of the model",
        repr(beginning),
        nearest(beginning, names),
    )


def not_finite(model: str, step: int, sample_ids: Sequence[int]) -> FloatingPointError:
    """A loss or gradient that is NaN or infinite, noticed before the optimizer moved."""
    samples = ", ".join(map(str, sample_ids))
    return FloatingPointError(
        message(
            "fit",
            f"loss and gradients of {model} must be finite",
            f"NaN or infinity at step {step}, samples {samples}",
            "No parameter moved. Look at those samples (row numbers of the training text), or "
            "lower the learning rate; the same command goes on from the last checkpoint.",
        )
    )


def checkpoint_not_written(folder: Path, rank: int, error: BaseException) -> Exception:
    """One process of several could not write its part; a bug of any other kind stays itself."""
    if not isinstance(error, OSError):
        return RuntimeError(f"rank {rank} could not write its part of {folder}: {error!r}")
    return os_error_like(
        error,
        "write",
        f"{folder} must be written whole, by every process",
        f"{error.strerror or error} of rank {rank}",
        "Make room; the checkpoint before is kept, and the same command goes on from it.",
    )


def more_processes_than_gpus(num_processes: int, num_gpus: int) -> RuntimeError:
    """Each process of a machine trains on a GPU of its own."""
    return runtime_error(
        "run",
        "torchrun --nproc-per-node must be at most the number of GPUs of the machine",
        f"{num_processes} processes on {num_gpus} GPUs",
        'Start fewer, or set run.device = "cpu".',
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def no_low_bit_optimizer(error: Exception) -> RuntimeError:
    """An optional library is missing, or cannot be imported."""
    return runtime_error(
        "fit",
        'optimizer = "adamw8bit" needs torchao',
        _first_line(error),
        "Run: pip install 'mkd_fast[low_bit]', or set optimizer = \"adamw\".",
    )


def no_cuda_graphs(device: object) -> RuntimeError:
    """Graphs of kernels are CUDA's."""
    return runtime_error(
        "fit",
        'compile = "cuda_graphs" needs a CUDA device',
        f"the {device}",
        'Set compile = "layers".',
    )


def no_compiler(compiler: str) -> RuntimeError:
    """What torch.compile makes for a CPU is C++."""
    return runtime_error(
        "fit",
        'compile = "layers" needs a C++ compiler on a CPU',
        f"no {compiler}",
        'Install one, name yours in the environment variable CXX, or set compile = "no".',
    )


def longer_than_positions(length: int, positions: int, model: str) -> ValueError:
    """A model reads no sample of that length."""
    return value_error(
        "plan",
        f"--length must be at most the positions of {model}, {positions:,}",
        f"{length:,}",
        "Give the tokens of the longest sample.",
    )
