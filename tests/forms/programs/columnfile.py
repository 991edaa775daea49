"""Read a columnfile with ImageD11 and compute scattering vectors of it."""

import json
import sys

import numpy as np
from ImageD11.columnfile import columnfile

c = columnfile(sys.argv[1])
c.parameters.set_parameters(
    {
        "y_center": 0.0, "z_center": 0.0, "y_size": 75.0, "z_size": 75.0, "distance": 2e5,
        "o11": 1, "o12": 0, "o21": 0, "o22": -1, "tilt_x": 0.0, "tilt_y": 0.0, "tilt_z": 0.0,
        "wedge": 0.0, "chi": 0.0, "omegasign": 1.0, "wavelength": 0.3,
        "t_x": 0.0, "t_y": 0.0, "t_z": 0.0,
    }
)  # fmt: skip
c.updateGeometry()
told = {name: np.asarray(getattr(c, name)).tolist() for name in c.titles}
print(json.dumps(told))
