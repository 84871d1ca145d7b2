"""Measure the fidelity table; what a stopped run has measured is not measured again."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mkd_fast.benchmarks import masked_head
from mkd_fast.benchmarks.fidelity import errors, numbers, quality, stored, study, tiny
from mkd_fast.benchmarks.fidelity.numbers import Number
from mkd_fast.benchmarks.fidelity.study import Size, Study
from mkd_fast.data.running_text import running_text
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher.pretrained import resolve_model

BUDGETS = {"sampled:50": 40.0, "topk:64": 280.0}  # bytes a token
SOURCES = (
    quality.DENSE,
    "hidden",
    quality.LAYERS,
    quality.INT8_LAYERS,
    "topk:16, bucket",
    "topk:16, renormalize",
    "topk:64, bucket",
    "topk:64, drop",
    "topk:128, bucket",
    "sampled:12",
    "sampled:25",
    "sampled:50",
    "sampled:100",
)
CAUSAL = Size(SOURCES)
MASKED = Size(SOURCES, repeated_tokens=64)


def studies(work: Path, masked_lm: Path | None) -> Iterator[Study]:
    """The causal teacher, and the masked one, whose head is trained if there is none."""
    documents = running_text()
    name = "smollm2-135m-instruct"
    yield study.causal(name, resolve_model(name), documents, CAUSAL, work)
    name, folder = "multilingual-e5-small", masked_lm or work / "masked_lm"
    if not folder.is_dir():
        masked_head.make(folder, name, documents, masked_head.Training())
    yield study.masked(name, str(folder), documents, MASKED, work)


def measure(studied: Study) -> Iterator[Number]:
    """All numbers of one teacher, but what other students have learned."""
    yield from _stage(studied, "bytes", partial(stored.stored_bytes, studied, BUDGETS))
    yield from _stage(studied, "untrained", partial(_untrained, studied))
    yield from students(studied, studied.size.sources[:1], num_seeds=1)
    half = studied.teacher.config.num_hidden_layers // 2
    trained = _trained_student(studied)
    for label, student in (("copied", studied.student(half)), ("trained", trained)):
        of_logits = partial(errors.of_logits, studied, student, label)
        yield from _stage(studied, f"errors, {label}", of_logits)
        of_layers = partial(errors.of_matched_layers, studied, student, label)
        yield from _stage(studied, f"matched layers, {label}", of_layers)
    of_draws = partial(errors.of_repeated_draws, studied, trained, "trained")
    yield from _stage(studied, "repeated draws", of_draws)


def students(studied: Study, sources: Sequence[str], num_seeds: int) -> Iterator[Number]:
    """What students learn from each source."""
    for seed in range(num_seeds):
        for source in sources:
            train = partial(_trained, studied, source, seed)
            yield from _stage(studied, f"from {source}, seed {seed}", train)


def _stage(studied: Study, name: str, make: Callable[[], Iterable[Number]]) -> list[Number]:
    started = time.monotonic()
    found = numbers.kept(studied.folder / "numbers" / f"{name}.json", make)
    print(f"{studied.name}: {name}, {time.monotonic() - started:.0f} s", flush=True)
    return found


def _untrained(studied: Study) -> Iterator[Number]:
    yield from quality.evaluate(studied, studied.teacher, "teacher", "")
    student = studied.student(studied.size.num_layers)
    yield from quality.evaluate(studied, student, "no training", "")


def _trained(studied: Study, source: str, seed: int) -> Iterator[Number]:
    student = quality.train(studied, source, seed)
    if (source, seed) == (quality.DENSE, 0):
        with quiet_transformers():
            student.save_pretrained(studied.folder / "student")
    yield from quality.evaluate(studied, student, source, f"seed {seed}")


def _trained_student(studied: Study) -> Any:
    """The one that the dense teacher has trained."""
    with quiet_transformers():
        return type(studied.teacher).from_pretrained(studied.folder / "student").eval()


def main() -> None:
    """Measure both teachers and write the CSV; ``benchmarks.readme`` makes the page of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="models, caches and numbers go here")
    parser.add_argument("--masked-lm", type=Path, help="a folder of masked_head; else it is made")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="random models: shows that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    given_studies = tiny.studies(given.work) if given.tiny else studies(given.work, given.masked_lm)
    measured = [(studied, list(measure(studied))) for studied in given_studies]
    found = {
        number: None  # the first student is in both
        for studied, of_teacher in measured
        for number in (*of_teacher, *students(studied, studied.size.sources, given.seeds))
    }
    print(numbers.write(found, given.out))


if __name__ == "__main__":
    main()
