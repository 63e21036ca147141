"""Latency over throughput, with the objective and the capacity; beside it where the server's time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LATENCIES = {"p50_ms": "#9bbfe0", "p95_ms": "#2a6fbb", "p99_ms": "#16365c"}
STAGES = {"queue": "#c8553d", "tokenize": "#e0a458", "compute": "#2a6fbb", "decode": "#8e7cc3"}
CAPACITY = "#3a7d44"
ANSWERED = "texts/s answered rightly"


def plot_capacity(points: Sequence[Mapping[str, Any]], capacity: float, limits: Mapping[str, float]) -> Figure:
    """Draws the points of `benchmarks.capacity`, which are in the order of their rates; `limits` by objective."""
    figure, (client, server) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    for name, colour in LATENCIES.items():
        _line(client, [(point["texts_s"], point[name]) for point in points], name.removesuffix("_ms"), colour)
        if name in limits:
            client.axhline(limits[name], color=colour, linestyle=":", linewidth=1)
            label = f"objective: {name.removesuffix('_ms')} {limits[name]:g} ms"
            client.annotate(label, (0, limits[name]), (4, 3), textcoords="offset points", fontsize=8, color=colour)
    if capacity:
        client.axvline(capacity, color=CAPACITY, linewidth=1)
        client.annotate(
            f"capacity {capacity:.0f} texts/s", (capacity, 1), (-4, -10), ("data", "axes fraction"), "offset points",
            fontsize=8, color=CAPACITY, ha="right",
        )  # fmt: skip
    for name, colour in STAGES.items():
        _line(server, [(point["texts_s"], point["server_mean_ms"].get(name)) for point in points], name, colour)
    client.set(title="Latency, from when a request was due", ylabel="ms", xlabel=ANSWERED, yscale="log")
    server.set(title="Server: queue a request, stages a batch", ylabel="ms, mean", xlabel=ANSWERED, yscale="log")
    for axes in (client, server):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, None)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, points: Sequence[tuple[float, float | None]], label: str, colour: str) -> None:
    known = [(rate, ms) for rate, ms in points if ms is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=4, label=label)
