"""A tokenizer that fits into a test: Unigram, as multilingual encoders have."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def unigram(
    words: Sequence[str], *, letters: str = "", has_mask: bool = False
) -> PreTrainedTokenizerFast:
    """Words and letters as pieces: `<s> <pad> </s> <unk>` first, `<mask>` last if there is one.

    Args:
        words: pieces that begin a word; their letters are pieces too.
        letters: more single letters.
        has_mask: whether there is a mask token.
    """
    starts = [f"▁{word}" for word in words]
    mask = ["<mask>"] if has_mask else []
    singles = sorted(set("".join(starts)) | set(letters))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *starts, *singles, *mask]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        **({"mask_token": "<mask>"} if has_mask else {}),
        model_input_names=["input_ids", "attention_mask"],
    )
