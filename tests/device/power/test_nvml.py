"""A GPU's board power through NVML; the library is a stand-in where there is no GPU."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgexnas.device.power import open_power_meter
from edgexnas.errors import MissingDependencyError, SourceError


class StandIn(ModuleType):
    """What NVML answers on a data-centre GPU (`power_mw`), or on a Jetson (None)."""

    NVML_SUCCESS = 0
    NVML_FI_DEV_POWER_INSTANT = 186

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
        pass

    def __init__(self, power_mw: int | None, *, instant_mw: int | None = None) -> None:
        super().__init__("pynvml")
        self.power_mw, self.instant_mw, self.energy_mj, self.running = power_mw, instant_mw, 0, 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.running += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.running -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "Stand-in"

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        if self.power_mw is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return self.power_mw

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if self.power_mw is None:
            raise self.NVMLError_NotSupported("Not Supported")
        self.energy_mj += 1500
        return self.energy_mj

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[int]) -> list[Any]:  # noqa: N802
        value = SimpleNamespace(uiVal=self.instant_mw or 0)
        return [SimpleNamespace(nvmlReturn=0 if self.instant_mw else 3, value=value)]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*arguments: Any, **options: Any) -> StandIn:
        stand_in = StandIn(*arguments, **options)
        monkeypatch.setitem(sys.modules, "pynvml", stand_in)
        return stand_in

    return install


def test_milliwatts_and_millijoules_become_watts_and_joules(library: Any) -> None:
    library(123_400)
    meter = open_power_meter("nvml")
    first, second = meter.read(), meter.read()
    assert first.module_w == pytest.approx(123.4)
    assert second.energy_j - first.energy_j == pytest.approx(1.5)


def test_the_instantaneous_reading_is_preferred_to_the_average(library: Any) -> None:
    library(100_000, instant_mw=321_000)
    meter = open_power_meter("nvml")
    assert meter.read().module_w == pytest.approx(321.0)
    assert "instantaneous" in meter.description


def test_a_jetson_s_nvml_measures_nothing_and_says_so(library: Any) -> None:
    stand_in = library(None)
    with pytest.raises(SourceError, match="on a Jetson read the rails"):
        open_power_meter("nvml")
    assert stand_in.running == 0


def test_closing_releases_the_library_once(library: Any) -> None:
    stand_in = library(1000)
    meter = open_power_meter("nvml")
    meter.close()
    meter.close()
    assert stand_in.running == 0
    with pytest.raises(SourceError, match="is closed"):
        meter.read()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=r"edgexnas\[nvml\]"):
        open_power_meter("nvml")


def test_the_real_library_measures_or_says_why_not() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    try:
        meter = open_power_meter("nvml")
    except SourceError as error:
        assert "install one" in str(error) or "reports no power" in str(error)  # noqa: PT017
    else:
        watts = meter.read().module_w
        assert watts is not None
        assert 1 < watts < 3000
        meter.close()
