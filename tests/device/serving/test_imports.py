from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "onnx", "onnxruntime", "h5py", "zmq", "pvaccess", "numba", "tensorrt", "scipy")


def test_every_public_name_is_there_and_loads_no_heavy_library() -> None:
    program = (
        "import edgexnas.device.serving as s\n"
        "[getattr(s, name) for name in s.__all__]\n"
        f"import sys\nprint(*[n for n in {HEAVY} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
