from __future__ import annotations

from typing import Any

import pvaccess
import pytest

from edgexnas.device.pva_records import PvaRecords
from edgexnas.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("epics_network")


def _get(name: str) -> Any:
    channel = pvaccess.Channel(name)
    channel.setTimeout(10)
    return channel.get()["value"]


def _integer(value: int) -> Any:
    return pvaccess.PvObject({"value": pvaccess.INT}, {"value": value})


def test_two_users_share_one_server_and_each_withdraws_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    status, results = PvaRecords("status"), PvaRecords("results")
    status.add("EDGEX:a", _integer(1))
    results.add("EDGEX:b", _integer(2))
    assert (_get("EDGEX:a"), _get("EDGEX:b")) == (1, 2)
    status.close()
    results.update("EDGEX:b", {"value": 3})
    assert _get("EDGEX:b") == 3
    results.close()
    results.close()
    assert "More than one channel" not in "".join(capfd.readouterr())


def test_a_name_is_served_once() -> None:
    first, second = PvaRecords("status"), PvaRecords("results")
    try:
        first.add("EDGEX:a", _integer(1))
        with pytest.raises(ConfigurationError, match="serves a PV EDGEX:a already"):
            second.add("EDGEX:a", _integer(1))
    finally:
        second.close()
        first.close()


def test_records_can_be_served_again_after_all_were_withdrawn() -> None:
    for value in (1, 2):
        records = PvaRecords("status")
        records.add("EDGEX:again", _integer(value))
        assert _get("EDGEX:again") == value
        records.close()
