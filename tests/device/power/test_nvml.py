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

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

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


class Boards(StandIn):
    """Boards of their own UUID and power, 100 W for the first, 200 W for the second, ..."""

    def __init__(self, *uuids: str, names: tuple[str, ...] = (), divided: int | None = None):
        super().__init__(0)
        self.uuids, self.names, self.divided = uuids, names or ("H100",) * len(uuids), divided

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.uuids)

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:  # noqa: N802
        return self.uuids[handle].encode()

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 100_000 * (handle + 1)

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:  # noqa: N802
        if self.divided is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return int(handle == self.divided), 0


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*uuids: str, visible: str | None = None, **options: Any) -> Boards:
        stand_in = Boards(*uuids, **options)
        monkeypatch.setitem(sys.modules, "pynvml", stand_in)
        monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return stand_in

    return install


THREE = ("GPU-aa11", "GPU-ab22", "GPU-bb33")


@pytest.mark.parametrize(
    ("visible", "gpu", "watts"),
    [
        (None, 2, 300),
        ("2", 0, 300),
        (" 2 , 0 ", 1, 100),
        ("GPU-ab", 0, 200),
        ("GPU-bb33,GPU-aa11", 1, 100),
        ("1,99,2", 0, 200),
        ("1,MIG-0a1b", 0, 200),
    ],
)
def test_the_board_that_cuda_runs_on_is_measured(
    visible: str | None, gpu: int, watts: float, boards: Any
) -> None:
    boards(*THREE, visible=visible)
    assert open_power_meter("nvml", gpu=gpu).read().module_w == watts


@pytest.mark.parametrize(
    ("visible", "gpu", "message"),
    [
        ("", 0, r"sees 0 of this machine's 3 GPUs .*''"),
        ("-1", 0, "sees 0 of"),
        ("0,1", 2, "sees 2 of .* none is number 2"),
        ("7", 0, "sees 0 of"),
        ("1,99,2", 1, "sees 1 of"),
        ("GPU-a", 0, "sees 0 of"),
        ("GPU-ff", 0, "sees 0 of"),
        (None, 3, "sees 3 of .* unset"),
        (None, -1, "none is number -1"),
        ("MIG-0a1b", 0, "MIG-0a1b is a slice"),
        ("MIG-GPU-aa11/1/0", 0, "MIG-GPU-aa11/1/0 is a slice"),
    ],
)
def test_a_gpu_that_cuda_does_not_see_whole_is_refused(
    visible: str | None, gpu: int, message: str, boards: Any
) -> None:
    stand_in = boards(*THREE, visible=visible)
    with pytest.raises(SourceError, match=message):
        open_power_meter("nvml", gpu=gpu)
    assert stand_in.running == 0


def test_a_board_that_is_divided_into_slices_is_refused_by_any_name(boards: Any) -> None:
    for visible in (None, "0", "GPU-aa"):
        boards(*THREE, visible=visible, divided=0)
        with pytest.raises(SourceError, match="GPU 0 is a slice"):
            open_power_meter("nvml")
    boards(*THREE, visible="1", divided=0)
    assert open_power_meter("nvml").read().module_w == 200


def test_numbers_of_unlike_boards_need_the_order_of_the_bus(
    boards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlike = {"names": ("T4", "H100", "H100")}
    boards(*THREE, visible="1", **unlike)
    with pytest.raises(SourceError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        open_power_meter("nvml")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert open_power_meter("nvml").read().module_w == 200
    boards(*THREE, visible="GPU-bb", **unlike)
    assert open_power_meter("nvml").read().module_w == 300


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
