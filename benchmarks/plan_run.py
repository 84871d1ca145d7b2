"""One stage of a run, or the plan of all of them, in a process of its own.

``python -m mkd_fast.benchmarks.plan_run JSON`` prints the most bytes that it had in memory, or what
is predicted of each stage; ``mkd_fast.benchmarks.plan`` calls it.
"""

import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from mkd_fast.quiet import quiet_torchao
from mkd_fast.resident import status_bytes

if TYPE_CHECKING:
    from mkd_fast.train.config import Config
    from mkd_fast.train.optim_config import OptimConfig
    from mkd_fast.train.run import Run
    from mkd_fast.train.tasks import DistillTask


def _of_whole_logits(task: Any) -> "DistillTask":
    """The same cache and text, and ``kd_loss`` of the whole logits of a language model."""
    from mkd_fast.train.tasks import DistillTask

    return DistillTask(**{f.name: getattr(task, f.name) for f in fields(DistillTask)})


def _predicted(config: "Config") -> dict[str, int]:
    from mkd_fast.train.planning.plan import plan

    return {peak.stage: peak.num_bytes for peak in plan(config).peaks}


def _predicted_of_whole_logits(config: "Config") -> dict[str, int]:
    import torch

    from mkd_fast.data.batches import Batch
    from mkd_fast.train.loop import Step
    from mkd_fast.train.planning.plan import resident_bytes
    from mkd_fast.train.planning.stages import TRAIN, distilling, peak_of_step
    from mkd_fast.train.planning.targets import made_up_target
    from mkd_fast.train.planning.workload import FromText

    work = FromText().workload(config)
    process_bytes = resident_bytes()
    (task, _), batch = distilling(config, work), work.trained
    labels = torch.zeros_like(batch.input_ids)
    whole = Batch(batch.input_ids, batch.attention_mask, labels, batch.sample_ids)
    step = Step(whole, made_up_target(config, work.teacher, whole, 0))
    found = peak_of_step(config, TRAIN, work.student, _of_whole_logits(task), step, process_bytes)
    return {TRAIN: found.num_bytes}


def _stage(run: "Run", stage: str, optim: "OptimConfig", *, is_whole: bool) -> None:
    from mkd_fast.train import models
    from mkd_fast.train.loop import fit

    if stage == "fine-tune":
        _ = run.finetuned
    elif stage == "capture":
        _ = run.cache
    elif stage == "copy":
        _ = run.copied
    else:
        model = models.to_device(run._loaded(run.copied), run.device)
        task = run._distill_task(model, optim, run.config.loss)
        path = run.folder / "checkpoints" / "measured.pt"
        task = _of_whole_logits(task) if is_whole else task
        fit(model, task, optim, name="student", seed=0, checkpoint_path=path)
        path.unlink()


def main() -> None:
    """Do what the argument says."""
    quiet_torchao()  # before anything imports it
    from mkd_fast.train.config import from_dict
    from mkd_fast.train.run import Run

    settings, what, train, is_whole = json.loads(sys.argv[1])
    config = from_dict({**settings, "train": {**settings["train"], **train}})
    if what == "plan":
        predicted = _predicted_of_whole_logits if is_whole else _predicted
        sys.stdout.write(json.dumps(predicted(config)))
        return
    run = Run(from_dict(settings))
    _stage(run, what, config.train, is_whole=is_whole)
    sys.stdout.write(f"\n{status_bytes('VmHWM')}\n")


if __name__ == "__main__":
    main()
