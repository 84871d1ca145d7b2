"""The processes of a run, as torchrun starts them, and what they tell each other.

All go through the same stages. What is made once, rank 0 makes, and the others wait for the file
or folder, which appears whole; so it does not matter when each of them asks for it. A capture is
shared through locks of the file system (``teacher.shared``). Training is data parallel, and only
there do processes talk to each other: the device's tensors through one group, the hosts' numbers
through another, so that no device is waited for.
"""

import atexit
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mkd_fast import progress
from mkd_fast.checks import train as checks

T = TypeVar("T")
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Processes:
    """Those that train one model, and which of them this is.

    Args:
        rank: 0 makes and writes what there is once.
        size: how many there are.
        group: through which tensors of the training device go; None where ``size`` is 1.
        hosts: of the same processes, through which numbers on the CPU go.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    hosts: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Rank 0."""
        return self.rank == 0

    def made_once(self, find: Callable[[], T | None], make: Callable[[], T]) -> T:
        """What is found; or else what rank 0 makes, and the others find when it is whole.

        Nothing in ``make`` may need the other processes: train before.
        """
        while (found := find()) is None:
            if self.is_first:
                return make()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return found

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's rows of a step, about as long as the others' where sorted by length."""
        return rows[self.rank :: self.size]

    def seed(self, seed: int, steps: int = 0) -> None:
        """Seed torch with what is each process's own; for rank 0 at the start, with the seed."""
        if self.rank or steps:
            seed = random.Random(f"{seed}/{self.rank}/{steps}").getrandbits(63)
        torch.manual_seed(seed)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes of a tensor on the training device; no host waits for it."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def sums_ahead(
        self, items: Iterable[T], numbers: Callable[[T], Sequence[int]]
    ) -> Iterator[tuple[T, list[int]]]:
        """Each item with its numbers, summed over the processes.

        Sums are asked for one item ahead, so that no host waits for the answer, and ``numbers``
        of an item are read before the item before it is handed out.
        """
        if self.size == 1:
            for item in items:
                yield item, list(numbers(item))
            return
        before: tuple[T, Tensor, Any] | None = None
        for item in items:
            sums = torch.tensor(numbers(item))
            asked = item, sums, dist.all_reduce(sums, group=self.hosts, async_op=True)
            if before is not None:
                yield _answered(*before)
            before = asked
        if before is not None:
            yield _answered(*before)

    def gathered(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.hosts)
        return values

    def wait_for_all(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            dist.barrier(group=self.hosts)


ALONE = Processes()


def _answered(item: T, sums: Tensor, work: Any) -> tuple[T, list[int]]:
    work.wait()
    return item, sums.tolist()


def join(device: torch.device) -> Processes:
    """Join the processes that torchrun started, if it did; only rank 0 then talks to people.

    A group that the caller has initialised is used as it is.

    Args:
        device: this process's own; see ``own_device``.
    """
    is_joined = dist.is_available() and dist.is_initialized()
    if not is_joined and _num_started() == 1:
        return ALONE
    if not is_joined:
        is_gpu = device.type == "cuda"
        store, rank, size = next(rendezvous("env://"))
        # torchrun keeps its store when it starts all anew: the dead processes' addresses are there
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            store=PrefixStore(f"attempt {attempt}", store),
            rank=rank,
            world_size=size,
            device_id=device if is_gpu else None,
        )
        atexit.register(_leave)
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1:
        return ALONE
    progress.console.quiet = rank > 0
    return Processes(rank, size, dist.group.WORLD, dist.new_group(backend="gloo"))


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process's own where torchrun started several on a machine, else the device.

    Raises:
        RuntimeError: the machine has fewer.
    """
    if str(device) != "cuda" or _num_started() == 1:  # or it was named with its number
        return device
    number, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= num_gpus:
        raise checks.more_processes_than_gpus(int(os.environ["LOCAL_WORLD_SIZE"]), num_gpus)
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _num_started() -> int:
    """As torchrun says; 1 where it was not torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
