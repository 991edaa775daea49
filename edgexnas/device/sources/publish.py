"""Another name, until the next release, of `edgexnas.device.publishing`."""

from edgexnas.device.publishing.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
