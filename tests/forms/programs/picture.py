"""Open a file's default plot with silx, as `silx view` does."""

import json
import sys

import silx.io
from silx.io import nxdata

with silx.io.open(sys.argv[1]) as file:
    default = nxdata.get_default(file, validate=True)
    print(
        json.dumps(
            {
                "valid": bool(default.is_valid),
                "image": bool(default.is_image),
                "signal": default.signal_name,
                "shape": list(default.signal.shape),
                "sum": float(default.signal[()].sum()),
                "others": default.auxiliary_signals_names,
                "axes": default.axes_names,
                "axis": [None if axis is None else float(axis[0]) for axis in default.axes],
            }
        )
    )
