"""Another name, until 0.3.0, of the program `edgexnas.device.publishing`."""

from runpy import run_module

if __name__ == "__main__":
    # Run by name: sources must not import what sends frames to them.
    run_module("edgexnas.device.publishing", run_name="__main__")
