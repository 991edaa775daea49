"""Reference vectors: real inputs and the float32 outputs that every engine is held against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.manifest import Manifest, Tensor
from edgexnas.bundle.npy import decode_npy, encode_npy
from edgexnas.errors import BundleError

__all__ = ["decode_reference", "encode_reference", "reference_tensors"]

MOST_REFERENCE_BYTES = 64 * 1024 * 1024

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
        f"{name}.npy": encode_npy(arrays[name].astype("<f4", order="C"))
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
    # Each may be as large as all, because the file itself is bounded already.
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


def _decode_array(raw: bytes, tensor: Tensor, *, what: str) -> FloatArray:
    shape = _item_shape(tensor)
    array = decode_npy(raw, shape)
    if array is None:
        raise BundleError(
            f"{what} is not a float32 array (n, {str(shape)[1:]}: export the bundle again"
        )
    return array


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
        # A NaN reference would make any engine pass, or none, by how it is compared.
        if not np.isfinite(array).all():
            raise BundleError(f"reference array {name!r} holds NaN or infinity: choose other items")
