"""The tables of a study's report. Scores are means over languages and seeds, in per cent."""

from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean, median, stdev

from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.study.questions import DEPTH, Answer
from mkd_fast.study.results import SEEN, UNSEEN, Arm, Cell, Model, StudyResults

NO_VALUE = "—"
GOOD_SHARE = 0.9  # of the teacher's development score: how fast a student learns
AT_CHANCE_SHARE = 0.1  # of what the teacher scores above chance: who has less has learnt nothing
LEARNT_SHARE = 0.5  # of what the teacher scores above chance: who has less has nothing to keep
NAMES = {
    "scratch": "scratch",
    "embeddings": "embeddings copied",
    "pretrained": "copied, pretrained model",
    "finetuned": "copied, fine-tuned teacher",
    "labels": "labels only",
    "logit_mse": "logit MSE",
    "kl": "KL",
    "kl_hidden": "KL + hidden",
    "hidden": "hidden only",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "span_f1": "span F1",
    "masked_accuracy": "masked tokens found",
    "next_accuracy": "next tokens found",
    "perplexity": "perplexity",
    "kl_to_teacher": "KL to the teacher",
}
# Of language models: how it is written, and how its mean is taken. A language of which a model
# knows little would decide an arithmetic mean of perplexities.
BESIDE = {"perplexity": (",.0f", geometric_mean), "kl_to_teacher": (".2f", fmean)}


def title(name: str) -> str:
    """A name as a caption begins with it."""
    return NAMES[name][0].upper() + NAMES[name][1:]


def at_chance(results: StudyResults, fraction: float) -> list[str]:
    """Which starts and objectives have learnt next to nothing of the seen languages."""
    least = AT_CHANCE_SHARE * (results.teacher.score(results.seen) - results.chance)
    return [
        f"{NAMES[arm.start]}, {NAMES[arm.objective]}, {arm.num_layers} layers"
        for arm, cells in sorted(results.by_arm.items())
        if (arm.fraction, arm.depth) == (fraction, DEPTH)
        and fmean(cell.score(results.seen) for cell in cells.values()) - results.chance < least
    ]


def overview(results: StudyResults, fraction: float) -> Table:
    """A row for each start and objective; seen / unseen, for each number of layers."""
    depths = results.present("num_layers")
    sections = _starts_and_objectives(results, fraction, lambda arm: (_both(results, arm),))
    teacher = TableRow(("teacher", *(_of_teacher(results) for _ in depths)), strong=True)
    copied = TableRow((f"{NAMES['finetuned']}, untrained", *(_before(results, n) for n in depths)))
    header = (f"start, objective ({fraction:.0%} of the text)", *(f"{n} layers" for n in depths))
    return Table(_caption(results), header, ((teacher, copied), *sections))


def beside(results: StudyResults, fraction: float) -> Table:
    """Of language models, what else was measured; rows and columns as in ``overview``."""

    def both(models: Sequence[Model]) -> list[str]:
        return [
            " / ".join(_of_groups(results, lambda some, name=name: _value(models, name, some)))  # type: ignore[misc]
            for name in BESIDE
        ]

    def cells(arm: Arm) -> list[str]:
        of_arm = _cells(results, arm)
        return both(of_arm) if of_arm else [NO_VALUE] * len(BESIDE)

    depths = results.present("num_layers")
    teacher = TableRow(("teacher", *both([results.teacher]) * len(depths)), strong=True)
    sections = _starts_and_objectives(results, fraction, cells)
    header = (
        f"start, objective ({fraction:.0%} of the text)",
        *(f"{NAMES[name]}, {n} layers" for n in depths for name in BESIDE),
    )
    caption = (
        "Perplexity of a token to be said, and KL to the teacher in nats a token, in seen / unseen"
        f" languages: means over languages and {seeds(len(results.seeds))}, of perplexities"
        " geometric ones; less is better"
    )
    return Table(caption, header, ((teacher,), *sections))


def _value(models: Sequence[Model], name: str, languages: Sequence[str]) -> str:
    spec, mean = BESIDE[name]
    return format(mean([m.scores[x][name] for m in models for x in languages]), spec)


def _starts_and_objectives(
    results: StudyResults, fraction: float, cells: Callable[[Arm], Sequence[str]]
) -> tuple[tuple[TableRow, ...], ...]:
    """A section for each start, a row for each of its objectives, and some cells for each depth."""

    def arms(start: str, objective: str) -> list[Arm]:
        depths = results.present("num_layers")
        return [Arm(start, DEPTH, objective, fraction, layers) for layers in depths]

    return tuple(
        tuple(
            TableRow(
                (
                    f"{NAMES[start]}, {NAMES[objective]}",
                    *(cell for arm in arms(start, objective) for cell in cells(arm)),
                )
            )
            for objective in results.present("objective")
            if any(arm in results.by_arm for arm in arms(start, objective))
        )
        for start in results.present("start")
    )


def by_fraction(results: StudyResults, objective: str, num_layers: int) -> Table:
    """A row for each start, a column for each share of the text, and what is kept at the least."""
    fractions = results.present("fraction")
    rows = []
    for start in results.present("start"):
        arms = [Arm(start, DEPTH, objective, fraction, num_layers) for fraction in fractions]
        main = Arm(start, DEPTH, objective, results.main_fraction, num_layers)
        kept = _kept(results, main, arms[-1])
        rows.append(TableRow((NAMES[start], *(_both(results, arm) for arm in arms), kept)))
    header = (
        f"start ({NAMES[objective]}, {num_layers} layers)",
        *(f"{fraction:.0%} of the text" for fraction in fractions),
        f"kept at {fractions[-1]:.0%}",
    )
    return Table(_caption(results), header, (tuple(rows),))


def by_depth(results: StudyResults, objective: str, fraction: float) -> Table:
    """A row for each choice of layers, for copies of the fine-tuned teacher."""
    depths = results.present("num_layers")
    rows = []
    for depth in results.present("depth"):
        arms = [Arm("finetuned", depth, objective, fraction, layers) for layers in depths]
        layers = (_layers(results, arm) for arm in arms)
        cells = [
            cell for arm, of in zip(arms, layers, strict=True) for cell in (of, _both(results, arm))
        ]
        rows.append(TableRow((depth, *cells)))
    header = [title for n in depths for title in (f"which {n}", f"{n} layers")]
    what = f"layers ({NAMES[objective]}, {fraction:.0%} of the text)"
    return Table(_caption(results), (what, *header), (tuple(rows),))


def speed(results: StudyResults, objective: str, num_layers: int) -> Table:
    """Steps to 90 % of the teacher's development score, the median of the seeds that got there."""
    target = GOOD_SHARE * results.teacher.dev
    fractions = results.present("fraction")

    def cell(start: str, fraction: float) -> str:
        cells = _cells(results, Arm(start, DEPTH, objective, fraction, num_layers))
        steps = [found for one in cells if (found := one.steps_to(target)) is not None]
        if not cells:
            return NO_VALUE
        never = (
            f" ({len(cells) - len(steps)} of {len(cells)} never)" if len(steps) < len(cells) else ""
        )
        return f"{median(steps):.0f} of {cells[0].steps}{never}" if steps else "never"

    rows = tuple(
        TableRow((NAMES[start], *(cell(start, fraction) for fraction in fractions)))
        for start in results.present("start")
    )
    caption = (
        f"Optimizer steps to {100 * target:.1f} %, 90 % of the teacher's score on development text"
        " of the seen languages: the median of the seeds that got there"
    )
    what = f"start ({NAMES[objective]}, {num_layers} layers)"
    header = (what, *(f"{fraction:.0%} of the text" for fraction in fractions))
    return Table(caption, header, (rows,))


def by_language(results: StudyResults, objective: str, fraction: float, num_layers: int) -> Table:
    """A row for each language, a column for each start."""
    starts = [
        start
        for start in results.present("start")
        if Arm(start, DEPTH, objective, fraction, num_layers) in results.by_arm
    ]

    def score(start: str, languages: Sequence[str]) -> str:
        cells = _cells(results, Arm(start, DEPTH, objective, fraction, num_layers))
        return _spread([cell.score(languages) for cell in cells]) + _fewer(results, cells)

    def row(name: str, languages: Sequence[str], *, strong: bool = False) -> TableRow:
        teacher = f"{100 * results.teacher.score(languages):.1f}"
        return TableRow((name, teacher, *(score(start, languages) for start in starts)), strong)

    sections = []
    for group in (SEEN, UNSEEN):
        if languages := results.languages(group):
            mean = row(f"mean of {len(languages)} {group}", languages, strong=True)
            sections.append((*(row(language, [language]) for language in languages), mean))
    what = f"language ({NAMES[objective]}, {fraction:.0%}, {num_layers} layers)"
    header = (what, "teacher", *(NAMES[start] for start in starts))
    return Table(f"{title(results.metric)}, %", header, tuple(sections))


def answers(found: Sequence[Answer]) -> Table:
    """Every comparison with its interval, p-value and what was expected."""
    expectation = {1: "better", -1: "worse", 0: ""}
    rows = tuple(
        TableRow(
            (
                answer.what,
                answer.group,
                f"{100 * answer.found.value:+.1f}",
                f"{100 * answer.found.low:+.1f} to {100 * answer.found.high:+.1f}",
                f"{'≤ ' if answer.found.is_floor else ''}{answer.adjusted_p:.2g}",
                str(answer.found.num_pairs),
                str(answer.found.num_seeds),
                expectation[answer.expected],
                "surprise" if answer.is_surprise else "not shown" if answer.is_not_shown else "",
            )
        )
        for answer in found
    )
    header = (
        "comparison",
        "languages",
        "points",
        "95 % interval",
        "p (Holm)",
        "pairs",
        "seeds",
        "expected",
        "",
    )
    caption = "Mean differences over pairs of arms that differ in nothing but what is compared"
    return Table(caption, header, (rows,))


def learning_rates(results: StudyResults) -> Table:
    """The rate that development text of the seen languages chose, by start and objective."""
    objectives = results.present("objective")

    def rates(start: str, objective: str) -> str:
        found = {
            (cell.learning_rate, cell.rates)
            for cell in results.cells
            if (cell.arm.start, cell.arm.objective) == (start, objective)
        }
        return " ".join(_rate(*one) for one in sorted(found)) or NO_VALUE

    rows = tuple(
        TableRow((NAMES[start], *(rates(start, objective) for objective in objectives)))
        for start in results.present("start")
    )
    caption = "Peak learning rates; ↓ the lowest and ↑ the highest of those that were tried"
    return Table(caption, ("start", *(NAMES[name] for name in objectives)), (rows,))


def _rate(chosen: float, tried: Sequence[float]) -> str:
    at_an_end = {tried[0]: " ↓", tried[-1]: " ↑"} if len(tried) > 1 else {}
    return f"{chosen:.1e}{at_an_end.get(chosen, '')}".replace(".0e", "e")


def seeds(number: int) -> str:
    """How many, in words."""
    return "one seed" if number == 1 else f"{number} seeds"


def _caption(results: StudyResults) -> str:
    number = len(results.seeds)
    of = seeds(number) if number == 1 else f"mean of {seeds(number)} ± their standard deviation"
    return f"{title(results.metric)} in seen / unseen languages, %: {of}"


def _cells(results: StudyResults, arm: Arm) -> list[Cell]:
    return list(results.by_arm.get(arm, {}).values())


def _both(results: StudyResults, arm: Arm) -> str:
    cells = _cells(results, arm)
    if not cells:
        return NO_VALUE
    return " / ".join(
        _of_groups(results, lambda languages: _spread([c.score(languages) for c in cells]))
    ) + _fewer(results, cells)


def _fewer(results: StudyResults, cells: Sequence[Cell]) -> str:
    """A note where others have more seeds."""
    return f" ({seeds(len(cells))})" if len(cells) < len(results.seeds) else ""


def _before(results: StudyResults, num_layers: int) -> str:
    """Of a copy that nothing has trained."""
    arm_of = (DEPTH, num_layers)
    copies = (c for c in results.cells if (c.arm.depth, c.arm.num_layers) == arm_of and c.before)
    copy = next(copies, None)
    if copy is None:
        return NO_VALUE
    scores = copy.before
    return " / ".join(
        _of_groups(results, lambda some: f"{100 * fmean(scores[name] for name in some):.1f}")
    )


def _of_teacher(results: StudyResults) -> str:
    return " / ".join(_of_groups(results, lambda some: f"{100 * results.teacher.score(some):.1f}"))


def _of_groups(results: StudyResults, show: Callable[[Sequence[str]], str]) -> list[str]:
    groups = (results.languages(group) for group in (SEEN, UNSEEN))
    return [show(languages) for languages in groups if languages]


def _spread(scores: Sequence[float]) -> str:
    mean = f"{100 * fmean(scores):.1f}"
    return f"{mean} ± {100 * stdev(scores):.1f}" if len(scores) > 1 else mean


def _kept(results: StudyResults, most: Arm, least: Arm) -> str:
    """What share of its score above chance with most of the text a start has with the least."""
    of_arms = _cells(results, most), _cells(results, least)
    if not all(of_arms):
        return NO_VALUE

    def share(languages: Sequence[str]) -> str:
        whole, kept = (fmean(cell.score(languages) for cell in of) for of in of_arms)
        enough = LEARNT_SHARE * (results.teacher.score(languages) - results.chance)
        if whole - results.chance < max(enough, 1e-9):
            return NO_VALUE
        return f"{max(0.0, kept - results.chance) / (whole - results.chance):.0%}"

    return " / ".join(_of_groups(results, share))


def _layers(results: StudyResults, arm: Arm) -> str:
    cells = _cells(results, arm)
    return " ".join(map(str, cells[0].layers)) if cells else NO_VALUE
