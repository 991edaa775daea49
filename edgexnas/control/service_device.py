"""A running service as an ophyd-async device."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from edgexnas.control.snapshot import ServiceSnapshot, read_snapshot
from edgexnas.errors import (
    ConfigurationError,
    ControlError,
    DroppedFramesError,
    MissingDependencyError,
)

try:
    from bluesky.protocols import Flyable, Preparable, Triggerable
    from ophyd_async.core import (
        DEFAULT_TIMEOUT,
        AsyncStatus,
        DeviceMock,
        StandardReadable,
        soft_signal_r_and_setter,
        soft_signal_rw,
    )
    from ophyd_async.core import StandardReadableFormat as Format
except ImportError as error:
    raise MissingDependencyError.of(
        "ophyd-async", extra="bluesky", purpose="a device of bluesky plans"
    ) from error

__all__ = ["ServiceDevice"]

POLL_S = 0.05
"""How often the service is asked while frames are awaited."""

SETTLE_S = 2.0
"""How long frames that are in the service may take to end before counting begins, and how long a
number that was skipped may still come: more than the service itself waits for one."""


class ServiceDevice(StandardReadable, Triggerable, Preparable, Flyable):
    """Waits for the frames of a point, fails the plan if some are missing, and reads their sums.

    ``stage`` arms: the service must be healthy, and counting begins. ``trigger`` waits until
    `frames_per_point` more frames have ended, beside the detector that takes them; so the point
    consists of the frames since the point before, and none is counted twice. For fly scans
    ``kickoff`` begins to count and ``complete`` waits. ``unstage`` looks once more.

    A frame is missing if the service dropped it, never received it, or failed to process or to
    store it. Once more than `most_missing` are missing since ``stage``, `DroppedFramesError` ends
    the plan.

    Readings of a point, for live tables and adaptive scans:

    ===================== =====================================================================
    frames                frames that the sums are over
    peaks, intensity      sums over them; counts above background
    peaks_per_frame       mean; hinted
    intensity_per_frame   mean, in counts; hinted
    frames_per_s          rate, by the service's clock
    missing               frames missing in this point
    series                the newest series
    ===================== =====================================================================

    Parameters
    ----------
    url
        Of the service's page, such as "http://127.0.0.1:9108"; on another machine through an ssh
        tunnel, because the page is served on its own machine only.
    frames_per_point
        How many frames a point has; a signal, which ``prepare`` and plans may set.
    timeout_s
        How long to wait while no frame ends.
    most_missing
        How many frames may be missing from ``stage`` to ``unstage``.
    since_trigger
        Whether a point begins with ``trigger``, for detectors that run freely; frames of before
        are left out then. Not for triggered ones, whose frame may come before counting begins.
    name
        As of every ophyd-async device.

    Raises
    ------
    ConfigurationError
        If a number is out of range.
    MissingDependencyError
        If ophyd-async is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        frames_per_point: int = 1,
        timeout_s: float = 10.0,
        most_missing: int = 0,
        since_trigger: bool = False,
        name: str = "",
    ) -> None:
        if frames_per_point < 1 or timeout_s <= 0 or most_missing < 0:
            raise ConfigurationError(
                f"frames_per_point is {frames_per_point}, timeout_s {timeout_s} and most_missing "
                f"{most_missing}; specify at least 1, above 0 and at least 0"
            )
        self._url = url
        self._timeout_s = timeout_s
        self._most_missing = most_missing
        self._since_trigger = since_trigger
        self._armed: ServiceSnapshot | None = None
        self._before: ServiceSnapshot | None = None
        # A failure is told once, or unstaging would hide what ended the plan.
        self._told = False
        with self.add_children_as_readables(Format.HINTED_SIGNAL):
            self.peaks_per_frame, self._set_peaks_per_frame = soft_signal_r_and_setter(float)
            self.intensity_per_frame, self._set_intensity_per_frame = soft_signal_r_and_setter(
                float, units="counts"
            )
        with self.add_children_as_readables(Format.UNCACHED_SIGNAL):
            self.frames, self._set_frames = soft_signal_r_and_setter(int)
            self.peaks, self._set_peaks = soft_signal_r_and_setter(int)
            self.intensity, self._set_intensity = soft_signal_r_and_setter(float, units="counts")
            self.frames_per_s, self._set_frames_per_s = soft_signal_r_and_setter(float, units="Hz")
            self.missing, self._set_missing = soft_signal_r_and_setter(int)
            self.series, self._set_series = soft_signal_r_and_setter(str)
        with self.add_children_as_readables(Format.CONFIG_SIGNAL):
            self.frames_per_point = soft_signal_rw(int, frames_per_point)
            self.model_id, self._set_model_id = soft_signal_r_and_setter(str)
            self.engine, self._set_engine = soft_signal_r_and_setter(str)
            self.source, self._set_source = soft_signal_r_and_setter(str)
        super().__init__(name=name)

    async def connect(
        self,
        mock: bool | DeviceMock[Any] = False,
        timeout: float = DEFAULT_TIMEOUT,
        force_reconnect: bool = False,
    ) -> None:
        """Find the service.

        Raises
        ------
        ControlError
            If it does not answer.
        """
        await super().connect(mock, timeout, force_reconnect)
        if not mock:
            self._describe(await self._ask())

    @AsyncStatus.wrap
    async def stage(self) -> None:
        """Arm: begin to count once the frames that are in the service have ended.

        Raises
        ------
        ControlError
            If the service does not answer or is not healthy.
        """
        await super().stage()
        armed = await self._settled()
        if not armed.healthy:
            raise ControlError(
                f"the service at {self._url} is not ready: {armed.sentence}; fix it, or take the "
                "device out of the plan"
            )
        # The bundle may have been replaced since the device was connected.
        self._describe(armed)
        self._armed = self._before = armed
        self._told = False

    @AsyncStatus.wrap
    async def prepare(self, value: int) -> None:
        """Set how many frames a point has.

        Raises
        ------
        ConfigurationError
            If that is less than 1.
        """
        if value < 1:
            raise ConfigurationError(f"a point of {value} frames cannot be; specify at least 1")
        await self.frames_per_point.set(value)

    @AsyncStatus.wrap
    async def trigger(self) -> None:
        """Wait for the frames of a point.

        Raises
        ------
        DroppedFramesError
            If more than `most_missing` are missing since ``stage``.
        ControlError
            If no frame ends for `timeout_s`, the service was started anew, or it does not answer.
        """
        if self._since_trigger:
            self._before = await self._ask()
        await self._wait()

    @AsyncStatus.wrap
    async def kickoff(self) -> None:
        """Begin to count."""
        self._before = await self._settled()

    @AsyncStatus.wrap
    async def complete(self) -> None:
        """Wait for `frames_per_point` frames since ``kickoff``; raises as ``trigger`` does."""
        await self._wait()

    @AsyncStatus.wrap
    async def unstage(self) -> None:
        """End, and look whether frames were missing after the last point.

        Raises
        ------
        DroppedFramesError
            If more than `most_missing` are missing since ``stage``, and no point has said so.
        ControlError
            If the service does not answer.
        """
        await super().unstage()
        armed, self._armed, self._before = self._armed, None, None
        if armed is not None and not self._told:
            self._check(armed, await self._settled())

    async def _wait(self) -> None:
        armed, before = self._armed, self._before
        if armed is None or before is None:
            raise ControlError(
                f"{self.name or 'the service'} is not armed; stage it, as plans of bluesky do"
            )
        try:
            now = await self._until_ended(before, await self.frames_per_point.get_value())
            self._check(armed, now)
        except ControlError:
            self._told = True
            raise
        self._show(before, now)
        self._before = now

    async def _until_ended(self, before: ServiceSnapshot, frames: int) -> ServiceSnapshot:
        """Wait until so many frames have ended, with a result or without."""
        progressed_s = time.monotonic()
        ended = -1
        while True:
            trouble = ""
            try:
                now = await self._ask()
            except ControlError as error:
                # One answer that is late must not end a scan; none for long does.
                now, trouble = before, f"; {error}"
            self._check_same(before, now)
            done, missing = now.done - before.done, now.missing - before.missing
            if done + missing > ended:
                ended, progressed_s = done + missing, time.monotonic()
            quiet_s = time.monotonic() - progressed_s
            if done + missing >= frames:
                # A number that was skipped counts as lost until it comes: give it its time.
                skipped = now.lost > before.lost and now.pending
                if not skipped or quiet_s >= SETTLE_S:
                    return now
            if quiet_s >= self._timeout_s:
                raise ControlError(
                    f"{max(ended, 0)} of {frames} frames have ended and no more for "
                    f"{self._timeout_s:g} s; the service at {self._url} says: {now.sentence}"
                    f"{trouble}; check that the detector is triggered as often"
                )
            await asyncio.sleep(POLL_S)

    async def _settled(self) -> ServiceSnapshot:
        """Ask once no frame is under way, as far as that happens."""
        until_s = time.monotonic() + SETTLE_S
        while (now := await self._ask()).pending and time.monotonic() < until_s:
            await asyncio.sleep(POLL_S)
        return now

    async def _ask(self) -> ServiceSnapshot:
        # In a thread, because it blocks for as long as the service needs.
        return await asyncio.to_thread(read_snapshot, self._url)

    def _check(self, armed: ServiceSnapshot, now: ServiceSnapshot) -> None:
        self._check_same(armed, now)
        missing = now.missing - armed.missing
        if missing > self._most_missing:
            parts = ", ".join(
                f"{count} {state}"
                for state in ("dropped", "lost", "failed")
                if (count := getattr(now, state) - getattr(armed, state))
            )
            raise DroppedFramesError(
                f"{missing} frames are missing since the plan began ({parts}) and "
                f"{now.done - armed.done} were stored; the service at {self._url} says: "
                f"{now.sentence}; scan more slowly, or allow some by most_missing"
            )

    def _check_same(self, before: ServiceSnapshot, now: ServiceSnapshot) -> None:
        # Counts begin at 0 with each start.
        if now.began_at_s != before.began_at_s:
            raise ControlError(
                f"the service at {self._url} was started anew {now.uptime_s:.0f} s ago, so that "
                "frames of this plan may be missing; repeat it"
            )

    def _describe(self, status: ServiceSnapshot) -> None:
        self._set_model_id(status.model_id)
        self._set_engine(f"{status.engine} {status.precision}".strip())
        self._set_source(status.source)

    def _show(self, before: ServiceSnapshot, now: ServiceSnapshot) -> None:
        frames = now.summed_frames - before.summed_frames
        peaks = now.peaks - before.peaks
        intensity = now.intensity_counts - before.intensity_counts
        self._set_frames(frames)
        self._set_peaks(peaks)
        self._set_intensity(intensity)
        self._set_peaks_per_frame(peaks / frames if frames else 0.0)
        self._set_intensity_per_frame(intensity / frames if frames else 0.0)
        elapsed_s = now.uptime_s - before.uptime_s
        self._set_frames_per_s(frames / elapsed_s if elapsed_s > 0 else 0.0)
        self._set_missing(now.missing - before.missing)
        self._set_series(now.series)
