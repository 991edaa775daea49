"""One training step written down once as a list of kernel calls on fixed memory, then replayed.

A step of a network this small is mostly bookkeeping: modules, autograd, allocation, views. What
reaches the kernels is the same list of calls every time, so it is recorded in a first, ordinary
step by a dispatch mode, below autograd, and replayed with the very tensors of that step as inputs
and outputs. Views cost nothing in a replay, for they already look at the right memory.

The recording is exact: the same kernels run in the same order on the same numbers. Two things
differ. Narrow convolutions run as one matrix product each, see
`edgexnas.host.training.narrow_convolution`, and Adam runs once over all parameters, which lie in
one vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgexnas.host.training.narrow_convolution import NarrowConvolutions

__all__ = ["Recording", "UnrecordableError"]

Call = Callable[[], object]

aten = torch.ops.aten

# Bindings that cost a third of what the same overload costs through torch.ops.
FAST: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.addmm.default: torch.addmm,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.clamp_min.default: torch.clamp_min,
    aten.div.Tensor: torch.div,
    aten.lt.Scalar: torch.lt,
    aten.maximum.default: torch.maximum,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.sigmoid.default: torch.sigmoid,
    aten.softplus.default: torch._C._nn.softplus,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
}


CONSTANT = {
    aten.full.default,
    aten.full_like.default,
    aten.ones.default,
    aten.ones_like.default,
    aten.scalar_tensor.default,
    aten.zeros.default,
    aten.zeros_like.default,
}
"""What has the same result every time, unless something writes into it."""

COPIES = {aten._to_copy.default, aten.clone.default}

NOTHING = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default}


WRONG_OUT = {aten.native_batch_norm.default}
"""What gives other numbers when it writes into given tensors: torch 2.13 takes the statistics of
images that are not laid out by channel for 0."""

LARGEST_BYTES = 1 << 28
"""A record holds all of a step's tensors at once; where they are larger, calls are not the cost."""


class UnrecordableError(Exception):
    """A step does something that its replay could not do."""


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what runs inside it; `replay` runs that again.

    Tensors that were made outside, such as parameters and inputs, are read anew in a replay.

    Parameters
    ----------
    largest_bytes
        Most that a step may fill, beyond which its calls are not what it costs.

    Attributes
    ----------
    narrow
        How many operations `NarrowConvolutions` did.

    Raises
    ------
    UnrecordableError
        If a number leaves the tensors, for a replay could not follow what is done with it, or if
        the step is so large that nothing would be gained.
    """

    def __init__(self, largest_bytes: int = LARGEST_BYTES) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes, self._largest = 0, largest_bytes
        self.narrow = 0
        self._entries: list[_Entry] = []
        self._calls: list[Call] = []
        self._constants: set[int] = set()
        self._narrow = NarrowConvolutions(self._record)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping would import torch's compiler, which takes a second in each worker.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # Its replacements record the calls that they make themselves.
        result = None if kwargs else self._narrow.run(func, args)
        if result is not None:
            self.narrow += 1
            return result
        result = func(*args, **kwargs)
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        # A number in Python, such as of .item(), would keep the first step's value for ever.
        if any(not isinstance(output, Tensor | None) for output in outputs):
            raise UnrecordableError(f"{func} gives {type(result).__name__}")
        reads = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        made = [output for output in outputs if output is not None]
        changes = writes(func)
        known = {memory(t) for t in reads}
        # A view reads and gives the same storage; it holds in a replay without a call.
        is_view = not changes and any(memory(t) in known for t in made)
        if not is_view and func not in NOTHING:
            call = as_call(func, args, kwargs, outputs)
            # An operation that writes may have written into any of its arguments.
            fills = made + reads if changes else made
            entry = _Entry(call, reads, fills, changes, self._is_constant(func, reads, changes))
            if entry.constant:
                self._constants |= {memory(t) for t in made}
            elif changes:
                self._constants -= {memory(t) for t in fills}
            self._keep(entry)
        return result

    def _is_constant(self, func: Any, reads: list[Tensor], changes: bool) -> bool:
        """Whether a replay may keep the result: nothing that it depends on changes."""
        if func in CONSTANT:
            return True
        same = bool(reads) and not changes and all(memory(t) in self._constants for t in reads)
        return same and torch.Tag.nondeterministic_seeded not in func.tags

    def _record(self, call: Call, reads: list[Tensor], fills: list[Tensor]) -> None:
        self._keep(_Entry(call, reads, fills))

    def _keep(self, entry: _Entry) -> None:
        self._entries.append(entry)
        if not entry.writes:
            self._bytes += sum(tensor.nbytes for tensor in entry.fills)
        if self._bytes > self._largest:
            raise UnrecordableError(f"a step fills more than {self._largest / 1e6:.0f} MB")

    def compile(self, wanted: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Keep the calls that `wanted`, or anything outside the recording, depends on.

        Parameters
        ----------
        wanted
            Results of the recording.
        targets
            Where a replay is to leave them: tensors of the same shapes.
        """
        made = {memory(t) for e in self._entries if not e.writes for t in e.fills}
        written = {memory(t) for e in self._entries if e.writes for t in e.fills}
        moved = [self._redirect(w, t) for w, t in zip(wanted, targets, strict=True)]
        needed = {memory(t) for t in targets} | {memory(t) for t in wanted}
        calls = []
        # Backwards: when a call is looked at, all that might read its result has been.
        for entry in reversed(self._entries):
            fills = {memory(t) for t in entry.fills}
            # Its tensor still holds the value; only what writes into it would spoil that.
            if entry.constant and not fills & written:
                continue
            # What was made outside, such as running statistics, is always kept up to date.
            if fills & needed or not fills <= made:
                needed |= {memory(t) for t in entry.reads}
                calls.append(entry.call)
        self._calls = calls[::-1]
        pairs = zip(wanted, targets, moved, strict=True)
        rest = [(w, t) for w, t, done in pairs if not done]
        if rest:
            sources, copies = map(list, zip(*rest, strict=True))
            with torch.no_grad():
                torch._foreach_copy_(copies, sources)
            self._calls.append(functools.partial(torch._foreach_copy_, copies, sources))

    def _redirect(self, result: Tensor, target: Tensor) -> bool:
        """Let the call that makes a result write into its target, if nothing else needs it."""
        shared = memory(result)
        makers = [e for e in self._entries if shared in map(memory, e.fills)]
        readers = [e for e in self._entries if shared in map(memory, e.reads)]
        # Moved only if one call makes it and nothing reads it, so no other call can notice.
        if len(makers) != 1 or readers or makers[0].writes or not result.is_contiguous():
            return False
        (made,) = (t for t in makers[0].fills if memory(t) == shared)
        if not made.is_contiguous() or made.numel() != result.numel():
            return False
        with torch.no_grad():
            target.copy_(result)
            # The call holds this very tensor, which looks at the target's memory from here on.
            made.set_(target.view(made.shape))  # type: ignore[call-overload]
        return True

    def replay(self) -> None:
        """Run the calls again, on what is in the tensors by then."""
        for call in self._calls:
            call()


@dataclass
class _Entry:
    """A call, what it reads and fills, and whether it changes what it is given."""

    call: Call
    reads: list[Tensor]
    fills: list[Tensor]
    writes: bool = False
    constant: bool = False


def memory(tensor: Tensor) -> int:
    """Identify what a tensor and its views share."""
    # By storage: one call may write through another view than the next one reads.
    return tensor.untyped_storage().data_ptr()


@functools.cache
def writes(func: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)


def as_call(func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor | None]) -> Call:
    """Make a call that computes the same into the same tensors."""
    if writes(func):
        return functools.partial(func, *args, **kwargs)
    # copy_ converts dtype and layout into memory that is there already.
    if func in COPIES and outputs[0] is not None:
        return functools.partial(outputs[0].copy_, args[0])
    if func is aten.relu.default:
        return functools.partial(torch.clamp_min, args[0], 0, out=outputs[0])
    if func in FAST and not kwargs:
        fast, (output,) = FAST[func], outputs
        return functools.partial(fast, *args, out=output)
    found = None if func in WRONG_OUT else out_overload(func)
    if found is not None and None not in outputs:
        overload, names = found
        keywords = kwargs | dict(zip(names, outputs, strict=True))
        return functools.partial(overload, *args, **keywords)

    def call_and_copy() -> None:
        result = func(*args, **kwargs)
        results = result if isinstance(result, tuple | list) else [result]
        for output, fresh in zip(outputs, results, strict=True):
            if output is not None:
                output.copy_(fresh)

    return call_and_copy


@functools.cache
def out_overload(func: Any) -> tuple[Any, list[str]] | None:
    """Find the overload that writes into given tensors, and the names of those."""
    packet = func._overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        outs = [a.name for a in overload._schema.arguments if a.is_out]
        if outs and _inputs(overload) == _inputs(func):
            return overload, outs
    return None


def _inputs(func: Any) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in func._schema.arguments if not a.is_out]
