"""Write docs/results/streaming.md and its picture from what `bench_stream.py` has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgexnas.demo.markdown import hardware
from edgexnas.whole_files import write_whole

Run = dict[str, Any]

NAMES = {
    "service": "edgexnas: ledger, peaks, network, HDF5 (SWMR)",
    "threads": "queues and threads, as edgeBragg has them",
    "bare": "bare receiver that does nothing (the limit)",
}
TRANSPORTS = {"pva": "PVA (pvapy)", "simplon": "Stream V2 (ZMQ, bslz4)"}


def write_page(results: dict[str, Any], path: Path) -> None:
    """Write the page and, beside it, the picture."""
    runs: dict[str, Run] = results["runs"]
    picture = path.with_suffix(".png")
    sections = [_head(runs), _soak(runs), _rates(runs), _overload(runs)]
    if any(key.startswith("soak/") and key.endswith("/service") for key in runs):
        draw(runs, picture)
        sections.insert(2, f"![Latency over time, by transport]({picture.name})")
    write_whole(path, ("\n\n".join(filter(None, sections)) + "\n").encode())


def _head(runs: dict[str, Run]) -> str:
    some = next(iter(runs.values()))
    soaks = [run for key, run in runs.items() if key.startswith("soak/")]
    minutes = max((run["seconds_asked"] for run in soaks), default=0) / 60
    pinned = (
        "Publisher and receiver are pinned to one core each"
        if some["pinned"]
        else "Publisher and receiver share the cores as Linux likes"
    )
    return (
        "# From the detector's wire to stored peaks\n\n"
        f"`python device/bench_stream.py soak --minutes {minutes:g}`, then `rates`, `overload` and "
        f"`page`, on {hardware()}, loopback. 1024×1024 uint16 with about "
        f"{some['peaks_asked']} spots, sent by another process. {pinned}.\n\n"
        "Latency counts from the moment at which a frame was due to the moment at which its "
        "result is flushed."
    )


def _soak(runs: dict[str, Run]) -> str:
    rows = []
    for transport, title in TRANSPORTS.items():
        for receiver, name in NAMES.items():
            run = runs.get(f"soak/{transport}/{receiver}")
            if run is not None:
                rows.append(
                    f"| {title} | {name} | {run['seconds_asked'] / 60:g} min | "
                    f"{run['sent']:,} | **{run['missing']:,}** | {_latency(run)} | "
                    f"{run['cpu_ms']:.2f} | {run['peak_memory_mb']:.0f} |"
                )
    if not rows:
        return ""
    rate = next(run["rate"] for key, run in runs.items() if key.startswith("soak/"))
    return "\n".join(
        [
            f"## {rate:g} frames a second",
            "",
            "| transport | receiver | for | sent | without result | latency p50 / p95 / p99 / max "
            "(ms) | CPU (ms/frame) | memory (MB) |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "The longest latencies are those of the first frames, while the background is "
            "estimated. Bare receivers decode nothing.",
        ]
    )


def _rates(runs: dict[str, Run]) -> str:
    rows = []
    for transport, title in TRANSPORTS.items():
        for receiver, name in NAMES.items():
            run = runs.get(f"rates/{transport}/{receiver}")
            if run is not None:
                limit = _first_failure(run)
                rows.append(
                    f"| {title} | {name} | **{run['sustained']:.0f}** | {limit} | "
                    f"{_latency(run)} | {run['cpu_ms']:.2f} + {run['publisher_cpu_ms']:.2f} |"
                )
    if not rows:
        return ""
    seconds = next(run["seconds_asked"] for key, run in runs.items() if key.startswith("rates/"))
    return "\n".join(
        [
            "## Highest rate without loss",
            "",
            f"Runs of {seconds:g} s, the rate found to 7 %; every frame has its result "
            "within 2 s of the last one.",
            "",
            "| transport | receiver | frames/s without loss | fails at | latency p50 / p95 / p99 / "
            "max (ms) | CPU: receiver + publisher (ms/frame) |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _first_failure(run: Run) -> str:
    """Say at which rate frames were lost, or the publisher was held back."""
    failed = [tried for tried in run["tried"] if tried[0] > run["sustained"]]
    if not failed:
        return "–"
    rate, missing, sent_rate = min(failed)
    if missing > 1:
        return f"{rate:.0f}: {missing} frames without result"
    return f"{rate:.0f}: none lost, but only {sent_rate:.0f}/s could be sent"


def _overload(runs: dict[str, Run]) -> str:
    rows = []
    for transport, title in TRANSPORTS.items():
        run = runs.get(f"overload/{transport}/service")
        if run is None:
            continue
        ledger = run["ledger"]
        ended = sum(ledger[state] for state in ("done", "dropped", "duplicate", "failed"))
        sums = "adds up" if ended == ledger["received"] else f"**ends {ended:,}**"
        tail = run["seconds"][len(run["seconds"]) // 2 : -1] or run["seconds"]
        rows.append(
            f"| {title} | {run['rate']:.0f} ({run['sent_rate']:.0f} sent) | {run['sent']:,} | "
            f"{ledger['received']:,} = {ledger['done']:,} done + {ledger['dropped']:,} dropped: "
            f"{sums} | {ledger['lost']:,} | {_latency(run, 'from_arrival_ms')} | "
            f"{max(second[4] for second in tail):.0f} | {run['sent'] - 1 - run['last']} |"
        )
    if not rows:
        return ""
    return "\n".join(
        [
            "## Twice what can be sustained",
            "",
            "The policy is `drop-oldest`; latency counts from the arrival here.",
            "",
            "| transport | frames/s asked | sent | received | lost on the way | latency p50 / p95 "
            "/ p99 / max (ms) | largest median of a second (ms) | newest result is behind the last "
            "frame by |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _latency(run: Run, since: str = "from_sending_ms") -> str:
    times = run.get(since)
    if times is None:
        return "–"
    return " / ".join(f"{times[name]:,.1f}" for name in ("p50", "p95", "p99", "max"))


def draw(runs: dict[str, Run], path: Path) -> None:
    """Draw latencies second by second."""
    from matplotlib.figure import Figure

    shown = {key: title for key, title in TRANSPORTS.items() if f"soak/{key}/service" in runs}
    figure = Figure(figsize=(9, 0.4 + 2.4 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    colours = {"service": "C0", "threads": "C1", "bare": "C7"}
    labels = {"service": "edgexnas", "threads": "queues and threads", "bare": "bare receiver"}
    for axes, (transport, title) in zip(panels, shown.items(), strict=True):
        for receiver, colour in colours.items():
            run = runs.get(f"soak/{transport}/{receiver}")
            if run is None or "from_sending_ms" not in run:
                continue
            seconds = [row[0] for row in run["seconds"][:-1]]
            for column, style, name in ((2, "-", "p50"), (3, ":", "p99")):
                values = [row[column] for row in run["seconds"][:-1]]
                label = f"{labels[receiver]}, {name}"
                axes.plot(seconds, values, style, color=colour, label=label, lw=1.1)
        axes.set_yscale("log")
        axes.set_ylabel("latency (ms)")
        axes.set_title(f"{title}, percentiles of each second")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8, ncols=3)
    panels[-1].set_xlabel("time (s)")
    figure.savefig(path, dpi=110)
