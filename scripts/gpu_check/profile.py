"""The kernels of one step: which attention it is, how many there are, how long the device works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

ATTENTION = ("flash", "fmha", "attention", "sdpa", "attn")
"""Words in the names of attention kernels."""
LONGEST = 60
TOP = 12
"""Number of kernels that are listed, with their share of the time."""


def profiled(step: Callable[[], int]) -> tuple[int, dict[str, Any]]:
    """Run a step under torch's profiler; return its result and the keys of a row."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as events:
        code = step()
        if on_gpu:
            torch.cuda.synchronize()
    if on_gpu:
        on_device = [event for event in events.events() if "CUDA" in str(event.device_type) and not is_range(event)]
        kernels = [(event.name, event.time_range.elapsed_us()) for event in on_device]
    else:
        kernels = [(e.key, e.self_cpu_time_total) for e in events.key_averages()]
    return code, summary(kernels)


def is_range(event: Any) -> bool:
    """Whether an event on the device is not a kernel but a range that contains some, such as an optimizer's step."""
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith(("Optimizer.", "ProfilerStep"))


def summary(kernels: list[tuple[str, float]]) -> dict[str, Any]:
    """The keys of a row.

    Parameters
    ----------
    kernels : list of (str, float)
        Name and time of each kernel, microseconds.
    """
    times: Counter[str] = Counter()
    for name, microseconds in kernels:
        times[name] += microseconds  # type: ignore[assignment]
    total = sum(times.values()) or 1
    attention = [name for name, _ in times.most_common() if any(word in name.lower() for word in ATTENTION)]
    return {
        "attention": short(attention[0]) if attention else "none",
        "attention_share": sum(times[name] for name in attention) / total,
        "kernels": len(kernels),
        "device_ms": total / 1000,
        "top": [f"{time / total:.1%} {short(name)}" for name, time in times.most_common(TOP)],
    }


def short(name: str) -> str:
    """The name of a kernel without its template arguments."""
    return name.removeprefix("void ").split("<")[0].split("(")[0][:LONGEST]
