"""Rails of a Jetson are found by label, whatever JetPack numbers them, and add up rightly."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgexnas.device.power import JetsonRailMeter, open_power_meter
from edgexnas.errors import SourceError

Tree = Callable[..., Any]

AGX_W = {"VDD_GPU_SOC": 3.98, "VDD_CPU_CV": 1.592, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 0.5}


@pytest.mark.parametrize("jetpack", [5, 6, 7])
@pytest.mark.parametrize("module", ["p3701-0000", "p3701-0004", "p3701-0005"])
def test_agx_orin_is_the_sum_of_three_rails_without_the_one_inside_another(
    tree: Tree, module: str, jetpack: int
) -> None:
    device = tree(module=module, jetpack=jetpack)
    device.set_power(AGX_W)
    reading = open_power_meter("jetson", root=device.root).read()
    assert set(reading.rails_w) == set(AGX_W)
    assert reading.module_w == pytest.approx(3.98 + 1.592 + 4.0, rel=2e-3)


@pytest.mark.parametrize("jetpack", [5, 6, 7])
@pytest.mark.parametrize("module", ["p3767-0000", "p3767-0003"])
def test_orin_nx_and_nano_are_what_flows_into_them(tree: Tree, module: str, jetpack: int) -> None:
    device = tree(module=module, jetpack=jetpack)
    device.set_power({"VDD_IN": 9.0, "VDD_CPU_GPU_CV": 4.0, "VDD_SOC": 2.0})
    assert JetsonRailMeter(device.root).read().module_w == pytest.approx(9.0, rel=2e-3)


def test_the_rail_inside_another_moves_the_total_by_nothing(tree: Tree) -> None:
    device = tree()
    meter = JetsonRailMeter(device.root)
    before = meter.read()
    device.set_power({"VDDQ_VDD2_1V8AO": 12.0})
    after = meter.read()
    assert after.rails_w["VDDQ_VDD2_1V8AO"] > before.rails_w["VDDQ_VDD2_1V8AO"] + 10
    assert after.module_w == before.module_w


@pytest.mark.parametrize("first", [0, 1, 3, 17])
def test_hwmon_may_be_numbered_in_any_way(tree: Tree, first: int) -> None:
    device = tree(first_hwmon=first)
    device.set_power(AGX_W)
    assert JetsonRailMeter(device.root).read().module_w == pytest.approx(9.572, rel=2e-3)


def test_a_container_that_hides_the_class_still_has_the_driver_s_folder(tree: Tree) -> None:
    device = tree()
    for link in (device.root / "sys/class/hwmon").iterdir():
        link.unlink()
    assert JetsonRailMeter(device.root).read().module_w is not None


def test_a_disabled_channel_is_no_rail(tree: Tree) -> None:
    device = tree(disabled=("VDDQ_VDD2_1V8AO",))
    reading = JetsonRailMeter(device.root).read()
    assert "VDDQ_VDD2_1V8AO" not in reading.rails_w
    assert reading.module_w is not None


def test_an_input_that_the_driver_answers_with_no_data_is_no_rail(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tree()
    _, current = device.files("VDDQ_VDD2_1V8AO")
    read = Path.read_text

    def answer(path: Path, *arguments: Any) -> str:
        if path.resolve() == current.resolve():
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", answer)
    assert "VDDQ_VDD2_1V8AO" not in JetsonRailMeter(device.root).read().rails_w


def test_a_module_without_one_of_its_rails_has_no_total(tree: Tree) -> None:
    meter = JetsonRailMeter(tree(missing=("VDD_CPU_CV",)).root)
    assert meter.missing == ("VDD_CPU_CV",)
    assert meter.read().module_w is None


def test_an_unknown_module_is_recognised_by_its_rails(tree: Tree) -> None:
    device = tree(module="p3767-0000")
    (device.root / "proc/device-tree/compatible").unlink()
    assert JetsonRailMeter(device.root).read().module_w is not None


def test_supply_voltage_steps_and_systematic_error_come_with_the_reading(tree: Tree) -> None:
    device = tree()
    device.set_power(AGX_W)
    reading = JetsonRailMeter(device.root).read()
    assert reading.supply_v == pytest.approx(19.9, abs=0.008)
    assert reading.steps_w["VDD_GPU_SOC"] == pytest.approx(0.398, rel=1e-3)
    assert "VDDQ_VDD2_1V8AO" not in reading.steps_w
    # Two inputs of ±40 mA at 19.9 V and one at 5 V, in quadrature.
    assert reading.systematic_w == pytest.approx((2 * 0.796**2 + 0.2**2) ** 0.5, rel=0.02)


def test_no_monitor_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no ina3221 power monitor; run this on a Jetson"):
        open_power_meter("jetson", root=tmp_path)


def test_all_inputs_disabled_is_said_in_one_sentence(tree: Tree) -> None:
    device = tree(module="p3767-0000", disabled=("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"))
    with pytest.raises(SourceError, match=r"hwmon1 are disabled; enable one"):
        JetsonRailMeter(device.root)


def test_a_rail_that_cannot_be_read_is_named(tree: Tree) -> None:
    device = tree()
    device.files("VDD_CPU_CV")[0].write_text("nonsense\n")
    with pytest.raises(SourceError, match=r"VDD_CPU_CV.* holds 'nonsense', which is not a whole"):
        JetsonRailMeter(device.root)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_rail_that_only_root_may_read_is_named(tree: Tree, tmp_path: Path) -> None:
    device = tree()
    device.files("VDD_GPU_SOC")[1].chmod(0)
    # pytest's folders are the owner's alone; only the rail itself must be out of reach.
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(SourceError, match=r"curr1_input cannot be read .*run as a user who"):
            JetsonRailMeter(device.root)
    finally:
        os.seteuid(0)


def test_a_rail_that_vanishes_is_named(tree: Tree) -> None:
    device = tree()
    meter = JetsonRailMeter(device.root)
    meter.read()
    device.files("VIN_SYS_5V0")[1].unlink()
    with pytest.raises(SourceError, match=r"rail VIN_SYS_5V0: .*the monitor has gone"):
        meter.read()


def test_reading_never_writes(tree: Tree) -> None:
    device = tree()
    files = [path for path in device.root.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    JetsonRailMeter(device.root).read()
    assert {path: path.stat().st_mtime_ns for path in files} == before
