"""Running recipes: typed config, the loop, checkpoints, and the stages in their order."""

from mkd_fast.train.stages import DistillResult, distill

__all__ = ["DistillResult", "distill"]
