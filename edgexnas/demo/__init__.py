"""The whole job on one machine: frames, labels, search, bundle, prediction, table and picture."""

from edgexnas.demo.run import DemoResult, DemoSettings, run_demo

__all__ = ["DemoResult", "DemoSettings", "run_demo"]
