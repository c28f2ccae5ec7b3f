"""Several processes that train one model together: what they exchange.

`group()` says what this process belongs to: a `Group` of one, whose methods leave everything as it is, or the `Ranks`
of the torch.distributed session that it is in. Ranks run the same code on the same seeds, so all come to the same
exchanges in the same order. Each exchange begins with a roll-call, which a rank that failed answers too: then all of
them stop, and none waits for one that gave up. A rank that died breaks the connection.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Abandoned(Exception):
    """Another worker of the group failed, or went another way; this one cannot go on."""


class WorkerLost(Exception):
    """A worker of the group died, or cannot be reached any more. Not the stage's fault."""


class Group:
    """A process that works alone; and what ranks offer, with a group of one in mind."""

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that validates, logs and writes."""
        return self.rank == 0

    def check(self) -> None:
        """Wait for all ranks. Raises Abandoned where one has failed."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating tensors by their means over ranks."""

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their means over ranks, in which a missing one is 0; missing everywhere, it stays so."""

    def share(self, value: T) -> T:
        """Rank 0's value, on all ranks: tensors (on the CPU for the others), plain values, and dicts and lists of them.

        What the others pass is ignored.
        """
        return value

    def gather(self, value: T) -> list[T]:
        """The value of each rank, by rank, on all ranks; of the kinds that `share` takes."""
        return [value]

    def settle(self, ok: bool, value: T) -> list[T]:
        """The last exchange: as `gather`, but also after a rank has failed, which says so by `ok`. Never Abandoned."""
        return [value]


ALONE = Group()


class _Kind(IntEnum):
    CHECK = 0
    AVERAGE = 1
    GRADIENTS = 2
    SHARE = 3
    GATHER = 4
    SETTLE = 5


class Ranks(Group):
    """The ranks of the process's default torch.distributed group, which must be able to exchange CPU tensors."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._exchanges = 0
        self._broken = False

    def check(self) -> None:
        self._roll_call(_Kind.CHECK)

    def average(self, tensors: Sequence[Tensor]) -> None:
        self._roll_call(_Kind.AVERAGE)
        self._mean(tensors)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        import torch
        import torch.distributed as dist

        parameters = list(parameters)
        have = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        if self._roll_call(_Kind.GRADIENTS, remark=not bool(have.all())):
            with _reachable():
                dist.all_reduce(have, dist.ReduceOp.MAX)
        gradients = []
        for p, anywhere in zip(parameters, have.tolist(), strict=True):
            if anywhere and p.grad is None:
                p.grad = torch.zeros_like(p)
            if p.grad is not None:
                gradients.append(p.grad)
        self._mean(gradients)

    def share(self, value: T) -> T:
        packed = _packed(value) if self.leads else b""
        self._roll_call(_Kind.SHARE)
        packed = self._from(0, packed)
        return value if self.leads else _unpacked(packed)

    def gather(self, value: T) -> list[T]:
        packed = _packed(value)
        self._roll_call(_Kind.GATHER)
        return self._from_each(packed)

    def settle(self, ok: bool, value: T) -> list[T]:
        packed = _packed(value)
        if not self._broken:
            with suppress(Abandoned):
                self._roll_call(_Kind.SETTLE, failed=not ok)
        return self._from_each(packed)

    def _roll_call(self, kind: _Kind, *, failed: bool = False, remark: bool = False) -> bool:
        """Wait until every rank is at its next exchange; whether any made a remark.

        Raises Abandoned, on all ranks, where one has failed or is at another exchange than the others.
        """
        import torch
        import torch.distributed as dist

        if self._broken:
            raise Abandoned("another worker failed")
        self._exchanges += 1
        here = self._exchanges * len(_Kind) + kind
        seen = torch.tensor([failed, remark, here, -here], dtype=torch.int64)
        with _reachable():
            dist.all_reduce(seen, dist.ReduceOp.MAX)
        any_failed, any_remark, last, first = seen.tolist()
        self._broken = bool(any_failed) or last != -first
        if any_failed:
            raise Abandoned("another worker failed")
        if self._broken:
            raise Abandoned("the workers went different ways: what they compute must depend on the seed alone")
        return bool(any_remark)

    def _mean(self, tensors: Sequence[Tensor]) -> None:
        """In one exchange, however many tensors there are."""
        import torch
        import torch.distributed as dist

        if not tensors:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            with _reachable():
                dist.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def _from_each(self, packed: bytes) -> list[Any]:
        return [_unpacked(self._from(rank, packed)) for rank in range(self.size)]

    def _from(self, rank: int, packed: bytes) -> bytes:
        """The bytes of one rank, on all."""
        import torch
        import torch.distributed as dist

        size = torch.tensor(len(packed), dtype=torch.int64)
        with _reachable():
            dist.broadcast(size, rank)
            if rank == self.rank:
                content = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
            else:
                content = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(content, rank)
        return content.numpy().tobytes()


def _packed(value: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(packed: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)


def divides(batch: Any, size: int) -> bool:
    """Whether a batch is tensors of `size` along their first dimension, and nothing else."""
    from torch import Tensor

    if isinstance(batch, Tensor):
        return batch.shape[:1] == (size,)
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    return isinstance(batch, tuple | list) and bool(batch) and all(divides(value, size) for value in batch)


def part(batch: Any, which: slice) -> Any:
    """The same entries of every tensor of a batch that `divides`."""
    from torch import Tensor

    if isinstance(batch, Tensor):
        return batch[which]
    if isinstance(batch, Mapping):
        return {key: part(value, which) for key, value in batch.items()}
    return type(batch)(part(value, which) for value in batch)


@contextmanager
def _reachable() -> Iterator[None]:
    """What torch raises when a peer is gone or silent, as WorkerLost."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerLost(str(error).partition("\n")[0]) from error


_known: list[tuple[Any, Ranks]] = []


def group() -> Group:
    """The group of this process: `Ranks` within a torch.distributed session of several processes, else `ALONE`."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    session = dist.group.WORLD
    if not _known or _known[-1][0] is not session:
        _known[:] = [(session, Ranks())]
    return _known[-1][1]
