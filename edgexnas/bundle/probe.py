"""The probe of a bundle: the illumination that ptychography's training data were taken with."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.deployment import Probe
from edgexnas.bundle.npy import decode_npy, encode_npy
from edgexnas.errors import BundleError
from edgexnas.ptycho import Orientation

__all__ = ["MOST_PROBE_BYTES", "decode_probe", "describe_probe", "encode_probe"]

MOST_PROBE_BYTES = 64 * 1024 * 1024

ARRAY = "probe.npy"

ComplexArray = npt.NDArray[np.complex64]


def encode_probe(probe: npt.NDArray[np.complexfloating]) -> bytes:
    """Write a probe as an .npz file: its real and its imaginary part in float32.

    (2, H, W) for one mode, which is how edgexnas 0.2.0 reads it, and (2, modes, H, W) for several.

    Raises
    ------
    BundleError
        If it is not (modes, H, W) or (H, W) and complex, holds NaN or infinity, or is larger than
        a bundle may hold.
    """
    if probe.ndim not in (2, 3) or not np.iscomplexobj(probe) or not np.isfinite(probe).all():
        raise BundleError(
            f"a probe is {probe.dtype} {probe.shape}; specify finite complex values (modes, H, W)"
        )
    modes = probe.reshape(-1, *probe.shape[-2:])
    # As two float32 arrays, because `decode_npy` reads no other type and needs no other.
    parts = np.stack([modes.real, modes.imag]).astype("<f4")
    if parts.nbytes + 4096 > MOST_PROBE_BYTES:
        raise BundleError(
            f"a probe of shape {probe.shape} takes {parts.nbytes / 1e6:.0f} MB, and a bundle holds "
            f"{MOST_PROBE_BYTES / 1e6:.0f} MB of it; keep fewer modes"
        )
    return encode_archive({ARRAY: encode_npy(parts[:, 0] if len(modes) == 1 else parts)})


def describe_probe(
    probe: npt.NDArray[np.complexfloating],
    *,
    pixel_m: tuple[float, float] | None = None,
    orientation: Orientation = "as-is",
) -> Probe:
    """Make the manifest's record of a probe.

    Parameters
    ----------
    probe
        (modes, H, W) or (H, W) complex.
    pixel_m
        (row, col) size of its pixels in metres, at the object; None if unknown.
    orientation
        What brings the detector's patterns into the axes of the positions.

    Raises
    ------
    BundleError
        As of `encode_probe`.
    """
    digest = hashlib.sha256(encode_probe(probe)).hexdigest()
    rows, cols = probe.shape[-2:]
    modes = len(probe) if probe.ndim == 3 else 1
    return Probe(
        shape=(rows, cols), pixel_m=pixel_m, digest=digest, modes=modes, orientation=orientation
    )


def decode_probe(raw: bytes, record: Probe, *, what: str = "probe.npz") -> ComplexArray:
    """Read a probe that `encode_probe` wrote.

    Returns
    -------
    (modes, H, W) complex64, read-only.

    Raises
    ------
    BundleError
        If it is another one than the manifest describes, or malformed.
    """
    # The digest is of a signed manifest; the member is signed as well, so this finds a mix-up.
    if hashlib.sha256(raw).hexdigest() != record.digest:
        raise BundleError(f"{what} is not the one that the manifest describes: export it again")
    shape = (record.modes, *record.shape)
    members = decode_archive(raw, limits={ARRAY: MOST_PROBE_BYTES}, what=what)
    parts = decode_npy(members.get(ARRAY, b""), record.shape if record.modes == 1 else shape)
    if parts is None or len(parts) != 2 or not np.isfinite(parts).all():
        raise BundleError(f"{what} is not finite float32 (2, {shape}): export it again")
    probe: ComplexArray = (parts[0] + np.complex64(1j) * parts[1]).reshape(shape)
    probe.flags.writeable = False
    return probe
