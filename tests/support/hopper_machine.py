"""An abstract Hopper for Gluon kernels, on a CPU: asynchronous work happens at a moment drawn from a seed.

Triton's interpreter lacks Gluon. The machine runs a kernel's own source on torch tensors, the partitions in turns. A
started copy or matrix product finishes at any later moment, at the latest at a wait. The target of a pending copy is
NaN, and a product before the wait is NaN. A missing wait therefore gives NaN under some seed, and an endless wait is a
deadlock and raises. The compiler, instead of the machine, checks layouts.
"""

from __future__ import annotations

import importlib
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NAN = float("nan")


class MachineError(Exception):
    """The kernel broke a rule of the hardware, or waits forever."""


@dataclass
class Barrier:
    """An mbarrier: a phase ends after `count` arrivals and all announced bytes."""

    count: int = 0
    arrivals: int = 0
    num_bytes: int = 0
    phase: int = 0

    def arrive(self, count: int = 1) -> None:
        if not self.count:
            raise MachineError("arrival at a barrier that was never initialised")
        self.arrivals += count
        if self.arrivals > self.count:
            raise MachineError(f"{self.arrivals} arrivals at a barrier for {self.count}")
        self.turn()

    def turn(self) -> None:
        if self.arrivals == self.count and self.num_bytes == 0:
            self.arrivals, self.phase = 0, self.phase ^ 1


class Shared:
    """Shared memory; views share `written`, the flag of a plain store before the fence."""

    def __init__(self, data: torch.Tensor, written: list[bool] | None = None) -> None:
        self.data, self.written = data, [False] if written is None else written

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, number: Any) -> Shared:
        return Shared(self.data[int(number)], self.written)

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.data.permute(tuple(order)), self.written)

    def store(self, value: torch.Tensor) -> None:
        machine().switch()
        self.data.copy_(value)
        self.written[0] = True


class Barriers:
    """An allocation of mbarriers."""

    def __init__(self, barriers: list[Barrier]) -> None:
        self.barriers = barriers

    def index(self, number: Any) -> Barrier:
        return self.barriers[int(number)]


@dataclass
class Descriptor:
    """A TMA descriptor of a matrix: reads beyond the end give zero, and writes beyond the end are clipped."""

    data: torch.Tensor
    block_shape: tuple[int, int]
    layout: object = None

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def block_type(self) -> SimpleNamespace:
        return SimpleNamespace(nbytes=self.block_shape[0] * self.block_shape[1] * self.data.element_size())

    def clip(self, start: Sequence[Any]) -> tuple[torch.Tensor, int, int]:
        row, column = map(int, start)
        part = self.data[row : row + self.block_shape[0], column : column + self.block_shape[1]]
        return part, *part.shape


@dataclass
class Pointer:
    data: torch.Tensor
    offset: Any = 0

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.data, self.offset + more)


@dataclass
class Pending:
    """Pending work: `finish` does the work."""

    kind: str
    owner: int
    finish: Callable[[], None]
    done: bool = False


@dataclass
class Product:
    """A pending accumulator; only a wait may turn the product into a tensor."""

    work: Pending
    value: torch.Tensor = field(default_factory=lambda: torch.tensor(NAN))


class Machine:
    """Runs one program at a time; `seed` chooses the next partition and the moments of pending work."""

    current: Machine | None = None

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pending: list[Pending] = []
        self.shared: list[Shared] = []
        self.program = 0
        self.baton = threading.Condition()
        self.running: int | None = None
        self.waiting: dict[int, Callable[[], bool]] = {}
        self.error: BaseException | None = None

    def run(self, kernel: Callable[..., None], num_programs: int, arguments: dict[str, Any]) -> None:
        Machine.current = self
        try:
            for self.program in range(num_programs):
                self.pending, self.shared = [], []
                kernel(**arguments)
                if unfinished := [work.kind for work in self.pending if not work.done]:
                    raise MachineError(f"the program ended with {', '.join(unfinished)} under way")
        finally:
            Machine.current = None

    def specialize(self, partitions: Sequence[tuple[Callable[..., None], tuple]]) -> None:
        """Runs all partitions to their end, one at a time."""
        self.waiting = {number: lambda: True for number in range(len(partitions))}
        threads = [
            threading.Thread(target=self._partition, args=(number, function, arguments), daemon=True)
            for number, (function, arguments) in enumerate(partitions)
        ]
        for thread in threads:
            thread.start()
        with self.baton:
            self._choose()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _partition(self, number: int, function: Callable[..., None], arguments: tuple) -> None:
        try:
            with self.baton:
                self.baton.wait_for(lambda: self.running == number or self.error is not None)
            if self.error is None:
                function(*arguments)
        except BaseException as error:  # handed on to the thread that called `specialize`
            self.error = self.error or error
        with self.baton:
            self.waiting.pop(number, None)
            self._choose()

    def switch(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Lets other partitions act, and returns once `ready` holds."""
        if self.running is None:  # before the partitions, the kernel runs alone
            return
        number = self.running
        with self.baton:
            self.waiting[number] = ready
            self._choose()
            self.baton.wait_for(lambda: self.running == number or self.error is not None)
        if self.error is not None:
            raise MachineError("stopped, since another partition failed")

    def _choose(self) -> None:
        """Finishes some pending work, then chooses the next partition."""
        while self.pending and self.random.random() < 0.3:
            self._finish_one()
        while self.error is None and self.waiting:
            able = [number for number, ready in self.waiting.items() if ready()]
            if able:
                self.running = self.random.choice(able)
                break
            if not self.pending:
                self.error = MachineError(f"deadlock: partitions {sorted(self.waiting)} wait")
                break
            self._finish_one()
        else:
            self.running = None
        self.baton.notify_all()

    def _finish_one(self) -> None:
        """Finishes pending work: copies in any order, a warpgroup's products and a thread's stores in start order."""
        first: dict[object, Pending] = {}
        for work in self.pending:
            first.setdefault((work.kind, work.owner) if work.kind != "load" else id(work), work)
        self.finish(self.random.choice(list(first.values())))

    def start(self, kind: str, finish: Callable[[], None]) -> Pending:
        self.pending.append(Pending(kind, -1 if self.running is None else self.running, finish))
        return self.pending[-1]

    def finish(self, work: Pending) -> None:
        self.pending.remove(work)
        work.finish()
        work.done = True

    def mine(self, kind: str) -> list[Pending]:
        return [work for work in self.pending if work.kind == kind and work.owner == self.running]


def machine() -> Machine:
    assert Machine.current is not None
    return Machine.current


def _load_tile(source: Descriptor, start: Sequence[Any], barrier: Barrier, target: Shared) -> None:
    machine().switch()
    target.data.fill_(NAN)
    part, rows, columns = source.clip(start)

    def arrived() -> None:
        target.data.zero_()
        target.data[:rows, :columns] = part
        barrier.num_bytes -= source.block_type.nbytes
        barrier.turn()

    machine().start("load", arrived)


def _store_tile(target: Descriptor, start: Sequence[Any], source: Shared) -> None:
    if source.written[0]:
        raise MachineError("a copy out of memory that a plain store wrote, with no fence between")
    part, rows, columns = target.clip(start)
    machine().start("store", lambda: part.copy_(source.data[:rows, :columns]))


def _store_wait(num_pending: int) -> None:
    mine = machine().mine("store")
    for work in mine[: len(mine) - num_pending]:
        machine().finish(work)


def _fence() -> None:
    for memory in machine().shared:
        memory.written[0] = False


def _value(operand: Any) -> torch.Tensor:
    return operand.data if isinstance(operand, Shared) else operand


def _multiply(a: Any, b: Shared, total: Any, *, use_acc: bool = True, is_async: bool = False) -> Product:
    assert is_async, "only asynchronous products are modelled"
    machine().switch()
    a = a.clone() if isinstance(a, torch.Tensor) else a

    def multiplied() -> None:
        product.value = _value(a).float() @ _value(b).float()
        if use_acc:
            product.value += total.value if isinstance(total, Product) else total

    product = Product(machine().start("product", multiplied))
    return product


def _multiply_wait(num_pending: int, products: Sequence[Product]) -> torch.Tensor:
    machine().switch()
    mine = machine().mine("product")
    for work in mine[: len(mine) - num_pending]:
        machine().finish(work)
    (product,) = products
    if not product.work.done:
        raise MachineError("the result of a product that is still under way")
    return product.value.clone()


def _expect(barrier: Barrier, num_bytes: int) -> None:
    machine().switch()
    barrier.num_bytes += num_bytes
    barrier.arrive()


def _arrive(barrier: Barrier, *, count: int = 1) -> None:
    machine().switch()
    barrier.arrive(count)


def _wait(barrier: Barrier, phase: Any) -> None:
    machine().switch(lambda: barrier.phase != int(phase))


def _init(barrier: Barrier, count: int) -> None:
    barrier.count = count


def _allocate(dtype: torch.dtype, shape: Sequence[int], layout: object) -> Shared | Barriers:
    if layout is BARRIER_LAYOUT:
        return Barriers([Barrier() for _ in range(shape[0])])
    machine().shared.append(Shared(torch.full(tuple(shape), NAN, dtype=dtype)))
    return machine().shared[-1]


def _at(pointer: Pointer, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
    offset = torch.as_tensor(pointer.offset)
    inside = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask
    if bool(((offset < 0) | (offset >= len(pointer.data)))[inside].any()):
        raise MachineError(f"an address outside a tensor of {len(pointer.data)} elements")
    return offset, inside


def _load(pointer: Pointer, mask: Any = None, other: Any = 0) -> torch.Tensor:
    offset, inside = _at(pointer, mask)
    return torch.where(inside, pointer.data[offset.where(inside, 0)], other)


def _store(pointer: Pointer, value: torch.Tensor, mask: Any = None) -> None:
    offset, inside = _at(pointer, mask)
    pointer.data[offset[inside]] = value[inside]


BARRIER_LAYOUT = object()
_LANGUAGE: dict[str, Any] = {
    "constexpr": lambda value: value,
    "int64": torch.int64,
    "float32": torch.float32,
    "program_id": lambda _: torch.tensor(machine().program),
    "static_range": range,
    "arange": lambda start, stop, layout=None: torch.arange(start, stop),
    "full": lambda shape, value, dtype, layout: torch.full(tuple(shape), value, dtype=dtype),
    "load": _load,
    "store": _store,
    "where": torch.where,
    "maximum": torch.maximum,
    "max": lambda x, axis: x.amax(axis),
    "sum": lambda x, axis: x.sum(axis),
    "exp2": torch.exp2,
    "log2": torch.log2,
    "convert_layout": lambda x, layout: x,
    "allocate_shared_memory": _allocate,
    "warp_specialize": lambda partitions, num_warps, num_registers: machine().specialize(partitions),
    **dict.fromkeys(("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout"), lambda *_: None),
}
_BARRIER = {
    "init": _init,
    "wait": _wait,
    "arrive": _arrive,
    "expect": _expect,
    "MBarrierLayout": lambda: BARRIER_LAYOUT,
}
_TMA = {"async_load": _load_tile, "async_store": _store_tile, "store_wait": _store_wait}
_HOPPER: dict[str, Any] = {
    "fence_async_shared": _fence,
    "mbarrier": SimpleNamespace(**_BARRIER),
    "tma": SimpleNamespace(**_TMA),
    "warpgroup_mma": _multiply,
    "warpgroup_mma_wait": _multiply_wait,
}


def _jit(function: Any = None, **_: object) -> Any:
    return function if function is not None else lambda function: function


def _stand_ins() -> dict[str, ModuleType]:
    contents: dict[str, dict[str, Any]] = {
        "triton": {"jit": _jit},
        "triton.language": _LANGUAGE,
        "triton.experimental": {},
        "triton.experimental.gluon": {"jit": _jit},
        "triton.experimental.gluon.language": _LANGUAGE,
        "triton.experimental.gluon.language.nvidia": {},
        "triton.experimental.gluon.language.nvidia.hopper": _HOPPER,
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    return modules


@contextmanager
def _instead_of_triton(names: Sequence[str]) -> Iterator[None]:
    """Imports the modules `names` anew over the stand-ins, and restores all modules afterwards."""
    ours = {name: module for name, module in sys.modules.items() if name in names or name.split(".")[0] == "triton"}
    for name in ours:
        del sys.modules[name]
    sys.modules.update(_stand_ins())
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name in names or name.split(".")[0] == "triton"]:
            del sys.modules[name]
        sys.modules.update(ours)


def load_kernels(change: Callable[[str], str] = lambda source: source) -> dict[str, Any]:
    """Returns the definitions of `impl/hopper/kernel.py` as functions for a Machine, after `change` of the source."""
    primitives, kernel = "videoseek_kernels.impl.triton.primitives", "videoseek_kernels.impl.hopper.kernel"
    spec = importlib.util.find_spec(kernel)
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    with _instead_of_triton([primitives]):
        importlib.import_module(primitives)
        namespace: dict[str, Any] = {"__name__": kernel}
        exec(compile(change(source), spec.origin, "exec"), namespace)
    return namespace
