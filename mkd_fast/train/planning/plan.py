"""What every stage of a recipe takes, and what makes it fit."""

import sys
from dataclasses import dataclass
from functools import cache

from mkd_fast.resident import status_bytes
from mkd_fast.train.config import Config
from mkd_fast.train.planning.advice import Advice, advise
from mkd_fast.train.planning.report import shown, told
from mkd_fast.train.planning.stages import StagePeak, predict, stages_of
from mkd_fast.train.planning.workload import FromLength, FromText, Source

# Python, torch, transformers and this package, where the system does not say.
_USUAL_PROCESS_BYTES = 480 << 20


@dataclass(frozen=True)
class Plan:
    """What a recipe takes.

    Attributes:
        memory_bytes: what there is; None where nothing is asked for.
        batches: the largest ones, for people.
        peaks: of every stage.
        advice: for those that do not fit.
    """

    memory_bytes: int | None
    batches: str
    peaks: tuple[StagePeak, ...]
    advice: tuple[Advice, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every stage does."""
        return not self.advice

    def __str__(self) -> str:
        """For people."""
        parts = [self.batches, shown(self.peaks, self.memory_bytes)]
        if self.memory_bytes is not None:
            parts += [told(each, self.memory_bytes) for each in self.advice]
        return "\n\n".join(parts)


def plan(config: Config, memory_bytes: int | None = None, length: int | None = None) -> Plan:
    """Predict the peak memory of every stage, and look for settings where one does not fit.

    Args:
        config: the resolved recipe. Nothing is written to its run's folder.
        memory_bytes: of the machine, or of the GPU where ``run.device`` is one; None: enough.
        length: tokens of every sample; None reads the recipe's text, which has to be there.

    Raises:
        ValueError: the recipe's teacher or text is not what the recipe says; the message says why.
    """
    source: Source = FromText() if length is None else FromLength(length)
    work = source.workload(config)
    process_bytes = resident_bytes()
    peaks = [predict(config, work, stage, process_bytes) for stage in stages_of(config)]
    batches = work.told(config)
    if memory_bytes is None:
        return Plan(None, batches, tuple(peaks))

    def advised(peak: StagePeak) -> Advice:
        def with_other(config: Config) -> StagePeak:
            return predict(config, source.workload(config), peak.stage, process_bytes)

        return advise(config, work, peak, memory_bytes, with_other)

    advice = [advised(peak) for peak in peaks if peak.num_bytes > memory_bytes]
    return Plan(memory_bytes, batches, tuple(peaks), tuple(advice))


@cache
def resident_bytes() -> int:
    """What this process held when it first asked, with its libraries loaded."""
    import transformers.models.auto  # noqa: F401 (what every stage imports)

    return status_bytes("VmRSS") if sys.platform == "linux" else _USUAL_PROCESS_BYTES
