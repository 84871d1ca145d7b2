"""Model cards: what a trained student is, told by its run's own files in the hub's form."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkd_fast.evaluate.scores import LanguageScore, Measure, ModelScores
from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.files import read_json, write_atomically
from mkd_fast.losses.spec import LossSpec
from mkd_fast.sharing.record import RunRecord
from mkd_fast.student.report import summary_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

CARD = "README.md"
_TRAINING = ("epochs", "batch_size", "learning_rate", "warmup", "weight_decay", "precision")
# What the hub calls a task, and what transformers loads it with.
_PIPELINES = {
    "sequence_classification": ("text-classification", "AutoModelForSequenceClassification"),
    "token_classification": ("token-classification", "AutoModelForTokenClassification"),
    "masked_lm": ("fill-mask", "AutoModelForMaskedLM"),
    "causal_lm": ("text-generation", "AutoModelForCausalLM"),
}
_STARTS = {
    "student": "copied from the fine-tuned teacher, then distilled",
    "scratch": "random weights, then distilled: the rival that shows what copying is worth",
}


def write_card(run: RunRecord, name: str) -> None:
    """Write README.md into the folder of a trained model, unless it says the same already.

    Args:
        run: finished or not; scores are in the card if they are known.
        name: of the model's folder, "student" or "scratch".

    Raises:
        OSError: it cannot be written.
    """
    folder = run.folder / name
    text = card_text(run, name)
    path = folder / CARD
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, [text.encode()])


def card_text(run: RunRecord, name: str) -> str:
    """The card: front matter for the hub, then what a person wants to know."""
    title = f"{run.folder.name}: {_teacher_name(run)}, distilled"
    body = "\n".join(_sections(run, name, title))
    return f"---\n{front_matter(run, name).to_yaml(line_break=chr(10))}\n---\n\n{body}"


def front_matter(run: RunRecord, name: str) -> "ModelCardData":
    """What the hub reads: languages, teacher, task, and each score."""
    from huggingface_hub import ModelCardData

    scores = run.scores.get(name)
    pipeline, _ = _PIPELINES[run.task]
    results = [] if scores is None else list(_eval_results(run, scores, pipeline))
    base = _hub_name(run)
    measures = () if scores is None else scores.measures
    return ModelCardData(
        model_name=run.folder.name,
        language=_languages(run, scores) or None,
        base_model=base,
        base_model_relation="finetune" if base else None,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["knowledge-distillation", "mkd_fast", "multilingual"],
        metrics=[measure.name for measure in measures] or None,
        eval_results=results or None,
    )


def _eval_results(run: RunRecord, scores: ModelScores, pipeline: str) -> "Iterator[EvalResult]":
    from huggingface_hub import EvalResult

    for group, of_group in (("seen", scores.seen), ("unseen", scores.unseen)):
        for score in of_group:
            for measure in scores.measures[:2]:
                yield EvalResult(
                    task_type=pipeline,
                    dataset_type=_data_name(run),
                    dataset_name=f"{_data_name(run)}, {score.language} ({group} in training)",
                    dataset_config=score.language,
                    dataset_split="test",
                    metric_type=measure.name,
                    metric_name=measure.title,
                    metric_value=round(score.values[measure.name], 6),
                )


def _sections(run: RunRecord, name: str, title: str) -> Iterator[str]:
    _, auto_class = _PIPELINES[run.task]
    settings, fit = run.settings, run.fit(name)
    seen, unseen = (
        [score.language for score in group]
        for scores in [run.scores.get(name)]
        for group in ((scores.seen, scores.unseen) if scores else ((), ()))
    )
    yield f"# {title}\n"
    yield f"A student made by mkd_fast: {_STARTS[name]}.\n"
    yield "## Use\n"
    prefix = settings["data"].get("text_prefix", "")
    yield (
        f"```python\nfrom transformers import AutoTokenizer, {auto_class}\n"
        f'tokenizer, model = (c.from_pretrained("PATH") for c in (AutoTokenizer, {auto_class}))\n'
        f'logits = model(**tokenizer({prefix + "your text"!r}, return_tensors="pt")).logits\n```\n'
    )
    yield "## Results\n"
    yield from _results(run, name)
    yield "## Teacher and student\n"
    yield from _list(
        f"Teacher: {_teacher_name(run)}"
        + ("" if settings["teacher"].get("finetuned") else ", fine-tuned on the data below"),
        *_sizes(run, name),
    )
    if name == "student" and (origins := run.folder / "copied" / "origins.md").exists():
        yield "What was copied, and from where:\n"
        yield summary_of(origins.read_text(encoding="utf-8"))
    yield "## Data\n"
    yield from _list(
        f"Source: {_data_name(run)}"
        + (f"; trained on {' '.join(seen)}" if seen else "")
        + (f"; only tested on {' '.join(unseen)}" if unseen else ""),
        *(f"Fingerprint of the {what}: `{value}`" for what, value in _fingerprints(run)),
    )
    yield "## Training\n"
    yield from _list(
        f"Loss: {_loss(settings['loss'])}{_moves(settings.get('loss_schedule', {}))}",
        f"Settings: {_named(_TRAINING, settings['train'])}; seed {settings['run']['seed']}",
        *([_cost(fit)] if fit else []),
        f"Versions: {', '.join(f'{k} {v}' for k, v in run.record.get('versions', {}).items())}",
    )
    yield "## Limits\n"
    yield from _list(
        "It knows what its teacher knows and errs where it errs; it was tested on the text named"
        " here only, and its intervals speak of other sentences of that kind, not of other text or"
        " other seeds",
        f"Longest input in training: {settings['data']['max_length']} tokens",
        *(
            [
                "Its vocabulary was cut to the tokens of the text it was made for: other scripts"
                " and languages are split into smaller pieces or lost"
            ]
            if settings["student"]["vocabulary"] == "used"
            else []
        ),
        "The licence is that of the teacher and the data, which this card does not know",
    )


def _results(run: RunRecord, name: str) -> Iterator[str]:
    scores, teacher = run.scores.get(name), run.scores.get("teacher")
    if scores is None:
        yield "Not scored yet.\n"
        return
    shown = scores.measures[:2]
    theirs = {} if teacher is None else {s.language: s for s in (*teacher.seen, *teacher.unseen)}
    sections = []
    for group, of_group in (("seen", scores.seen), ("unseen", scores.unseen)):
        sections.append(
            tuple(
                TableRow(
                    (
                        score.language,
                        group,
                        f"{score.num_samples:,}",
                        with_interval(shown[0], score),
                        *(_figure(measure, score) for measure in shown[1:]),
                        _figure(shown[0], theirs.get(score.language)),
                    )
                )
                for score in of_group
            )
        )
    header = ("language", "in training", "tested", *(measure.title for measure in shown))
    caption = "On test text" + ", %" * shown[0].is_share + "; in brackets the 95 % interval."
    yield Table(caption, (*header, f"teacher's {shown[0].title}"), tuple(sections)).to_markdown()


def with_interval(measure: Measure, score: LanguageScore) -> str:
    """A language's headline figure and its interval."""
    low, high = (_number(measure, bound) for bound in score.interval)
    return f"{_figure(measure, score)} [{low}, {high}]"


def _figure(measure: Measure, score: LanguageScore | None) -> str:
    return "" if score is None else _number(measure, score.values[measure.name])


def _number(measure: Measure, value: float) -> str:
    return f"{100 * value:.1f}" if measure.is_share else f"{value:.3f}"


def _sizes(run: RunRecord, name: str) -> Iterator[str]:
    if (size := run.size_bytes(name)) is not None:
        yield f"Size of this model on disk: {size / 1e6:.1f} MB"


def _fingerprints(run: RunRecord) -> Iterator[tuple[str, str]]:
    manifest = read_json(run.folder / "cache" / "manifest.json") or {}
    found = manifest.get("plan", {}).get("fingerprints", {})
    for what in ("teacher", "tokenizer", "dataset"):
        if found.get(what):
            yield what, found[what]


def _loss(settings: Mapping[str, Any]) -> str:
    """Its divergence and terms, and whatever is not as a LossSpec has it."""
    always = ("divergence", "temperature", "kd_weight", "ce_weight", "hidden_weight")
    defaults = dataclasses.asdict(LossSpec())
    changed = [k for k, value in settings.items() if k in defaults and value != defaults[k]]
    return _named(dict.fromkeys((*always, *changed)), settings)


def _moves(schedule: Mapping[str, Any]) -> str:
    """Weights of the loss that go from there to another value."""
    moving = {key: value for key, value in schedule.items() if key.endswith("_weight") and value}
    return "".join(f"; {key} goes to {end} ({shape})" for key, (shape, end) in moving.items())


def _named(keys: "Sequence[str] | Mapping[str, Any]", settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {settings[key]}" for key in keys if key in settings)


def _cost(fit: Mapping[str, Any]) -> str:
    return f"Took {fit['steps']:,} steps, {fit['tokens']:,} tokens and {fit['seconds']:,.0f} s"


def _list(*items: str) -> Iterator[str]:
    yield "".join(f"- {item}.\n" for item in items)


def _teacher_name(run: RunRecord) -> str:
    return _hub_name(run) or Path(run.settings["teacher"]["model"]).name


def _hub_name(run: RunRecord) -> str | None:
    """The teacher's name on the hub; a folder of somebody's machine has none."""
    name = str(run.settings["teacher"]["model"])
    known = {"multilingual-e5-small": "intfloat/multilingual-e5-small"}
    is_hub = (
        name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    )
    return known.get(name, name if is_hub else None)


def _data_name(run: RunRecord) -> str:
    data = run.settings["data"]
    return str(data["hub_name"] or data["source"])


def _languages(run: RunRecord, scores: ModelScores | None) -> list[str]:
    if scores is None:
        return list(run.settings["data"]["seen"])
    return [score.language for score in (*scores.seen, *scores.unseen)]
