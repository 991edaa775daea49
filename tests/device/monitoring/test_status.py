from __future__ import annotations

from edgexnas.device.monitoring.status import LatencySummary, ServiceStatus


def test_a_summary_gives_percentiles_and_the_longest_in_the_unit_it_was_given() -> None:
    summary = LatencySummary.of(float(value) for value in range(101))
    assert (summary.p50, summary.p95, summary.p99, summary.max) == (50, 95, 99, 100)
    assert summary.count == 101


def test_a_summary_of_nothing_is_zero() -> None:
    assert LatencySummary.of([]) == LatencySummary()


def test_a_service_starts_without_counts_and_results() -> None:
    status = ServiceStatus()
    assert status.health.state == "starting"
    assert status.counts == {}
    assert status.last_result is None
