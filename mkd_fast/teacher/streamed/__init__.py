"""Teachers larger than memory: run layer by layer over blocks of batches, read from the disk."""

from mkd_fast.teacher.streamed.cost import Cost
from mkd_fast.teacher.streamed.teacher import StreamedTeacher

__all__ = ["Cost", "StreamedTeacher"]
