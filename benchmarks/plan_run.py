"""One stage of a run, or the plan of all of them, in a process of its own.

``python -m mkd_fast.benchmarks.plan_run JSON`` prints the most bytes that it had in memory, or what
is predicted of each stage; ``mkd_fast.benchmarks.plan`` calls it.
"""

import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from mkd_fast.benchmarks.memory import status_bytes
from mkd_fast.quiet import quiet_torchao

if TYPE_CHECKING:
    from mkd_fast.train.config import Config
    from mkd_fast.train.tasks import DistillTask


def _dense(task: Any) -> "DistillTask":
    """The same cache and text, and ``kd_loss`` of the whole logits of a language model."""
    from mkd_fast.train.tasks import DistillTask

    return DistillTask(**{f.name: getattr(task, f.name) for f in fields(DistillTask)})


def _predicted(config: "Config", *, is_dense: bool) -> dict[str, int]:
    import torch

    from mkd_fast.data.batches import Batch
    from mkd_fast.train.loop import Step
    from mkd_fast.train.planning.plan import plan, resident_bytes
    from mkd_fast.train.planning.stages import TRAIN, distilling, peak_of_step
    from mkd_fast.train.planning.targets import made_up_target
    from mkd_fast.train.planning.workload import FromText

    peaks = {peak.stage: peak.num_bytes for peak in plan(config).peaks}
    if not is_dense:
        return peaks
    work = FromText().workload(config)
    base = resident_bytes()
    (task, _), batch = distilling(config, work), work.trained
    labels = torch.zeros_like(batch.input_ids)
    whole = Batch(batch.input_ids, batch.attention_mask, labels, batch.sample_ids)
    step = Step(whole, made_up_target(config, work.teacher, whole, 0))
    found = peak_of_step(config, TRAIN, work.student, _dense(task), step, base)
    return {**peaks, TRAIN: found.num_bytes}


def _stage(config: "Config", stage: str, *, is_dense: bool) -> None:
    from mkd_fast.train import models
    from mkd_fast.train.loop import fit
    from mkd_fast.train.run import STUDENT, Run

    run = Run(config)
    if stage == "fine-tune":
        _ = run.finetuned
    elif stage == "capture":
        _ = run.cache
    elif stage == "copy":
        _ = run.copied
    elif not is_dense:
        run.trained(STUDENT)
    else:
        model = models.to_device(run._loaded(run.copied), run.device)
        task = _dense(run._distill_task(model, config.train, config.loss))
        path = run.folder / "dense.pt"
        fit(model, task, config.train, name="dense", seed=0, checkpoint_path=path)


def main() -> None:
    """Do what the argument says."""
    quiet_torchao()  # before anything imports it
    from mkd_fast.train.config import from_dict

    settings, what, is_dense = json.loads(sys.argv[1])
    config = from_dict(settings)
    if what == "plan":
        print(json.dumps(_predicted(config, is_dense=is_dense)))
        return
    _stage(config, what, is_dense=is_dense)
    print(status_bytes("VmHWM"))


if __name__ == "__main__":
    main()
