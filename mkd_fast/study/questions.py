"""What a study is asked, and what it answers.

A question is a set of pairs of arms that differ in one thing. The answer is their mean difference
in seen and in unseen languages, in points of the headline score, with its interval and a p-value
that is adjusted for all the questions of the report (Holm). What was expected was written down
before (arXiv 2406.16524 and 2505.16956, this project's own probes): a sure answer on the other side
of 0 is a surprise and is called one; what was expected and is not sure is said not to be shown.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from mkd_fast.study.resampling import Difference, Resampling, holm
from mkd_fast.study.results import SEEN, UNSEEN, Arm, StudyResults

DEPTH = "stride"  # of the main grid
NOT_LABELS = ("logit_mse", "kl", "kl_hidden")  # objectives that any start can be taught by


@dataclass(frozen=True)
class Question:
    """Pairs of arms, and what was expected of the first ones.

    Attributes:
        what: the comparison, in words.
        pairs: of which the difference is taken.
        expected: +1 or -1, the sign that it was expected to have; 0 for none.
    """

    what: str
    pairs: tuple[tuple[Arm, Arm], ...]
    expected: int = 0


@dataclass(frozen=True)
class Answer:
    """What came out in one group of languages."""

    what: str
    group: str
    found: Difference
    adjusted_p: float
    expected: int

    @property
    def is_sure(self) -> bool:
        """Whether it stands after adjusting for all questions."""
        return self.found.is_clear and self.adjusted_p < 0.05

    @property
    def is_surprise(self) -> bool:
        """Whether it is sure, and the opposite was expected."""
        return self.is_sure and self.found.value * self.expected < 0

    @property
    def is_not_shown(self) -> bool:
        """Whether it was expected to be better or worse, and is neither for sure."""
        return self.expected != 0 and not self.is_sure

    def sentence(self) -> str:
        """The answer in words: "+3.1 points [2.0, 4.2] in unseen languages"."""
        points = f"{100 * self.found.value:+.1f} points [{100 * self.found.low:.1f}, "
        points += f"{100 * self.found.high:.1f}] in {self.group} languages"
        doubts = [] if self.is_sure else ["not sure"]
        if self.found.num_seeds == 1:
            doubts.append("one seed")
        return f"{points} ({', '.join(doubts)})" if doubts else points


def ask(results: StudyResults, resampling: Resampling) -> list[Answer]:
    """The answers to every question that the study's cells can answer."""
    found = [
        (question, group, difference)
        for question in questions(results)
        for group in (SEEN, UNSEEN)
        if results.languages(group)
        and (difference := resampling.difference(question.pairs, group)) is not None
    ]
    adjusted = holm([difference.p_value for *_, difference in found])
    return [
        Answer(question.what, group, difference, p_value, question.expected)
        for (question, group, difference), p_value in zip(found, adjusted, strict=True)
    ]


def questions(results: StudyResults) -> list[Question]:
    """All of them, in the order of the report; some may have no pair."""
    arms = [arm for arm in results.by_arm if arm.depth == DEPTH]
    main, least = results.main_fraction, min(results.present("fraction"))
    at_main = [arm for arm in arms if arm.fraction == main]
    asked = [*_copying_and_distilling(at_main)]
    if least < main:
        asked += _starts(
            [arm for arm in arms if arm.fraction == least], f"at {least:.0%} of the text: "
        )
    asked += _objectives(at_main)
    asked += _depths(results)
    return asked


def _copying_and_distilling(arms: Sequence[Arm]) -> list[Question]:
    against = Question(
        "copied and trained on labels alone, against scratch and distilled (KL)",
        tuple(
            (arm, replace(arm, start="scratch", objective="kl"))
            for arm in arms
            if (arm.start, arm.objective) == ("finetuned", "labels")
        ),
        expected=1,
    )
    distilling = Question(
        "distilling (KL) instead of labels, from any start",
        _pairs(arms, lambda arm: arm.objective == "kl", objective="labels"),
        expected=1,
    )
    return [*_starts(arms, ""), distilling, against]


def _starts(arms: Sequence[Arm], where: str) -> list[Question]:
    def between(ours: str, theirs: str, what: str) -> Question:
        objectives = ("labels", *NOT_LABELS)
        pairs = _pairs(
            arms, lambda arm: arm.start == ours and arm.objective in objectives, start=theirs
        )
        return Question(where + what, pairs, expected=1)

    return [
        between("finetuned", "scratch", "copied from the fine-tuned teacher, instead of scratch"),
        between("embeddings", "scratch", "embeddings copied, instead of scratch"),
        between("finetuned", "embeddings", "the layers copied too, instead of embeddings alone"),
        between(
            "finetuned",
            "pretrained",
            "copied from the fine-tuned teacher, not the pretrained model",
        ),
    ]


def _objectives(arms: Sequence[Arm]) -> list[Question]:
    def between(ours: str, theirs: str, what: str, start: str | None, expected: int) -> Question:
        pairs = _pairs(
            arms,
            lambda arm: arm.objective == ours and start in (None, arm.start),
            objective=theirs,
        )
        return Question(what, pairs, expected)

    return [
        between("kl", "logit_mse", "KL instead of logit MSE, from any start", None, -1),
        between("kl", "logit_mse", "KL instead of logit MSE, copied", "finetuned", -1),
        between("kl_hidden", "kl", "hidden states matched too, copied", "finetuned", 0),
        between("kl_hidden", "kl", "hidden states matched too, scratch", "scratch", 0),
        between("hidden", "kl", "hidden states alone instead of KL, copied", "finetuned", -1),
    ]


def _depths(results: StudyResults) -> list[Question]:
    arms = [arm for arm in results.by_arm if arm.start == "finetuned"]
    alike: dict[frozenset[tuple[int, ...]], list[str]] = {}
    for depth in results.present("depth"):
        alike.setdefault(_layers_of(results, depth), []).append(depth)
    return [
        Question(
            f"layers by {' or '.join(depths)} instead of {DEPTH}, copied",
            _pairs(arms, lambda arm, depth=depths[0]: arm.depth == depth, depth=DEPTH),  # type: ignore[misc]
        )
        for depths in alike.values()
        if DEPTH not in depths
    ]


def _layers_of(results: StudyResults, depth: str) -> frozenset[tuple[int, ...]]:
    """What a choice of layers came to; two may come to the same."""
    return frozenset(cell.layers for cell in results.cells if cell.arm.depth == depth)


def _pairs(
    arms: Iterable[Arm], takes: Callable[[Arm], bool], **other: str
) -> tuple[tuple[Arm, Arm], ...]:
    """Each arm that is taken, beside the one that differs from it in ``other``."""
    return tuple((arm, replace(arm, **other)) for arm in sorted(arms) if takes(arm))  # type: ignore[arg-type]
