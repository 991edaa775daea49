"""Reference vectors: real inputs and the float32 outputs that every engine is held against."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.manifest import Manifest, Tensor
from edgexnas.errors import BundleError

__all__ = ["decode_reference", "encode_reference", "reference_tensors"]

MOST_REFERENCE_BYTES = 64 * 1024 * 1024

NPY_START = struct.Struct("<6sBBH")
"""Magic, version and header length: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""

FloatArray = npt.NDArray[np.float32]


def reference_tensors(manifest: Manifest) -> dict[str, Tensor]:
    """Name the reference arrays of a model.

    A single input is "input" and a single output "output"; several carry the tensor's name:
    "input_NAME", "output_NAME".
    """
    found: dict[str, Tensor] = {}
    for kind, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            found[kind if len(tensors) == 1 else f"{kind}_{tensor.name}"] = tensor
    return found


def encode_reference(reference: Mapping[str, npt.NDArray[np.generic]], manifest: Manifest) -> bytes:
    """Write reference arrays as an .npz file, equal bytes for equal arrays.

    Raises
    ------
    BundleError
        If an array is missing, too many, not finite, or disagrees with the manifest's tensor.
    """
    arrays = {name: np.asarray(array) for name, array in reference.items()}
    _check_arrays(arrays, manifest)
    members = {
        f"{name}.npy": _encode_array(arrays[name].astype("<f4", order="C"))
        for name in reference_tensors(manifest)
    }
    return encode_archive(members)


def decode_reference(
    raw: bytes, manifest: Manifest, *, what: str = "reference.npz"
) -> dict[str, FloatArray]:
    """Read reference arrays.

    Parameters
    ----------
    raw
        Content of `reference.npz`, as `encode_reference` writes it.
    manifest
        The model that they belong to.
    what
        What is read, for messages.

    Returns
    -------
    Read-only float32 arrays by the names of `reference_tensors`, with equal first axes.

    Raises
    ------
    BundleError
        As in `encode_reference`, or if the file is malformed.
    """
    names = reference_tensors(manifest)
    limits = {f"{name}.npy": MOST_REFERENCE_BYTES for name in names}
    members = decode_archive(raw, limits=limits, what=what)
    missing = [name for name in limits if name not in members]
    if missing:
        raise BundleError(f"{what} lacks {', '.join(missing)}: export the bundle again")
    arrays = {
        name: _decode_array(members[f"{name}.npy"], tensor, what=f"{name} in {what}")
        for name, tensor in names.items()
    }
    _check_arrays(arrays, manifest)
    return arrays


def _encode_array(array: FloatArray) -> bytes:
    """Write a .npy file (format 1.0); numpy.save pads its header differently between versions."""
    # The format pads the header with spaces, so that the data begins at a multiple of 64 bytes.
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {array.shape}, }}"
    padded = header.ljust(-(-(NPY_START.size + len(header) + 1) // 64) * 64 - NPY_START.size - 1)
    start = NPY_START.pack(b"\x93NUMPY", 1, 0, len(padded) + 1)
    return start + f"{padded}\n".encode() + array.tobytes()


def _decode_array(raw: bytes, tensor: Tensor, *, what: str) -> FloatArray:
    """Read a .npy file that `_encode_array` wrote, without believing its header.

    The shape follows from the manifest and the length of the data.
    """
    shape = _item_shape(tensor)
    if len(raw) >= NPY_START.size:
        body = memoryview(raw)[NPY_START.size + NPY_START.unpack_from(raw)[3] :]
        count, rest = divmod(len(body), 4 * math.prod(shape))
        if count and not rest:
            array = np.frombuffer(body, "<f4").reshape(count, *shape)
            # The header is compared and never parsed, which numpy does as a Python literal.
            if _encode_array(array) == raw:
                return array
    raise BundleError(f"{what} is no float32 array (n, {str(shape)[1:]}: export the bundle again")


def _item_shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(length for length in tensor.shape[1:] if length != "n")


def _check_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], manifest: Manifest) -> None:
    tensors = reference_tensors(manifest)
    if set(arrays) != set(tensors):
        raise BundleError(
            f"reference arrays are {sorted(arrays)}, where the model has {sorted(tensors)}"
        )
    count = len(next(iter(arrays.values()))) if all(a.ndim for a in arrays.values()) else 0
    for name, tensor in tensors.items():
        array, expected = arrays[name], (count, *_item_shape(tensor))
        if array.dtype != np.float32 or array.shape != expected or not count:
            raise BundleError(
                f"reference array {name!r} is {array.dtype} {array.shape}, where {count or 'n'} "
                f"items of tensor {tensor.name}, float32 {tensor.shape}, are expected"
            )
        if not np.isfinite(array).all():
            raise BundleError(f"reference array {name!r} holds NaN or infinity: choose other items")
