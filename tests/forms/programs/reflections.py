"""Read a reflection table with reciprocalspaceship, which needs no DIALS."""

import json
import sys

from reciprocalspaceship.io import dials

pack = dials._get_refl_pack(sys.argv[1])
told = {"nrows": pack["nrows"]}
for name in pack["data"]:
    for column, values in dials.get_msgpack_data(pack["data"], name).items():
        told[column] = values.tolist()
print(json.dumps(told))
