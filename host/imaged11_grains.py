"""Index and refine grains of a columnfile with ImageD11; run with the Python that has it.

    python imaged11_grains.py spots.flt geometry.json grains.json

geometry.json has the wavelength in Å, the unit cell (a, b, c, α, β, γ, centring), the wedge in
degrees, places of the detector ([sc, fc], then [x, y, z] in µm: x along the beam, z up), and how to
index and refine. `host/grains.py` writes it and reads what comes back.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from typing import Any

import numpy as np
from ImageD11 import cImageD11, grain, indexing, refinegrains, transform
from ImageD11.columnfile import columnfile
from scipy.optimize import least_squares

FLIPS = [(a, b, c, d) for a, d in ((1, 1), (1, -1), (-1, 1), (-1, -1)) for b, c in ((0, 0),)]
FLIPS += [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def main() -> None:
    flt, geometry_file, output = sys.argv[1:4]
    with open(geometry_file) as file:
        geometry = json.load(file)
    parameters = fitted_parameters(geometry)
    table = columnfile(flt)
    table.parameters.set_parameters(parameters)
    table.updateGeometry()
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        ubis = index(table, geometry)
        indexed = time.process_time()
        refined = refine(flt, parameters, ubis, geometry)
    done = time.process_time()
    told = [described(one, parameters, geometry) for one in refined]
    with open(output, "w") as file:
        json.dump({
            "grains": told,
            "spots": int(table.nrows),
            "index_cpu_s": indexed - began,
            "refine_cpu_s": done - indexed,
        }, file)  # fmt: skip


def fitted_parameters(geometry: dict[str, Any]) -> dict[str, Any]:
    """Find the parameters with which ImageD11 places pixels where they are."""
    # As floats: ImageD11 subtracts in place, and would round whole numbers.
    pixels, places = (np.array(geometry[name], float).T for name in ("pixels", "places_um"))
    size = geometry["pixel_um"]
    best = None
    for flip in FLIPS:
        fixed = dict(zip(("o11", "o12", "o21", "o22"), flip, strict=True))
        fixed |= {"y_size": size, "z_size": size}

        def apart(x: Any, fixed: dict[str, Any] = fixed) -> Any:
            return (transform.compute_xyz_lab(pixels, **named(x), **fixed) - places).ravel()

        start = [*pixels.mean(axis=1)[::-1], 0, 0, 0, places[0].mean()]
        found = least_squares(
            apart,
            start,
            x_scale=[100, 100, 0.01, 0.01, 0.01, 1e4],
            max_nfev=200,
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
        )
        if best is None or found.cost < best[0]:
            best = found.cost, {**named(found.x), **fixed}
    assert best is not None
    if best[0] > 1:
        raise SystemExit(f"no parameters place the pixels better than {best[0]:.1f} µm²")
    cell = {f"cell_{name}": value for name, value in zip(
        ("_a", "_b", "_c", "alpha", "beta", "gamma", "lattice_[P,A,B,C,I,F,R]"),
        geometry["cell"], strict=True,
    )}  # fmt: skip
    return {
        **best[1], **cell, "wavelength": geometry["wavelength"], "wedge": geometry["wedge_deg"],
        "chi": 0.0, "omegasign": 1.0, "t_x": 0.0, "t_y": 0.0, "t_z": 0.0,
    }  # fmt: skip


def named(x: Any) -> dict[str, float]:
    names = ("y_center", "z_center", "tilt_x", "tilt_y", "tilt_z", "distance")
    return dict(zip(names, map(float, x), strict=True))


def index(table: Any, geometry: dict[str, Any]) -> list[Any]:
    """Find orientations from the spots of the inner rings."""
    chosen = table.copy()
    chosen.filter(chosen.ds < geometry["index_ds"])
    found = indexing.index(
        chosen,
        npk_tol=[tuple(pair) for pair in geometry["index_steps"]],
        cosine_tol=np.cos(np.radians(90 - geometry["index_angle_deg"])),
        ds_tol=geometry["index_ds_tol"],
        max_grains=geometry["most_grains"],
        rmulmax=geometry["index_multiplicity"],
        log_level=5,
    )
    return list(found.ubis)


def refine(flt: str, parameters: dict[str, Any], ubis: list[Any], geometry: Any) -> list[Any]:
    """Refine orientation, cell and place of each grain, with ever narrower tolerances."""
    grains = [grain.grain(ubi, translation=(0.0, 0.0, 0.0)) for ubi in ubis]
    for tolerance in geometry["refine_tolerances"]:
        work = refinegrains.refinegrains(
            tolerance=tolerance,
            OmFloat=geometry["omega_float"],
            OmSlop=geometry["omega_slop_deg"],
        )
        work.parameterobj.set_parameters(dict(parameters))
        work.loadfiltered(flt)
        draft = f"{flt}.{os.getpid()}.ubi"
        grain.write_grain_file(draft, grains)
        work.readubis(draft)
        os.unlink(draft)
        work.generate_grains()
        work.assignlabels(quiet=True)
        work.refinepositions(quiet=True, maxiters=geometry["refine_steps"])
        work.assignlabels(quiet=True)
        grains = [work.grains[key] for key in sorted(work.grains)]
        grains = [one for one in grains if one.npks >= geometry["least_spots"]]
    for one in grains:
        one.table = work.scandata[flt]
    return grains


def described(one: Any, parameters: dict[str, Any], geometry: Any) -> dict[str, Any]:
    """Tell a grain and how far its spots lie from where it puts them."""
    rows = np.asarray(one.ind)
    table = one.table
    t = dict(zip(("t_x", "t_y", "t_z"), map(float, one.translation), strict=True))
    pars = {**parameters, **t}
    row, col, omega = table.sc[rows], table.fc[rows], table.omega[rows]
    tth, eta = transform.compute_tth_eta((row, col), omega=omega, **pars)
    wedge = (pars["wavelength"], pars["wedge"], pars["chi"])
    g = transform.compute_g_vectors(tth, eta, omega, *wedge)
    hkl = np.round(one.ubi @ g)
    near = np.abs(one.ubi @ g - hkl).max(axis=0) < 0.1
    tth_c, etas, omegas = transform.uncompute_g_vectors(np.linalg.inv(one.ubi) @ hkl, *wedge)
    second = np.abs(turned(etas[1] - eta)) < np.abs(turned(etas[0] - eta))
    eta_c, omega_c = np.where(second, etas[1], etas[0]), np.where(second, omegas[1], omegas[0])
    col_c, row_c = transform.compute_xyz_from_tth_eta(tth_c, eta_c, omega_c, **pars)
    near &= np.isfinite(row_c) & np.isfinite(omega_c)
    return {
        "ubi": one.ubi.tolist(),
        "translation_um": list(map(float, one.translation)),
        "spots": int(near.sum()),
        "spot_ids": table.spot3d_id[rows][near].astype(int).tolist(),
        "hkl": hkl[:, near].T.astype(int).tolist(),
        "row_px": (row - row_c)[near].tolist(),
        "col_px": (col - col_c)[near].tolist(),
        "omega_deg": turned(omega - omega_c)[near].tolist(),
    }


def turned(angle: Any) -> Any:
    return (np.asarray(angle) + 180) % 360 - 180


if __name__ == "__main__":
    cImageD11.cimaged11_omp_set_num_threads(1)
    main()
