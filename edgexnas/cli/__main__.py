"""python -m edgexnas.cli, where the `edgexnas` script is not on the path."""

import sys

from edgexnas.cli import main

sys.exit(main())
