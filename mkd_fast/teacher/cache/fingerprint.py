"""Fingerprints: what tells two teachers, tokenizers, texts or token sequences apart."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import cache as checks

# fields of a config that say where or by which release it was written, not what the model computes
_INCIDENTAL = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


@dataclass(frozen=True)
class Fingerprints:
    """Where a cache comes from. None: not recorded, or in a comparison, not asked for.

    Args:
        teacher: of the model's config and weights, from ``fingerprint_model``.
        tokenizer: from ``fingerprint_tokenizer``.
        chat_template: from ``fingerprint_chat_template``.
        dataset: of the text in its order, from the data that made the batches.
        precision: the arithmetic of the forward pass, for example ``"float32"``; ``capture``
            fills it in.
    """

    teacher: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    dataset: str | None = None
    precision: str | None = None

    def require(self, function: str, stored: "Fingerprints", folder: Path) -> None:
        """Raise ValueError that names the first fingerprint in which ``stored`` differs."""
        for field in fields(self):
            asked, found = getattr(self, field.name), getattr(stored, field.name)
            if asked is not None and asked != found:
                raise checks.cache_of_another(function, folder, field.name, found, asked)


def fingerprint_model(model: Any) -> str:
    """sha256 over a model's config and the name, dtype, shape and content of its weights.

    Args:
        model: a ``transformers`` model, or the folder that ``save_pretrained`` wrote. A folder
            and the model loaded from it in the stored dtype have the same fingerprint.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: the folder holds no safetensors file.
    """
    if isinstance(model, (str, Path)):
        from transformers import AutoConfig

        paths = sorted(Path(model).glob("*.safetensors"))
        if not paths:
            raise checks.no_safetensors(Path(model))
        config: Any = AutoConfig.from_pretrained(model)
        weights = _weights_in(paths)
    else:
        config = model.config
        tied = set(getattr(model, "all_tied_weights_keys", ()))
        weights = ((n, t) for n, t in model.state_dict().items() if n not in tied)
    return fingerprint_weights(config, weights)


def fingerprint_weights(config: Any, weights: Iterable[tuple[str, Tensor]]) -> str:
    """``fingerprint_model`` of named weights, of which one at a time is asked for."""
    settings = {k: v for k, v in config.to_diff_dict().items() if k not in _INCIDENTAL}
    lines = [f"{name} {t.dtype} {tuple(t.shape)} {_content(t)}" for name, t in weights]
    text = json.dumps(settings, sort_keys=True, default=str) + "\n" + "\n".join(sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def _weights_in(paths: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


def _content(weight: Tensor) -> str:
    flat = weight.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """sha256 over what decides a tokenizer's ids: pieces, rules, special tokens.

    Padding and truncation are left out: they are settings of a call.

    Args:
        tokenizer: a ``transformers`` tokenizer.

    Returns:
        64 hexadecimal digits.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        rules = json.loads(fast.to_str())
        del rules["padding"], rules["truncation"]
    else:
        rules = [type(tokenizer).__name__, tokenizer.get_vocab()]
    text = json.dumps([rules, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_chat_template(tokenizer: Any) -> str | None:
    """sha256 of what makes a text of a conversation.

    Args:
        tokenizer: a ``transformers`` tokenizer, with one template or several by name.

    Returns:
        64 hexadecimal digits; None where it has no template.
    """
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return None
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def token_hashes(input_ids: Tensor, attention_mask: Tensor) -> NDArray[np.uint64]:
    """64-bit hash of each sample's token ids, whatever its padding.

    Args:
        input_ids: ``[B, S]``, any integer dtype.
        attention_mask: ``[B, S]``, nonzero where a token is real.

    Returns:
        uint64 ``[B]``: blake2b with a digest of 8 bytes over the real ids as little-endian int32.
    """
    ids = input_ids.cpu().numpy().astype("<i4")
    real = attention_mask.bool().cpu().numpy()
    hashes = [
        hashlib.blake2b(row[keep].tobytes(), digest_size=8).digest()
        for row, keep in zip(ids, real, strict=True)
    ]
    return np.frombuffer(b"".join(hashes), "<u8")
