"""A signed bundle of an untrained network, for measuring it where it will run.

Latency and energy depend on the architecture, not on what was learnt. So the weights are drawn from
a fixed seed: two networks of one architecture give the same files, which are measured once.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError
from edgexnas.host.networks.search_space import INPUT_SHAPES

if TYPE_CHECKING:
    from torch import nn

    from edgexnas.bundle import Gate, Precision
    from edgexnas.host.exporting.bundling import Bundling

__all__ = ["CandidateBundle", "make_candidate_bundle", "sign_candidate"]

ITEMS = 16
"""Reference inputs; the device repeats them to fill its batch."""

CALIBRATION_ITEMS = 64

NO_GATE = 1e6
"""Untrained networks are measured, not trusted with answers: any finite output passes."""

CREATED = datetime(2025, 1, 1, tzinfo=timezone.utc)

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CandidateBundle:
    """A bundle file's bytes, and the digest of what it holds without its signature.

    The signature is another one each time; `content_digest` is the same for the same networks.
    """

    raw: bytes
    content_digest: str


def make_candidate_bundle(
    model: nn.Module, task: str, precision: Precision, signing_key: Path
) -> CandidateBundle:
    """Export an untrained network in one precision and sign it.

    Parameters
    ----------
    model
        From (n, 1, 11, 11) for "bragg" or (n, 1, 64, 64) for "ptycho"; it is not changed.
    signing_key
        Private key whose public key the device trusts.

    Raises
    ------
    InputError
        If the network's output is not finite.
    QuantisationError
        If it cannot be quantised.
    ConfigurationError
        If the key does not fit.
    """
    import torch

    from edgexnas.bundle import Gate
    from edgexnas.host.exporting.bundling import make_bundling
    from edgexnas.host.exporting.onnx_export import to_onnx
    from edgexnas.host.exporting.quantisation import run_onnx
    from edgexnas.host.networks.bragg_models import LEVELS, count_parameters

    fixed = with_fixed_weights(model)
    shape = (CALIBRATION_ITEMS, *INPUT_SHAPES[task])
    items = np.random.default_rng(0).random(shape, np.float32)
    with torch.inference_mode():
        sample = fixed(torch.from_numpy(items[:2]))
    levels = LEVELS
    # A network of one's own may have other levels; which ones does not change what it costs.
    if task == "bragg" and sample.shape[2] != len(LEVELS):
        levels = tuple(np.linspace(0, 1, sample.shape[2] + 2)[1:-1].tolist())
    bundling = make_bundling(task, levels)
    inputs, output = bundling.tensors()
    export = functools.partial(
        to_onnx,
        fixed,
        torch.from_numpy(items[:4]),
        input_name=inputs.name,
        output_name=output.name,
    )
    float32 = export()
    expected = run_onnx(float32, items[:ITEMS], ITEMS)
    if not np.isfinite(expected).all():
        raise InputError("the untrained network gives numbers that are not finite")
    content = _in_precision(export, float32, items, precision)
    return sign_candidate(
        content,
        precision,
        bundling=bundling,
        architecture=type(model).__name__,
        parameters=count_parameters(model),
        reference={"input": items[:ITEMS], "output": expected},
        gate=Gate(unit=bundling.unit, float32=NO_GATE, float16=NO_GATE, int8=NO_GATE),
        signing_key=signing_key,
    )


def sign_candidate(
    content: bytes,
    precision: Precision,
    *,
    bundling: Bundling,
    architecture: str,
    parameters: int,
    reference: Mapping[str, FloatArray],
    gate: Gate,
    signing_key: Path,
) -> CandidateBundle:
    """Sign one model as a bundle that is measured and then forgotten.

    Parameters
    ----------
    content
        ONNX of this precision.
    reference
        "input" and the "output" that an engine is checked against, by the gate.
    """
    from edgexnas.bundle import (
        BraggPreprocessing,
        Manifest,
        Provenance,
        PtychoPreprocessing,
        write_bundle,
    )

    inputs, output = bundling.tensors()
    manifest = Manifest(
        task=bundling.task,
        model_id="candidate",
        sequence=0,
        created=CREATED,
        architecture=architecture,
        parameters=parameters,
        quantile_levels=bundling.levels,
        precisions=(precision,),
        inputs=(inputs,),
        outputs=(output,),
        preprocessing=(
            BraggPreprocessing()
            if bundling.task == "bragg"
            else PtychoPreprocessing(intensity_scale=1.0)
        ),
        accuracy=(),
        gate=gate,
        provenance=Provenance(
            seed=0,
            data_digest=hashlib.sha256(reference["input"].tobytes()).hexdigest(),
            data_source="candidate of a search",
            configuration={},
            versions={},
        ),
    )
    with tempfile.TemporaryDirectory(prefix="edgexnas-") as folder:
        path = write_bundle(
            Path(folder) / "candidate.edgex",
            manifest=manifest,
            models={precision: content},
            reference=reference,
            signing_key=signing_key,
        )
        raw = path.read_bytes()
    digest = hashlib.sha256(content + manifest.model_dump_json().encode()).hexdigest()
    return CandidateBundle(raw, digest)


def with_fixed_weights(model: nn.Module) -> nn.Module:
    """Copy a network and draw its weights from a fixed seed, at a scale that keeps signals alive.

    Signals that fade to denormal numbers would be slow on a CPU, as trained ones are not.
    """
    import torch

    fixed = copy.deepcopy(model).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in fixed.parameters():
            if weight.dim() > 1:
                fan_in = weight[0].numel()
                weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
            else:
                weight.fill_(0.01)
    return fixed


def _in_precision(
    export: Callable[..., bytes], float32: bytes, items: FloatArray, precision: Precision
) -> bytes:
    from edgexnas.host.exporting.quantisation import quantise, recipes

    if precision == "int8":
        return quantise(float32, items, next(iter(recipes()))).model
    return export(half=True) if precision == "float16" else float32
