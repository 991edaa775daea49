"""A PV Access client: prints what the PVs hold whose names it is given, as JSON.

`--put` also tries to write to the last one, and prints what the server said.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import pvaccess

TIMEOUT_S = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--put", type=int)
    options = parser.parse_args()
    answers: dict[str, Any] = {}
    for name in options.names:
        channel = pvaccess.Channel(name)
        channel.setTimeout(TIMEOUT_S)
        got = channel.get("field()")
        answers[name] = {"text": str(got)[:40_000], "fields": got.toDict()}
    if options.put is not None:
        try:
            channel.put(options.put)
            answers["put"] = "accepted"
        except pvaccess.PvaException as error:
            answers["put"] = str(error)
    # In a line of its own: EPICS prints to standard output too.
    print("\nANSWERS" + json.dumps(answers, default=lambda array: array.tolist()))  # noqa: T201


if __name__ == "__main__":
    main()
