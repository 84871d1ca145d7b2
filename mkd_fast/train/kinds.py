"""The tasks that there are, by what ``[task] kind`` calls them."""

from mkd_fast.train.causal_lm import CausalLanguageModel
from mkd_fast.train.classification import SequenceClassification, TokenClassification
from mkd_fast.train.config import Config
from mkd_fast.train.masked_lm import MaskedLanguageModel
from mkd_fast.train.task_kinds import TaskKind


def kind_of(config: Config) -> TaskKind:
    """The task of a recipe."""
    kinds: dict[str, TaskKind] = {
        "sequence_classification": SequenceClassification(config.data),
        "token_classification": TokenClassification(config.data),
        "causal_lm": CausalLanguageModel(config.data),
        "masked_lm": MaskedLanguageModel(config.data, config.run.seed),
    }
    return kinds[config.task.kind]
