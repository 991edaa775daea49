"""Another name, until 0.3.0, of the program `edgexnas.device.publishing`."""

from runpy import run_module

if __name__ == "__main__":
    run_module("edgexnas.device.publishing", run_name="__main__")
