"""Model folders: read quietly, written whole or not at all."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError

from mkd_fast.checks import train as checks
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.evaluating import evaluating
from mkd_fast.files import make_folder
from mkd_fast.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mkd_fast.data.tokens import IntArray
    from mkd_fast.student import TokenMap
    from mkd_fast.teacher.streamed import StreamedTeacher


@contextmanager
def told_by_name(name: str) -> Iterator[None]:
    """What keeps transformers from loading a model is an error that names the model."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if checks.is_ours(error):
            raise
        raise checks.model_not_loaded(name, error) from error


SEQUENCE = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"


def load_classifier(
    name: str, label_names: tuple[str, ...], *, seed: int = 0, auto_class: str = SEQUENCE
) -> "PreTrainedModel":
    """A classifier of these labels, in float32, with a new head where it has none.

    Args:
        name: folder or hub name.
        label_names: in the order of its logits.
        seed: of a new head.
        auto_class: of ``transformers``: what is classified.

    Raises:
        ValueError: transformers cannot load it; the message names it.
    """
    import transformers

    torch.manual_seed(seed)
    with told_by_name(name), quiet_transformers():  # a new head is what is asked for
        model: PreTrainedModel = getattr(transformers, auto_class).from_pretrained(
            name,
            num_labels=len(label_names),
            id2label=dict(enumerate(label_names)),
            label2id={label: number for number, label in enumerate(label_names)},
            dtype=torch.float32,
        )
    return model


def new_parameters(
    name: str, label_names: tuple[str, ...], *, auto_class: str = SEQUENCE
) -> list[str]:
    """Names of the parameters that a model of a task has and the pretrained model has not.

    A parameter that is another's too, as a head that is tied to the embeddings, is not among them.

    Args:
        name: folder or hub name of the pretrained model.
        label_names: of a classifier; none of a language model.
        auto_class: of ``transformers``.

    Raises:
        ValueError: transformers cannot load it; the message names it.
    """
    import transformers

    of_classes = {"num_labels": len(label_names)} if label_names else {}
    with told_by_name(name), quiet_transformers():
        model, found = getattr(transformers, auto_class).from_pretrained(
            name, output_loading_info=True, **of_classes
        )
    return sorted(set(found["missing_keys"]) & dict(model.named_parameters()).keys())


@torch.no_grad()
def start_at_label_shares(model: "PreTrainedModel", labels: "IntArray") -> None:
    """Let a classifier's new head say how common each label is, before it knows anything else.

    Where one label is on most tokens, a head that says nothing is soonest mended by moving all
    states the same way, and they end alike: an encoder so trained told no entity from another.

    Args:
        model: a classifier of which the head is new. One without a bias stays as it is.
        labels: int64, of its training text, in any shape; ``NO_LABEL`` counts as none.
    """
    num_labels = cast(int, model.config.num_labels)
    in_base = set(model.base_model.parameters())
    of_labels = [p for p in model.parameters() if p not in in_base and p.shape == (num_labels,)]
    counts = np.bincount(labels[labels != NO_LABEL], minlength=num_labels) + 1
    for bias in of_labels[-1:]:
        bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))


def load_language_model(
    name: str, auto_class: str, *, new_head_seed: int | None = None
) -> "PreTrainedModel":
    """A masked or causal language model, in float32.

    Args:
        name: folder or hub name.
        auto_class: of ``transformers``.
        new_head_seed: of the head that a bare model gets; None refuses one that has none.

    Raises:
        ValueError: transformers cannot load it, it has no head, or it is to be a causal one and
            looks ahead; the message names it.
    """
    import transformers

    torch.manual_seed(new_head_seed or 0)
    with told_by_name(name), quiet_transformers():
        model, found = getattr(transformers, auto_class).from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        if found["missing_keys"] and new_head_seed is None:
            raise checks.no_language_model_head(name, min(found["missing_keys"]))
        if auto_class == CAUSAL and _looks_ahead(model):
            raise checks.looks_ahead(name, type(model).__name__)
    return cast("PreTrainedModel", model)


@torch.inference_mode()
def _looks_ahead(model: Any) -> bool:
    """Whether what a model says at its first token depends on the second."""
    with evaluating(model):
        logits = model(input_ids=torch.tensor([[0, 0], [0, 1]])).logits
    return not torch.equal(logits[0, 0], logits[1, 0])


def stream_model(
    name: str, device: torch.device, max_memory_bytes: int, auto_class: str
) -> "StreamedTeacher":
    """A fine-tuned model that runs layer by layer from its files, in float32.

    Raises:
        ValueError: transformers cannot load it, or it has no head for its task.
        RuntimeError: accelerate is not installed.
    """
    import transformers

    from mkd_fast.teacher.streamed import StreamedTeacher

    with told_by_name(name):
        return StreamedTeacher(
            name,
            getattr(transformers, auto_class),
            dtype=torch.float32,
            device=device,
            max_memory_bytes=max_memory_bytes,
        )


def labels_of(name: str) -> tuple[str, ...]:
    """The labels that a classifier's config names, in the order of its logits."""
    config = _config(name)
    return tuple(config.id2label[number] for number in range(config.num_labels))


def to_device(model: "PreTrainedModel", device: torch.device) -> "PreTrainedModel":
    """Move a model; transformers' own ``to`` is typed for something else."""
    torch.nn.Module.to(model, device)
    return model


def skeleton_of(name: str, auto_class: str = SEQUENCE) -> "PreTrainedModel":
    """A model's modules without its weights, from its config."""
    import transformers

    config = _config(name)
    with told_by_name(name), quiet_transformers(), torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, auto_class).from_config(config)
    return model


def _config(name: str) -> Any:
    from transformers import AutoConfig

    with told_by_name(name):
        return AutoConfig.from_pretrained(name)


def load_tokenizer(name: str) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a model."""
    from transformers import AutoTokenizer

    with told_by_name(name):
        return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(name))


def save_folder(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    token_map: "TokenMap | None" = None,
    texts: Mapping[str, str] | None = None,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and tokenizer as ``from_pretrained`` reads them, then put the folder in place.

    Args:
        folder: where it will be.
        model: to be written.
        tokenizer: its own.
        token_map: of a vocabulary that was cut, for targets of the whole one.
        texts: other files to lie beside them, by name.
        state: the model's, where its own tensors are not all in this process; None: its own.

    Raises:
        OSError: the disk is full or not writable; no half-written folder is left.
    """
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        with quiet_transformers():
            model.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        if token_map is not None:
            token_map.save(partial)
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        partial.rename(folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # tokenizers tells of a full disk by a bare Exception in the words of Rust
        if isinstance(error, (OSError, SafetensorError)) or "(os error " in str(error):
            raise checks.folder_not_made(folder, error) from error
        raise
