"""Read a list of merged spots with the module of midas_transforms that reads it."""

import importlib.util
import json
import sys
from pathlib import Path

# The module alone: the package loads torch, which reading needs not.
package = Path(importlib.util.find_spec("midas_transforms").submodule_search_locations[0])
spec = importlib.util.spec_from_file_location("midas_csv", package / "io" / "csv.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
rows = module.read_result_csv(sys.argv[1])
names = module.RESULT_HEADER.split()
header = Path(sys.argv[1]).read_text().splitlines()[0]
print(
    json.dumps(
        {"header": header == module.RESULT_HEADER_LEGACY}
        | {name: rows[:, index].tolist() for index, name in enumerate(names)}
    )
)
