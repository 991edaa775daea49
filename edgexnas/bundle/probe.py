"""The probe of a bundle: the illumination that ptychography's training data were taken with."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.deployment import Probe
from edgexnas.bundle.npy import decode_npy, encode_npy
from edgexnas.errors import BundleError

__all__ = ["MOST_PROBE_BYTES", "decode_probe", "describe_probe", "encode_probe"]

MOST_PROBE_BYTES = 64 * 1024 * 1024

ARRAY = "probe.npy"

ComplexArray = npt.NDArray[np.complex64]


def encode_probe(probe: npt.NDArray[np.complexfloating]) -> bytes:
    """Write a probe as an .npz file: float32 (2, H, W), its real and its imaginary part.

    Raises
    ------
    BundleError
        If it is not two-dimensional and complex, or holds NaN or infinity.
    """
    if probe.ndim != 2 or not np.iscomplexobj(probe) or not np.isfinite(probe).all():
        raise BundleError(
            f"a probe is {probe.dtype} {probe.shape}; specify finite complex values (H, W)"
        )
    # As two float32 arrays, because `decode_npy` reads no other type and needs no other.
    return encode_archive({ARRAY: encode_npy(np.stack([probe.real, probe.imag]).astype("<f4"))})


def describe_probe(
    probe: npt.NDArray[np.complexfloating], *, pixel_m: tuple[float, float]
) -> Probe:
    """Make the manifest's record of a probe.

    Parameters
    ----------
    probe
        (H, W) complex.
    pixel_m
        (row, col) size of its pixels in metres, at the object.
    """
    rows, cols = probe.shape
    digest = hashlib.sha256(encode_probe(probe)).hexdigest()
    return Probe(shape=(rows, cols), pixel_m=pixel_m, digest=digest)


def decode_probe(raw: bytes, record: Probe, *, what: str = "probe.npz") -> ComplexArray:
    """Read a probe that `encode_probe` wrote.

    Returns
    -------
    (H, W) complex64, read-only.

    Raises
    ------
    BundleError
        If it is another one than the manifest describes, or malformed.
    """
    # The digest is of a signed manifest; the member is signed as well, so this finds a mix-up.
    if hashlib.sha256(raw).hexdigest() != record.digest:
        raise BundleError(f"{what} is not the one that the manifest describes: export it again")
    members = decode_archive(raw, limits={ARRAY: MOST_PROBE_BYTES}, what=what)
    parts = decode_npy(members.get(ARRAY, b""), record.shape)
    if parts is None or len(parts) != 2 or not np.isfinite(parts).all():
        raise BundleError(f"{what} is not finite float32 (2, {record.shape}): export it again")
    probe: ComplexArray = parts[0] + np.complex64(1j) * parts[1]
    probe.flags.writeable = False
    return probe
