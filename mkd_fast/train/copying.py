"""The student of a recipe: which tokens it keeps, and what it takes of its teacher."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mkd_fast import progress
from mkd_fast.student import (
    CopyReport,
    TokenMap,
    check_same_splits,
    copy_with_report,
    token_ids_of_text,
    trim_tokenizer,
)
from mkd_fast.train.config import Config, StudentConfig
from mkd_fast.train.corpus import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def trimmed_tokenizer(
    full: "PreTrainedTokenizerFast", corpus: Corpus, written: Sequence[str], config: Config
) -> tuple["PreTrainedTokenizerFast", TokenMap]:
    """The teacher's tokenizer cut to the text in use, and the map of its token ids.

    Args:
        full: the teacher's.
        corpus: its unlabelled text counts too.
        written: the training text as it is tokenised.
        config: of the run.
    """
    data, coverage = config.data, config.student.coverage
    if corpus.unseen and not data.is_built and not data.vocabulary_text:
        progress.say(
            "student: WARNING, its vocabulary is that of the training text, which may "
            f"lack words of {' '.join(corpus.unseen)}; name text in them in "
            'data.vocabulary_text, or set student.vocabulary = "all"'
        )
    also = (data.text_prefix + text for text in corpus.vocabulary_text)
    each_once = dict.fromkeys((*written, *also))
    tokenizer, token_map = trim_tokenizer(full, token_ids_of_text(each_once, full, coverage))
    if coverage == 1.0:
        check_same_splits(full, tokenizer, each_once)
    return tokenizer, token_map


def copied_student(
    teacher: "PreTrainedModel",
    layers: Sequence[int],
    settings: StudentConfig,
    token_map: TokenMap | None,
    calibration: Iterable[Any] | None,
) -> tuple["PreTrainedModel", CopyReport]:
    """A copy of these layers, as narrow as ``[student]`` says, and where it came from."""
    return copy_with_report(
        teacher,
        layers,
        hidden_size=settings.hidden_size or None,
        keep_token_ids=None if token_map is None else token_map.keep_token_ids,
        calibration=calibration,
        num_heads=settings.num_heads or None,
        intermediate_size=settings.intermediate_size or None,
        width=settings.width,
    )
