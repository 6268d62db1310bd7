r"""The rows of a table that several processes share, and what they exchange.

:mod:`torch.distributed` moves the bytes (gloo on CPUs, NCCL on GPUs). Nothing here is
global: functions that can work on a part of the rows take the :class:`Rows` that say
which part it is.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyg_c2f.typing import InputError

T = TypeVar('T')


def one_thread_each(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Calls functions, as many at a time as there are threads, each on one of them.

    A product whose inner dimension is the rows of a table is cut among the threads by
    the library behind it, and so are decompositions: their last digits depend on the
    number of threads, and small decompositions are slower with several than with one.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        return [function() for function in functions]
    try:
        with ThreadPoolExecutor(
            max(min(num_threads, len(functions)), 1),
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as pool:
            return list(pool.map(lambda function: function(), functions))
    finally:
        torch.set_num_threads(num_threads)


class Group:
    r"""The processes of a run, and the number of blocks that they cut tables into.

    Rows of a table are cut into a fixed number of blocks, whatever the number of
    processes, and each process holds some neighbouring blocks. What is computed of a
    block never depends on its process, and sums over blocks are formed in double
    precision and rounded once, so that their order cannot be seen in the result (but
    for one in some :math:`2^{29}` entries, by its last bit). A run therefore gives the
    same numbers on one process and on many.

    Args:
        num_blocks (int, optional): The number of blocks. (default: ``1``)
        is_distributed (bool, optional): Whether the processes are those of the default
            group of :mod:`torch.distributed`; else this process is alone. (default:
            ``False``)

    Raises:
        InputError: If there are more processes than blocks.
    """

    def __init__(self, num_blocks: int = 1, is_distributed: bool = False) -> None:
        self.is_distributed = is_distributed
        self.rank = dist.get_rank() if is_distributed else 0
        self.size = dist.get_world_size() if is_distributed else 1
        self.num_blocks = num_blocks
        self.is_main = self.rank == 0
        """Whether this process writes and shows what all have computed."""
        if self.size > num_blocks:
            raise InputError(
                f'{self.size} processes, but num_shards={num_blocks}: start '
                f'{num_blocks} at most, or set num_shards={self.size}, which gives '
                'slightly different figures, as another seed does'
            )
        self.firsts = [num_blocks * r // self.size for r in range(self.size + 1)]

    def local(self, blocks: Any) -> Any:
        """Of a sequence with an entry for each block, those of this process."""
        return blocks[self.firsts[self.rank] : self.firsts[self.rank + 1]]

    def rows(self, num_rows: int) -> 'Rows':
        """Shares out rows, in blocks of equal number."""
        parts = range(self.num_blocks + 1)
        return Rows(self, [num_rows * part // self.num_blocks for part in parts])

    def sum(self, parts: Iterable[Tensor]) -> Tensor:
        """The sum of one tensor for each block, of all processes."""
        blocks = iter(parts)
        first = next(blocks)
        if self.num_blocks == 1:
            return first
        if first.dtype == torch.double and self.size > 1:
            return self.sum_in_order([first, *blocks], self.all_reduce)
        total = first.to(torch.double, copy=True)
        for part in blocks:
            total += part
        return self.all_reduce(total).to(first.dtype)

    def sum_in_order(
        self, parts: Sequence[Tensor], exchange: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The sum of double-precision tensors, one for each block, block after block.

        They have no digits to spare in which their order could hide, so each block is
        exchanged by itself, with zeros from the processes that do not hold it.
        """
        total: Any = 0.0
        for block in range(self.num_blocks):
            own = block - self.firsts[self.rank]
            is_own = 0 <= own < len(parts)
            part = parts[own].clone() if is_own else torch.zeros_like(parts[0])
            total = total + exchange(part)
        return total

    def sum_of_each(self, functions: Sequence[Callable[[], Tensor]]) -> Tensor:
        """The sum of what a function gives for each block, each on one thread."""
        return self.sum(one_thread_each(functions))

    def all_reduce(self, x: Tensor) -> Tensor:
        """Adds up one tensor of each process, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def max(self, value: float) -> float:
        """The largest of one number of each process."""
        if self.size == 1:
            return value
        x = torch.tensor(value, dtype=torch.double)
        dist.all_reduce(x, dist.ReduceOp.MAX)
        return x.item()

    def broadcast(self, *tensors: Tensor) -> Any:
        """What the first process has, in place of what each has computed.

        Decompositions of small matrices are computed by all of them, but machines of
        two kinds may choose other signs.
        """
        if self.size > 1:
            for x in tensors:
                dist.broadcast(x, 0)
        return tensors if len(tensors) > 1 else tensors[0]

    def wait(self) -> None:
        """Waits until all processes are here, as for a file that one has written."""
        if self.size > 1:
            dist.barrier()


def one_block_each(is_distributed: bool) -> Group:
    """The processes, for sums whose last digits may depend on how many they are."""
    return Group(dist.get_world_size() if is_distributed else 1, is_distributed)


class Rows:
    """The rows of a table, and which of them this process holds.

    Of a table that is shared out, a process has a tensor of its own rows only.

    Args:
        group (Group): The processes.
        bounds (Sequence): Where the blocks begin, and the number of rows.
    """

    def __init__(self, group: Group, bounds: Sequence[int]) -> None:
        self.group, self.bounds = group, list(bounds)
        self.cuts = [self.bounds[first] for first in group.firsts]
        self.start, self.stop = self.cuts[group.rank : group.rank + 2]
        mine = slice(group.firsts[group.rank], group.firsts[group.rank + 1] + 1)
        local = [bound - self.start for bound in self.bounds[mine]]
        self.blocks = [slice(*pair) for pair in pairwise(local)]
        """The blocks of this process, within its own rows."""

    @property
    def num_rows(self) -> int:
        """The number of rows of all processes."""
        return self.bounds[-1]

    def local(self, x: Any) -> Any:
        """This process's rows of a whole table."""
        return x[self.start : self.stop]

    def gather(self, x: Tensor) -> Tensor:
        """The whole table, from everybody's own rows."""
        if self.group.size == 1:
            return x
        out = x.new_empty(self.num_rows, *x.shape[1:])
        self.local(out).copy_(x)
        # gloo gathers parts of one size only; these are not, and need no copy so.
        sent = [
            dist.broadcast(out[start:stop], rank, async_op=True)
            for rank, (start, stop) in enumerate(pairwise(self.cuts))
            if start < stop
        ]
        for work in sent:
            work.wait()
        return out

    def reduce_scatter(self, table: Tensor) -> Tensor:
        """This process's rows of the sum of one whole table of each process.

        Each process sends every other one the rows that are the other's.
        """
        size = self.group.size
        if size == 1:
            return table
        width = table[0].numel()
        counts = [(stop - start) * width for start, stop in pairwise(self.cuts)]
        mine = counts[self.group.rank]
        received = table.new_empty(size * mine)
        dist.all_to_all_single(received, table.flatten(), [mine] * size, counts)
        received = received.view(size, self.stop - self.start, *table.shape[1:])
        return received.sum(dim=0)

    def gram(self, x: Tensor, y: Tensor) -> Tensor:
        """The product of two tables over all rows, ``x.T @ y``."""
        return self.group.sum_of_each(
            [partial(torch.mm, x[block].T, y[block]) for block in self.blocks]
        )

    def matmul(self, x: Tensor, matrix: Tensor) -> Tensor:
        """This process's rows times a small matrix, block by block."""
        out = x.new_empty(len(x), matrix.size(1))
        for block in self.blocks:
            torch.mm(x[block], matrix, out=out[block])
        return out

    def select(self, x: Tensor, index: Tensor) -> Tensor:
        """Rows of the whole table by their numbers, from all processes."""
        if self.group.size == 1:
            return x[index]
        out = x.new_zeros(len(index), *x.shape[1:])
        is_own = (index >= self.start) & (index < self.stop)
        out[is_own] = x[index[is_own] - self.start]
        return self.group.all_reduce(out)
