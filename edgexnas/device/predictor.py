"""Open the predictor of a bundle's application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from edgexnas.device.bundle_predictor import (
    BundlePath,
    PredictorOptions,
    Task,
    require_task,
    verified_bundle,
)
from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgexnas.device.bragg.predictor import PeakPredictor
    from edgexnas.device.ptycho.predictor import PtychoPredictor

__all__ = ["Predictor"]


@overload
def Predictor(
    bundle: BundlePath,
    *,
    task: Literal["bragg"],
    saturation: float | None = None,
    minimum_counts: float | None = None,
    threshold: float | None = None,
    mask_hot: bool | None = None,
    **options: Unpack[PredictorOptions],
) -> PeakPredictor: ...


@overload
def Predictor(
    bundle: BundlePath,
    *,
    task: Literal["ptycho"],
    saturation: float | None = None,
    **options: Unpack[PredictorOptions],
) -> PtychoPredictor: ...


@overload
def Predictor(
    bundle: BundlePath,
    *,
    task: None = None,
    saturation: float | None = None,
    minimum_counts: float | None = None,
    threshold: float | None = None,
    mask_hot: bool | None = None,
    **options: Unpack[PredictorOptions],
) -> PeakPredictor | PtychoPredictor: ...


# Named like a class, as `threading.Lock` is: it is used as one, in a with-block.
def Predictor(  # noqa: N802
    bundle: BundlePath,
    *,
    task: Task | None = None,
    saturation: float | None = None,
    minimum_counts: float | None = None,
    threshold: float | None = None,
    mask_hot: bool | None = None,
    **options: Unpack[PredictorOptions],
) -> PeakPredictor | PtychoPredictor:
    """Open what a verified bundle predicts: Bragg peak positions, or patches of an object.

    It is the predictor of the bundle's application, a `PeakPredictor` or a `PtychoPredictor`; with
    `task`, or opened by its own name, of this application only.

    Opening a predictor verifies the bundle's signature, opens an engine, and proves that engine
    on the bundle's reference vectors; a predictor that opened works within the bundle's gate.

    ::

        with Predictor("bragg.edgex", trust="keys/") as predictor:
            for peaks in predictor.stream("scan.h5"):
                print(peaks.frame_number, peaks.positions_px)

    Thread-safe: calls from several threads wait for each other. For throughput open one predictor
    for each thread or process, or raise `threads`.

    Parameters
    ----------
    bundle
        Path of a bundle; "universal" for the one for Bragg peaks of any detector that comes with
        the package; or a `Bundle` that `open_bundle` gave, which is not verified again.
    trust
        Folder of trusted public keys (or one key file, or a `TrustStore`); needed with a path.
    state
        Folder that remembers the newest bundle of each model that ran here; an older one is
        rejected. None for the usual one if there is one, False for none; see `open_bundle`.
    gates
        Widest accuracy gates that are accepted; None for `GatePolicy()`.
    engine
        "auto", "onnxruntime" or "tensorrt"; see `open_engine`.
    precision
        "int8", "float16" or "float32": which of the bundle's models runs. "auto" opens float16 and
        INT8, measures both on this device, and keeps the faster that passes the gate; the next
        start remembers.
    batch
        Largest number of patches or patterns of one run of the engine.
    threads
        CPU threads of the engine; None for 1.
    cache
        Folder where TensorRT plans and measurements are kept, for this user alone; None for
        `$EDGEXNAS_CACHE` or the user's cache folder, False for none.
    mask
        (H, W) bool, True where a pixel of the detector must not be used (dead, hot, in a gap).
    saturation
        Counts from which a pixel is saturated; None as of `PeakPredictor` or `PtychoPredictor`.
    minimum_counts, threshold, mask_hot
        For Bragg peaks alone: as of `PeakPredictor`.
    task
        "bragg" or "ptycho", to accept bundles of this application only; type checkers know the
        predictor by it. None for the bundle's own.

    Raises
    ------
    BundleError
        If the bundle is malformed (`SignatureError`, `TrustError`: not signed, or by a stranger).
    ConfigurationError
        If an option is out of range, or the bundle lacks the precision or is for another task.
    EngineError
        If the engine cannot be opened (`EngineAccuracyError`: it deviates beyond the gate).
    InputError
        If the mask is no (H, W) bool array.
    MissingDependencyError
        If the inference library is not installed.
    """
    trust, state = options.pop("trust", None), options.pop("state", None)
    verified = verified_bundle(bundle, trust, state, options.pop("gates", None))
    manifest = verified.manifest
    require_task(manifest, task or manifest.task)
    # Imported late, so that only the application that is used is loaded.
    if manifest.task == "ptycho":
        from edgexnas.device.ptycho.predictor import PtychoPredictor

        of_peaks = {
            "minimum_counts": minimum_counts, "threshold": threshold, "mask_hot": mask_hot
        }  # fmt: skip
        for name, value in of_peaks.items():
            if value is not None:
                raise ConfigurationError(
                    f"{name} is for Bragg peaks, and bundle {manifest.model_id} is for "
                    "ptychography; leave it out"
                )
        return PtychoPredictor(verified, saturation=saturation, **options)
    from edgexnas.device.bragg.predictor import PeakPredictor

    return PeakPredictor(
        verified, saturation=saturation, minimum_counts=minimum_counts, threshold=threshold,
        mask_hot=mask_hot, **options,
    )  # fmt: skip
