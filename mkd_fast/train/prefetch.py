"""The next batches made ready by a thread while the current one computes."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def prefetch(
    make: Callable[[A], T], arguments: Sequence[A], depth: int = 2
) -> Generator[T, None, None]:
    """Iterate over ``make(a) for a in arguments`` with up to ``depth`` made ahead, in order.

    An error while making one is raised where it is taken. Closing the generator ends the thread
    after what it is making.
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        try:
            for argument in arguments:
                pending.append(thread.submit(make, argument))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
