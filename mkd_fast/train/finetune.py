"""Fine-tuning a teacher, kept outside the run's folder so that every later run reuses it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mkd_fast import progress
from mkd_fast.data import Text, TokenisedText
from mkd_fast.data.feeding import feeding
from mkd_fast.files import read_json, write_json
from mkd_fast.packaged import home_folder
from mkd_fast.teacher.cache import fingerprint_model
from mkd_fast.train import checkpoint, models
from mkd_fast.train.config import Config
from mkd_fast.train.forward import prove_packing
from mkd_fast.train.loop import FitResult, fit
from mkd_fast.train.parallel import whole_state
from mkd_fast.train.processes import ALONE, Processes
from mkd_fast.train.recipe import decisive_settings
from mkd_fast.train.step_log import Sink
from mkd_fast.train.task_kinds import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class FinetunedTeacher:
    """Where a fine-tuned teacher and the record of its training are kept."""

    home: Path

    @property
    def folder(self) -> Path:
        """The model folder."""
        return self.home / "model"

    @property
    def metrics_path(self) -> Path:
        """Rows of its training, JSONL."""
        return self.home / "metrics.jsonl"

    @property
    def fit(self) -> FitResult:
        """What its training cost."""
        return FitResult(**read_json(self.home / "fit.json"))


def finetuned_teacher(
    model: str,
    text: Text,
    kind: TaskKind,
    config: Config,
    device: torch.device,
    name: str,
    tokenise: Callable[["PreTrainedTokenizerFast"], TokenisedText],
    sinks: Sequence[Sink] = (),
    processes: Processes = ALONE,
) -> FinetunedTeacher:
    """Fine-tune a pretrained model on labelled text, or find that this was done before.

    Args:
        model: folder or hub name of the pretrained model.
        text: what it is trained on; another task's is another text.
        kind: the task.
        config: ``[finetune]``, ``[data]`` (prefix, length, masking) and ``[run]`` (seed) decide,
            with model and text, whether an earlier teacher is the same one.
        device: where it is trained.
        name: in metric rows and progress lines.
        tokenise: the text, by a tokenizer.
        sinks: each gets the metric rows as well.
        processes: that train it together.
    """
    with models.told_by_name(model):
        fingerprint = fingerprint_model(model) if Path(model).is_dir() else model
    decisive = {
        "model": fingerprint,
        "text": text.fingerprint,
        "prefix": config.data.text_prefix,
        "max_length": config.data.max_length,
        "finetune": decisive_settings(config.finetune),
        "seed": config.run.seed,
    }
    if kind.starts_at_label_shares:
        decisive["new_head"] = "label shares"
    temperature = config.data.language_temperature
    if temperature != 1.0:  # which teachers were that are kept without one
        decisive["language_temperature"] = temperature
    if config.task.kind == "masked_lm":
        decisive["masking"] = [config.data.num_maskings, config.data.mask_share]
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
    teacher = FinetunedTeacher(home_folder() / "teachers" / f"{Path(model).name}-{key}")
    if teacher.folder.exists():
        progress.say(f"teacher: fine-tuned before, {teacher.folder}")
        return teacher
    progress.say(f"teacher: fine-tuning {model}")
    learner = kind.load(model, text.label_names, new_head_seed=config.run.seed)
    tokenizer = models.load_tokenizer(model)
    tokens = tokenise(tokenizer)
    if kind.starts_at_label_shares:
        models.start_at_label_shares(learner, tokens.labels)
    prove_packing(learner, tokens, config.finetune.packing)
    fed = feeding(config.finetune.packing, temperature, text.languages, tokens)
    checkpoint_path = teacher.home / "checkpoint.pt"
    result = fit(
        models.to_device(learner, device),
        kind.label_task(tokens, config.finetune.batch_size, config.run.seed, fed),
        config.finetune,
        name=name,
        checkpoint_path=checkpoint_path,
        metrics_path=teacher.metrics_path,
        sinks=sinks,
        seed=config.run.seed,
        processes=processes,
    )
    state = whole_state(learner)

    def save() -> FinetunedTeacher:
        write_json(teacher.home / "fit.json", vars(result))
        models.save_folder(teacher.folder, learner, tokenizer, state=state)
        checkpoint.discard(checkpoint_path)
        return teacher

    return processes.made_once(lambda: teacher if teacher.folder.exists() else None, save)
