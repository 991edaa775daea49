"""Lay a network out in shared memory, pack its weights, and write the kernel that computes it.

What the kernel's parts do is said in ``kernels/fused.cu``; here each layer becomes a struct of
numbers that instantiates them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE
from edgexnas.device.engines.fused.images import IMAGES
from edgexnas.device.engines.fused.network import (
    PATCHES,
    Attention,
    Layer,
    Network,
    Pool,
    UnsuitableNetworkError,
)

__all__ = ["RESERVED_BYTES", "Program", "write_program"]

CHUNK = 16
"""Bytes that a lane loads at once: 8 float16 or 16 int8 channels of one pixel."""

ROWS, COLUMNS = 16, 8
"""Rows and columns of the tensor cores' product."""

MOST_TOGETHER = ROWS
"""Patches whose dense layers behind convolutions are computed together: one to a row."""

RESERVED_BYTES = 1024
"""Shared memory that CUDA takes of each block beside what the kernel asks for."""

MOST_TILES, MOST_MIXED, MOST_PARTS = 9, 4, 8
"""Tiles whose sums a warp has at once, which are registers; of these behind attention, whose scores
are registers too; and warps that share a product."""

WARPS = 8
"""Of a block. On an H200 four took 10 to 20 % longer for 32 patches; sixteen were 5 % quicker with
BraggNN, and for thousands of patches up to 70 % slower with all networks of convolutions."""

# Estimates in cycles, which decide how a layer is dealt to warps: one step of a product with its
# first loads, one more load and one more product in it, what follows the sums, more of that for
# each tile, and one barrier.
STEP, LOAD, PRODUCT, END, TILE_END, BARRIER = 30, 8, 16, 80, 20, 40

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Program:
    """A kernel's source and all that a launch needs.

    Attributes
    ----------
    source
        What follows the text of ``kernels/fused.cu``; the kernel is `run_network`.
    definitions
        Macros.
    weights
        What the kernel copies to the beginning of shared memory.
    shared_bytes
        Shared memory of a block.
    threads
        Threads of a block.
    items
        Patches that a block computes together.
    levels
        Quantile levels of the output.
    """

    source: str
    definitions: dict[str, str]
    weights: bytes = field(repr=False)
    shared_bytes: int
    threads: int
    items: int
    levels: int


@dataclass
class _Map:
    """A value as it lies in shared memory: width × width pixels of `channels`, channels last."""

    width: int
    channels: int
    border: int = 0
    scale: float | None = None
    halves: bool = False
    floats: bool = False
    last: int = 0

    @property
    def pitch(self) -> int:
        return self.width + 2 * self.border

    def pad(self) -> None:
        """Round the channels up to whole chunks of each form that is kept."""
        each = CHUNK if self.scale is not None else COLUMNS
        self.channels = -(-self.channels // each) * each

    def stride(self, size: int) -> int:
        """Bytes from pixel to pixel: an odd number of chunks, so that no two share a bank."""
        chunks = self.channels * size // CHUNK
        return (chunks + 1 - chunks % 2) * CHUNK

    def origin(self, padding: int, size: int) -> int:
        """Where the windows of a layer begin, which may look at the border or not."""
        inside = self.border - padding
        return inside * (self.pitch + 1) * self.stride(size)


@dataclass
class _Block:
    """Shared memory that is needed from one stage to another."""

    bytes: int
    first: int
    last: int
    at: int = 0


@dataclass(frozen=True)
class _Deal:
    """How a layer's products are dealt to warps: tiles of each, warps that share them."""

    down: int = 1
    tiles: int = 1
    parts: int = 1


def write_program(network: Network, shared_bytes: int) -> Program:
    """Write the kernel of a network.

    Parameters
    ----------
    network
        What `read_network` returned.
    shared_bytes
        Shared memory that a block may have on the GPU.

    Raises
    ------
    UnsuitableNetworkError
        If its weights and maps do not fit into the shared memory.
    """
    program = _Writer(network).program()
    # Dense layers behind convolutions are short and wait for each other: computed for more patches
    # at once they cost next to nothing, as long as no fewer blocks fit a multiprocessor.
    blocks = _blocks_at_once(program, shared_bytes)
    together = MOST_TOGETHER
    while together > 1:
        other = _Writer(network, together).program()
        if _blocks_at_once(other, shared_bytes) == blocks:
            program = other
            break
        together //= 2
    if program.shared_bytes > shared_bytes:
        raise UnsuitableNetworkError(
            f"the network's weights and maps take {program.shared_bytes} bytes of shared memory, "
            f"this GPU has {shared_bytes} for a block; specify engine='tensorrt' or 'auto', or a "
            "smaller network"
        )
    return program


def _blocks_at_once(program: Program, shared_bytes: int) -> int:
    """How many blocks a multiprocessor holds, whose memory is one block's and what CUDA takes."""
    return (shared_bytes + RESERVED_BYTES) // (program.shared_bytes + RESERVED_BYTES)


class _Writer:
    def __init__(self, network: Network, together: int = 1) -> None:
        self._network = network
        self._steps = [self._windowed(step) for step in network.steps]
        self._rows_are_items = all(self._is_dense(step) for step in self._steps)
        self._items = ROWS // network.images if self._rows_are_items else 1
        self._maps = self._planned_maps()
        self._tail = self._dense_tail()
        self._together = together if self._tail else 1
        self._deals = {
            step.name: self._deal(step) for step in self._steps if isinstance(step, Layer)
        }

    # What is known before anything is written.

    def _windowed(self, step: Layer | Attention | Pool) -> Layer | Attention | Pool:
        """Let a convolution of the patches read their windows, which the input stage lays out."""
        if not isinstance(step, Layer) or step.source != PATCHES or self._is_dense(step):
            return step
        windows = step.weights.reshape(step.outputs, -1, 1, 1)
        return replace(step, weights=windows, padding=0)

    @staticmethod
    def _is_dense(step: Layer | Attention | Pool) -> bool:
        """Whether it reads one row of numbers an item: all patches' pixels, or outputs of such."""
        if not isinstance(step, Layer) or step.weights.shape[2:] != (1, 1):
            return False
        return step.source != PATCHES or step.weights.shape[1] == PATCH_SIZE**2

    def _first(self) -> Layer:
        """Return the layer that reads the patches, as the graph has it."""
        first = self._network.steps[0]
        readers = [s for s in self._network.steps if s.source == PATCHES]
        if not isinstance(first, Layer) or readers != [first]:
            raise UnsuitableNetworkError(
                "the fused engine takes networks whose first layer alone reads the patches; "
                "specify engine='tensorrt' or 'auto'"
            )
        return first

    def _dense_tail(self) -> list[str]:
        """Name the dense layers behind the convolutions, each of which reads the one before it."""
        if self._rows_are_items or self._network.images > 1:
            return []
        names: list[str] = []
        wanted = self._network.head.source
        for number in range(len(self._steps) - 1, 0, -1):
            step = self._steps[number]
            dense = isinstance(step, Layer) and self._maps[step.name].width == 1
            if not dense or step.name != wanted or step.added is not None:  # type: ignore[union-attr]
                break
            names.insert(0, step.name)
            wanted = step.source
        if not names:
            return []
        # What comes before writes the features of one patch, which nobody else may read.
        number = next(n for n, step in enumerate(self._steps) if step.name == names[0])
        readers = [
            s
            for s in self._steps
            if s.source == wanted or (isinstance(s, Layer) and s.added == wanted)
        ]
        features = self._maps[wanted]
        if self._steps[number - 1].name != wanted or len(readers) != 1 or features.border:
            return []
        return names

    def _features(self) -> str:
        """Name the map that the dense layers behind the convolutions read."""
        first = next(step for step in self._steps if step.name == self._tail[0])
        return first.source

    def _feature_bytes(self, size: int) -> int:
        """Bytes from one patch's features to the next one's, so that no two share a bank."""
        value = self._maps[self._features()]
        chunks = value.pitch**2 * value.stride(size) // CHUNK
        return (chunks + 1 - chunks % 2) * CHUNK

    def _planned_maps(self) -> dict[str, _Map]:
        """Find out how large each value is, and in which forms it is read until when."""
        first = self._first()
        kernel = first.weights.shape[-1]
        width = PATCH_SIZE + 2 * first.padding - kernel + 1
        taps = PATCH_SIZE**2 if self._rows_are_items else kernel**2
        maps = {PATCHES: _Map(1 if self._rows_are_items else width, taps)}
        for number, step in enumerate(self._steps, 1):
            source = maps[step.source]
            source.last = number
            if isinstance(step, Pool):
                maps[step.name] = _Map(source.width // 2, source.channels)
            elif isinstance(step, Attention):
                source.halves = True
                maps[step.name] = _Map(source.width, step.inner)
            else:
                width = source.width + 2 * step.padding - step.weights.shape[-1] + 1
                maps[step.name] = _Map(width, step.outputs)
                source.border = max(source.border, step.padding)
                self._read(source, step.source, step.input_scale)
                if step.added is not None:
                    self._read(maps[step.added], step.added, step.added_scale)
                    maps[step.added].last = number
        head = maps[self._network.head.source]
        head.floats, head.last = True, len(self._steps) + 1
        self._check_attention()
        for step in reversed(self._steps):
            if isinstance(step, Pool):
                pooled = maps[step.name]
                if pooled.halves:
                    self._read(maps[step.source], step.source, None)
                if pooled.scale is not None:
                    self._read(maps[step.source], step.source, pooled.scale)
        for value in maps.values():
            value.pad()
        self._pad_alike(maps)
        return maps

    def _check_attention(self) -> None:
        """Reject what attention's registers cannot serve: another reader than the layer behind."""
        for number, step in enumerate(self._steps):
            if not isinstance(step, Attention):
                continue
            readers = [
                s
                for s in self._steps
                if s.source == step.name or (isinstance(s, Layer) and s.added == step.name)
            ]
            behind = self._steps[number + 1] if number + 1 < len(self._steps) else None
            fits = isinstance(behind, Layer) and behind.weights.shape[2:] == (1, 1)
            if readers != [behind] or not fits or behind.added == step.name:  # type: ignore[union-attr]
                raise UnsuitableNetworkError(
                    f"attention {step.name} is read by more than one layer of 1×1 behind it; "
                    "specify engine='tensorrt' or 'auto'"
                )

    def _pad_alike(self, maps: dict[str, _Map]) -> None:
        """Give maps that are read pixel by pixel beside each other the same channels."""
        pairs = [(s.source, s.name) for s in self._steps if isinstance(s, Pool)]
        pairs += [(s.added, s.name) for s in self._steps if isinstance(s, Layer) and s.added]
        # Each pass may widen a map that another pair has.
        for _ in pairs:
            for pair in pairs:
                most = max(maps[name].channels for name in pair)
                for name in pair:
                    maps[name].channels = most

    @staticmethod
    def _read(source: _Map, name: str, scale: float | None) -> None:
        """Note in which form a value is read: as float16, or as int8 of this scale."""
        if scale is None:
            source.halves = True
            return
        if source.scale not in (None, scale):
            raise UnsuitableNetworkError(
                f"{name} is quantised with two scales, {source.scale} and {scale}; specify "
                "engine='tensorrt' or 'auto'"
            )
        source.scale = scale

    def _deal(self, layer: Layer) -> _Deal:
        """Choose how many sums a warp has and how many warps share them."""
        row_tiles, column_tiles, steps = self._sizes(layer)
        across = [n for n in range(1, min(MOST_TILES, column_tiles) + 1) if column_tiles % n == 0]
        if self._is_mixed(layer):
            return _Deal(tiles=max(n for n in across if n <= MOST_MIXED))
        choices = [
            _Deal(down, tiles, parts)
            for down in range(1, row_tiles + 1)
            for tiles in across
            for parts in range(1, min(MOST_PARTS, steps) + 1)
            if row_tiles % down == 0 and down * tiles <= MOST_TILES
        ]

        def cycles(deal: _Deal) -> int:
            each_tiles = deal.down * deal.tiles
            jobs = row_tiles * column_tiles // each_tiles * deal.parts
            # A tensor core serves the products of every fourth warp in turn.
            waits = max(1, min(jobs, WARPS) // 4)
            loads = STEP + LOAD * (deal.down + deal.tiles - 2)
            each = -(-steps // deal.parts) * (loads + each_tiles * PRODUCT * waits // 2)
            total = -(-jobs // WARPS) * (each + END + each_tiles * TILE_END)
            if deal.parts > 1:
                ends = -(-row_tiles * column_tiles // WARPS)
                total += BARRIER + ends * (END + TILE_END + 8 * deal.parts)
            return total

        return min(choices, key=cycles)

    def _is_mixed(self, layer: Layer) -> bool:
        """Whether the layer is computed together with the attention before it."""
        return any(isinstance(s, Attention) and s.name == layer.source for s in self._steps)

    def _rows(self, layer: Layer) -> int:
        if self._rows_are_items:
            return ROWS
        if layer.name in self._tail:
            return self._together
        return self._maps[layer.name].width ** 2

    def _chunks_a_pixel(self, layer: Layer) -> int:
        size = 1 if layer.quantised else 2
        if self._is_mixed(layer):
            return int(layer.weights.shape[1]) * size // CHUNK
        return self._maps[layer.source].channels * size // CHUNK

    def _sizes(self, layer: Layer) -> tuple[int, int, int]:
        """Tiles of rows, tiles of columns, steps."""
        chunks = self._chunks_a_pixel(layer) * int(np.prod(layer.weights.shape[2:]))
        columns = self._maps[layer.name].channels // COLUMNS
        return -(-self._rows(layer) // ROWS), columns, -(-chunks // 2)

    # Writing.

    def program(self) -> Program:
        weights, places = self._packed()
        end = len(self._steps) + 1
        blocks = self._blocks(end)
        shared = _allocate(blocks, _aligned(len(weights)))
        structs = [self._input_struct(blocks)]
        stages: list[str] = []
        pending = len(places)
        for number, step in enumerate(self._steps):
            if isinstance(step, Attention):
                continue
            name = f"Step{number}"
            # Each patch's features lie beside those of the patches before it.
            slot = ", slot" if self._tail and step.name == self._features() else ""
            if isinstance(step, Pool):
                pools = self._pool_structs(name, step, blocks)
                structs += pools.values()
                stages.append("".join(f"pool<{pool}>(memory{slot}); " for pool in pools))
            else:
                pending -= 1
                structs.append(self._layer_struct(name, step, blocks, places[step.name]))
                stages.append(f"wait_for_copies<{pending}>(); __syncthreads(); ")
                before = self._steps[number - 1] if number else None
                if isinstance(before, Attention):
                    structs.append(self._attention_struct(f"Mix{number}", before, step, blocks))
                    stages[-1] += f"attend<Mix{number}, {name}>(memory); "
                else:
                    stages[-1] += f"multiply<{name}>(memory{slot}); "
            if isinstance(step, Pool):
                stages[-1] = "__syncthreads(); " + stages[-1]
            borders = self._border_structs(name, step.name, blocks)
            structs += borders.values()
            stages[-1] += "".join(f"clear_border<{border}>(memory); " for border in borders)
        # Attention has no stage of its own.
        ends = len(stages) - len(self._tail)
        structs.append(self._head_struct(blocks))
        copies = [f"copy_weights<{a}, {size}>(memory, weights);" for a, size, *_ in places.values()]
        centroid = self._network.head.centroid
        write = "write_averages" if self._network.images == IMAGES else "write_quantiles"
        find = "find_centroids<Centroids>(memory, patches, group, count, slot);"
        source = _KERNEL.format(
            structs="\n".join(structs),
            copies="\n    ".join(copies),
            centroids="" if centroid is None else find,
            # The next round's centroids must not be written while this one's are read.
            end="" if centroid is None else "__syncthreads();",
            stages="\n            ".join(stages[:ends]),
            tail="\n        ".join(stages[ends:]),
            write=write,
        )
        definitions = {
            "THREADS": str(32 * WARPS), "WARPS": str(WARPS), "ITEMS": str(self._items),
            "TOGETHER": str(self._together),
        }  # fmt: skip
        return Program(
            source, definitions, weights, shared, 32 * WARPS, self._items,
            self._network.head.levels,
        )  # fmt: skip

    def _packed(self) -> tuple[bytes, dict[str, tuple[int, int, int, int, int]]]:
        """Pack the weights; for each layer (begin, bytes, weights, bias, scales or -1)."""
        packed = bytearray()
        places = {}
        for layer in self._steps:
            if not isinstance(layer, Layer):
                continue
            begin = len(packed)
            columns = self._maps[layer.name].channels
            packed += self._fragments(layer).tobytes()
            bias_at, scales_at = len(packed), -1
            packed += np.resize(_padded(layer.bias, columns), columns).astype(np.float32).tobytes()
            if layer.scales is not None and layer.input_scale is not None:
                scales_at = len(packed)
                scales = np.broadcast_to(layer.scales, layer.outputs) * np.float32(
                    layer.input_scale
                )
                packed += _padded(scales.astype(np.float32), columns).tobytes()
            packed += bytes(_aligned(len(packed)) - len(packed))
            places[layer.name] = (begin, len(packed) - begin, begin, bias_at, scales_at)
        return bytes(packed), places

    def _fragments(self, layer: Layer) -> Array:
        """Order the weights as lanes take them: (column tile, step, lane, its 8 bytes)."""
        _, column_tiles, steps = self._sizes(layer)
        each = CHUNK if layer.quantised else CHUNK // 2
        dtype = np.int8 if layer.quantised else np.float16
        a_pixel = self._chunks_a_pixel(layer)
        kernel = int(np.prod(layer.weights.shape[2:]))
        # (outputs, taps, channels) → (columns, steps · 2 chunks · channels of a chunk)
        taps = layer.weights.reshape(layer.outputs, -1, kernel).transpose(0, 2, 1)
        if self._is_mixed(layer) and layer.quantised:
            taps = taps[:, :, _mixed_order(taps.shape[2])]
        full = np.zeros((column_tiles * COLUMNS, kernel, a_pixel * each), np.float32)
        full[: taps.shape[0], :, : taps.shape[2]] = taps
        rows = np.zeros((len(full), steps * 2 * each), np.float32)
        rows[:, : kernel * a_pixel * each] = full.reshape(len(full), -1)
        # Stated so that NaN, which compares false with everything, is rejected.
        if not np.abs(rows).max(initial=0) <= np.finfo(np.float16).max:
            raise UnsuitableNetworkError(
                f"weights of {layer.name} exceed float16 or are NaN; specify engine='onnxruntime' "
                "or 'auto'"
            )
        # A lane holds column lane // 4 and, of each chunk, the elements from lane % 4 on.
        split = rows.reshape(column_tiles, COLUMNS, steps, 2, 4, each // 4)
        return np.ascontiguousarray(split.transpose(0, 2, 1, 4, 3, 5)).astype(dtype)

    def _blocks(self, end: int) -> dict[str, _Block]:
        blocks: dict[str, _Block] = {}
        numbers = {step.name: number for number, step in enumerate(self._steps, 1)}
        mixed = {step.name for step in self._steps if isinstance(step, Attention)}
        for name, value in self._maps.items():
            if name in mixed:
                continue
            first = numbers.get(name, 0)
            # The next patches are stored while the last stage may still run.
            last = end if name == PATCHES else value.last
            pixels = ROWS if self._rows_are_items else value.pitch**2
            if name in self._tail:
                pixels = self._together
            features = bool(self._tail) and name == self._features()
            if features:
                # They wait until those of all patches are there.
                first = 0
            forms = (("halves", value.halves, 2), ("bytes", value.scale is not None, 1))
            for form, kept, size in forms:
                if kept:
                    room = pixels * value.stride(size)
                    if features:
                        room = self._together * self._feature_bytes(size)
                    blocks[f"{name} {form}"] = _Block(room, first, last)
            if value.floats:
                rows = ROWS if self._rows_are_items else value.width**2
                if name in self._tail:
                    rows = self._together
                blocks[f"{name} floats"] = _Block(rows * value.channels * 4, first, last)
        for number, step in enumerate(self._steps, 1):
            if isinstance(step, Layer) and self._deals[step.name].parts > 1:
                row_tiles, column_tiles, _ = self._sizes(step)
                tiles = row_tiles * column_tiles * self._deals[step.name].parts
                blocks[f"{step.name} scratch"] = _Block(tiles * 512, number, number)
        if self._network.head.centroid is not None:
            blocks["centroids"] = _Block(8 * self._items * self._together, 0, end)
        # What attention reads is still read while the layer behind it stores.
        for number, step in enumerate(self._steps, 1):
            if isinstance(step, Attention):
                blocks[f"{step.source} halves"].last = number + 1
        return blocks

    def _input_struct(self, blocks: dict[str, _Block]) -> str:
        first, value = self._first(), self._maps[PATCHES]
        form, size = ("bytes", 1) if value.scale is not None else ("halves", 2)
        rows = ROWS if self._rows_are_items else value.width**2
        pairs = -(-rows * value.channels // 2 // (32 * WARPS))
        numbers = {
            "AT": blocks[f"{PATCHES} {form}"].at,
            "STRIDE": value.stride(size),
            "ROWS": rows,
            "WIDTH": value.width,
            "COLUMNS": int(np.prod(self._steps[0].weights.shape[1:])),  # type: ignore[union-attr]
            "PADDED": value.channels,
            "PAIRS": pairs,
            "KERNEL": 0 if self._rows_are_items else first.weights.shape[-1],
            "PADDING": first.padding,
            "IMAGES": self._network.images,
            "IN_INT8": int(value.scale is not None),
        }
        text = _struct("Input", numbers, {"inverse_scale": _inverse(value.scale)})
        if self._network.head.centroid is not None:
            least = {"least": self._network.head.centroid}
            text += _struct("Centroids", {"AT": blocks["centroids"].at}, least)
        return text

    def _layer_struct(
        self, name: str, layer: Layer, blocks: dict[str, _Block], place: tuple[int, ...]
    ) -> str:
        source, out = self._maps[layer.source], self._maps[layer.name]
        deal = self._deals[layer.name]
        row_tiles, column_tiles, steps = self._sizes(layer)
        size, form = (1, "bytes") if layer.quantised else (2, "halves")
        stride = source.stride(size)
        mixed = self._is_mixed(layer)
        begin = 0 if mixed else blocks[f"{layer.source} {form}"].at
        added = None if layer.added is None else self._maps[layer.added]
        added_size, added_form = (2, "halves") if layer.added_scale is None else (1, "bytes")
        kernel = layer.weights.shape[-1]
        a_pixel = self._chunks_a_pixel(layer)
        reads_features = bool(self._tail) and layer.name == self._tail[0]
        writes_features = bool(self._tail) and layer.name == self._features()
        numbers = {
            "ROWS": self._rows(layer),
            "PIXELS": 1 if self._rows_are_items else out.width**2,
            "WIDTH": out.width,
            "IN": begin + source.origin(layer.padding, size),
            "IN_ITEM": self._feature_bytes(size) if reads_features else stride,
            "IN_PITCH": source.pitch,
            "IN_STRIDE": stride,
            "KERNEL_WIDTH": kernel,
            "CHUNKS_A_PIXEL": a_pixel,
            "CHUNKS": a_pixel * kernel**2,
            "STEPS": steps,
            "ROW_TILES": row_tiles,
            "COLUMN_TILES": column_tiles,
            "DOWN": deal.down,
            "TILES": deal.tiles,
            "PARTS": deal.parts,
            "CHAINS": 2 if deal.down * deal.tiles == 1 and not mixed else 1,
            "SCRATCH": blocks[f"{layer.name} scratch"].at if deal.parts > 1 else 0,
            "WEIGHTS": place[2],
            "BIAS": place[3],
            "SCALES": place[4],
            "ACTIVATION": _ACTIVATIONS[layer.activation],
            "THEN": _ACTIVATIONS[layer.then],
            "BORDER": out.border,
            "PITCH": out.pitch,
            "ADDED": -1 if added is None else blocks[f"{layer.added} {added_form}"].at,
            "ADDED_BORDER": 0 if added is None else added.border,
            "ADDED_PITCH": 0 if added is None else added.pitch,
            "ADDED_STRIDE": 0 if added is None else added.stride(added_size),
            "ADDED_SIZE": added_size,
            "FLOATS": blocks[f"{layer.name} floats"].at if out.floats else -1,
            "FLOATS_STRIDE": out.channels * 4,
        }
        for form, kept, size in (("halves", out.halves, 2), ("bytes", out.scale is not None, 1)):
            numbers[form.upper()] = blocks[f"{layer.name} {form}"].at if kept else -1
            numbers[f"{form.upper()}_STRIDE"] = out.stride(size)
            numbers[f"{form.upper()}_ITEM"] = out.stride(size)
            numbers[f"{form.upper()}_SLOT"] = self._feature_bytes(size) if writes_features else 0
        constants = {
            "slope": layer.slope,
            "gain": layer.gain,
            "added_scale": layer.added_scale or 1.0,
            "inverse_scale": _inverse(out.scale),
        }
        return _struct(name, numbers, constants, "Int8" if layer.quantised else "Half")

    def _attention_struct(
        self, name: str, attention: Attention, layer: Layer, blocks: dict[str, _Block]
    ) -> str:
        value = self._maps[attention.source]
        pixels = value.width**2
        numbers = {
            "IN": blocks[f"{attention.source} halves"].at,
            "STRIDE": value.stride(2),
            "PIXELS": pixels,
            "INNER": attention.inner,
            "KEY_TILES": -(-pixels // COLUMNS),
            "STEPS": self._sizes(layer)[2],
        }
        return _struct(name, numbers, {"inverse_scale": _inverse(layer.input_scale)})

    def _pool_structs(self, name: str, step: Pool, blocks: dict[str, _Block]) -> dict[str, str]:
        source, out = self._maps[step.source], self._maps[step.name]
        features = bool(self._tail) and step.name == self._features()
        structs = {}
        for form, kept, size in (("halves", out.halves, 2), ("bytes", out.scale is not None, 1)):
            if kept:
                numbers = {
                    "IN": blocks[f"{step.source} {form}"].at,
                    "IN_BORDER": source.border,
                    "IN_PITCH": source.pitch,
                    "IN_STRIDE": source.stride(size),
                    "OUT": blocks[f"{step.name} {form}"].at,
                    "BORDER": out.border,
                    "PITCH": out.pitch,
                    "STRIDE": out.stride(size),
                    "WIDTH": out.width,
                    "WORDS": out.channels * size // 4,
                    "SLOT": self._feature_bytes(size) if features else 0,
                }
                kind = "Half" if size == 2 else "Int8"
                structs[f"{name}{kind}"] = _struct(f"{name}{kind}", numbers, {}, kind)
        return structs

    def _border_structs(self, name: str, value: str, blocks: dict[str, _Block]) -> dict[str, str]:
        out = self._maps[value]
        structs = {}
        for form, size in (("halves", 2), ("bytes", 1)):
            block = blocks.get(f"{value} {form}")
            if block is not None and out.border:
                own = f"Border{form.title()}{name}"
                numbers = {"AT": block.at, "PITCH": out.pitch, "STRIDE": out.stride(size)}
                structs[own] = _struct(own, numbers, {})
        return structs

    def _head_struct(self, blocks: dict[str, _Block]) -> str:
        head = self._network.head
        numbers = {
            "RAW": blocks[f"{head.source} floats"].at,
            "STRIDE": self._maps[head.source].channels * 4,
            "LEVELS": head.levels,
            "MIDDLE": head.middle,
            "IMAGES": self._network.images,
            "CENTROIDS": -1 if head.centroid is None else blocks["centroids"].at,
        }
        return _struct("Quantiles", numbers, {})


_ACTIVATIONS = {"none": 0, "relu": 1, "leaky": 2, "silu": 3}

_KERNEL = """
{structs}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
run_network(const float *patches, const char *weights, float *offsets, int most, const int *kept)
{{
    SHARED_MEMORY(memory);
    // How many peaks a frame has may be known to the GPU alone.
    int count = kept && *kept < most ? *kept : most, group = blockIdx.x;
    if (group * ITEMS >= count)
        return;
    float pixels[Input::PAIRS][2];
    load_input<Input>(patches, group, count, pixels);
    {copies}
    while (group * ITEMS < count) {{
        int slot = 0;
        for (; slot < TOGETHER && group * ITEMS < count; slot++, group += gridDim.x) {{
            {centroids}
            store_input<Input>(memory, pixels);
            // Those of the next round travel while this one is computed.
            load_input<Input>(patches, group + gridDim.x, count, pixels);
            {stages}
        }}
        {tail}
        __syncthreads();
        {write}<Quantiles>(memory, offsets, group - slot * gridDim.x, count);
        {end}
    }}
}}
"""


def _struct(
    name: str, numbers: dict[str, int], constants: dict[str, float], kind: str | None = None
) -> str:
    lines = [f"struct {name} {{"]
    if kind is not None:
        lines.append(f"    typedef {kind} Type;")
    given = ", ".join(f"{key} = {value}" for key, value in numbers.items())
    lines.append(f"    static constexpr int {given};")
    for key, value in constants.items():
        # Written so that C++ reads the very same float back.
        if not np.isfinite(value):
            raise UnsuitableNetworkError(
                f"{key} of {name} is {value}; specify engine='tensorrt' or 'auto'"
            )
        literal = float(np.float32(value)).hex()
        lines.append(
            f"    __host__ __device__ static constexpr float {key}() {{ return {literal}f; }}"
        )
    return "\n".join([*lines, "};", ""])


def _inverse(scale: float | None) -> float:
    return 1.0 if scale is None else float(np.float32(1.0) / np.float32(scale))


def _aligned(size: int) -> int:
    return -(-size // 128) * 128


def _padded(values: Array, length: int) -> Array:
    return np.concatenate([values, np.zeros(length - len(values), values.dtype)])


def _mixed_order(channels: int) -> Array:
    """In which order attention's sums become the int8 operand of the layer behind it.

    A lane has two neighbouring columns of each tile of eight, and wants four neighbouring ones.
    """
    places = np.arange(channels)
    step, chunk, lane, byte = places // 32, places // 16 % 2, places // 4 % 4, places % 4
    order: Array = 32 * step + 16 * chunk + 8 * (byte // 2) + 2 * lane + byte % 2
    return order


def _allocate(blocks: dict[str, _Block], begin: int) -> int:
    """Place the blocks so that none overlaps another in space and time; return the end."""
    placed: list[_Block] = []
    # The largest first: the small ones fill what is left between them.
    for block in sorted(blocks.values(), key=lambda block: -block.bytes):
        others = sorted(
            (other.at, other.at + other.bytes)
            for other in placed
            if block.first <= other.last and other.first <= block.last
        )
        at = begin
        for low, high in others:
            if at + block.bytes <= low:
                break
            at = max(at, _aligned(high))
        block.at = at
        placed.append(block)
    return max((block.at + _aligned(block.bytes) for block in placed), default=begin)
