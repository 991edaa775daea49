"""Read a TIFF image with tifffile."""

import json
import sys

import tifffile

picture = tifffile.imread(sys.argv[1])
print(json.dumps({"dtype": str(picture.dtype), "values": picture.tolist()}))
