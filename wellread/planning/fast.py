"""Fast paths: ways to compute the same batch faster, each off until a GPU has proven it.

A path is proven on a family of cards when docs/benchmarks.md has a table, measured on such a card by `make gpu-check`,
that shows equal losses and a gain. To add a path, add an entry to `PATHS`; to prove one, commit the table and add the
words of the card's name to the entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wellread.config import RunConfig
from wellread.models.families import VARLEN_FAMILIES
from wellread.models.spec import ModelSpec
from wellread.planning.machine import Machine

COMPILING_PAYS = 300
"""Steps from which compiling the layers pays on a GPU: 8 s at the start and 0.04 s less per step were measured at 1.4
billion parameters on an H200, on a machine with 16 cores."""

LARGEST_HEAD = 256
"""Largest size of a head for which torch has kernels of flash attention."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a path is decided from."""

    config: RunConfig
    spec: ModelSpec
    machine: Machine
    steps: int
    """Steps of the run."""
    among: Sequence[str] | None = None
    """Names of the paths to choose from; None: all."""


@dataclass(frozen=True, kw_only=True)
class FastPath:
    """A way to compute the same batch faster."""

    name: str
    changes: str
    """What it changes, for the plan and for the tables of `make gpu-check`."""
    unsuited: Callable[[Setting], str]
    """Why it cannot be taken, in words; empty if it can."""
    engines: tuple[str, ...] = ("torch", "deepspeed")
    """Engines that have it."""
    gains: Callable[[Setting], bool] = lambda setting: True
    """Whether it is faster for such a run; only --fast auto asks."""
    proven: tuple[str, ...] = ()
    """Words of the names of cards, one entry per family of cards, for which docs/benchmarks.md has a table that shows
    equal losses and a gain."""


def _compile(setting: Setting) -> str:
    if setting.machine.device != "cuda":
        return "needs a GPU"
    if setting.steps < COMPILING_PAYS and setting.among is None:
        return f"pays from {COMPILING_PAYS} steps"
    return ""


def _varlen(setting: Setting) -> str:
    spec, cuda = setting.spec, setting.machine.device == "cuda"
    head = spec.head_size or spec.width // spec.heads
    if spec.family not in VARLEN_FAMILIES:
        return f"not for {spec.family}, only for {' and '.join(VARLEN_FAMILIES)}"
    if cuda and setting.config.model.dtype != "bf16":
        return "its kernel needs --dtype bf16"
    if cuda and (head % 8 or head > LARGEST_HEAD):
        return f"its kernel needs heads of a multiple of 8, up to {LARGEST_HEAD}; these have {head}"
    return ""


def _bf16(setting: Setting) -> str:
    model = setting.config.model
    if setting.machine.device != "cuda":
        return "needs a GPU"
    if model.dtype != "bf16":
        return "is not for --dtype fp32"
    if model.load_in_4bit:
        return "not with --load_in_4bit"
    return "not with --freeze" if model.freeze else ""


def _tokens(setting: Setting) -> str:
    if setting.machine.device != "cuda":
        return "needs a GPU"
    return "--micro_batch_size is given" if setting.config.cluster.micro_batch_size else ""


HOPPER = ("H100", "H200")
"""One family of cards: the same processor with more or less memory."""

PATHS: dict[str, FastPath] = {
    path.name: path
    for path in (
        FastPath(
            name="varlen",
            changes="a forward pass reads one row of real tokens, without padding and without a mask",
            unsuited=_varlen,
            gains=lambda setting: setting.config.data.pack,  # full rows without packing were 5% slower on an H200
            proven=HOPPER,
        ),
        FastPath(
            name="tokens",
            changes="a forward pass reads up to 32,768 tokens instead of up to 8 samples",
            unsuited=_tokens,
        ),
        FastPath(
            name="bf16",
            changes="the model's weights are in bf16, with masters and gradients in fp32, instead of autocast",
            unsuited=_bf16,
            engines=("torch",),
            proven=HOPPER,
        ),
        FastPath(
            name="compile",
            changes="each layer is compiled by torch.compile, so that the attention kernel keeps its causal form",
            unsuited=_compile,
            engines=("torch",),
        ),
        FastPath(
            name="loss",
            changes="one compiled kernel reads the logits for the losses, another overwrites them with their gradient",
            unsuited=_compile,
        ),
        FastPath(
            name="ahead",
            changes="the host queues a step while the device computes the one before, which is recorded then",
            unsuited=lambda setting: "",
            engines=("torch",),
        ),
    )
}
"""Name -> path, in the order in which a plan lists them."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The paths that a run takes."""

    names: tuple[str, ...] = ()
    reason: str = ""
    """One line for the plan; empty on a CPU where no path was asked for."""


def choose(setting: Setting, engine: str | None = None) -> Taken:
    """The paths that a run takes: all that suit it (on), those that are proven on its cards (auto), or none (off).

    Before the engine is decided (None), those that it takes if the engine has them. ``--compile on`` and
    ``--compile off`` decide only about that path.
    """
    cluster = setting.config.cluster
    without = {name: reason for name, path in PATHS.items() if (reason := _unsuited(path, setting, engine))}
    if cluster.compile == "off":
        without["compile"] = "--compile off"
    suited = [name for name in PATHS if name not in without]
    gaining = [name for name in suited if PATHS[name].gains(setting)]
    proven = [name for name in gaining if is_proven(PATHS[name], setting.machine.gpu)]
    choices = {"on": suited, "auto": proven, "off": []}[cluster.fast]
    requests = ["compile"] if cluster.compile == "on" else []
    names = tuple(name for name in PATHS if name in choices or name in requests)
    return Taken(names=names, reason=_reason(setting, names, suited, without))


def is_proven(path: FastPath, card: str | None) -> bool:
    """Whether a committed table shows equal losses and a gain of the path on a card of this name."""
    words = set(re.split(r"[\s-]+", card or ""))
    return any(set(each.split()) <= words for each in path.proven)


def _unsuited(path: FastPath, setting: Setting, engine: str | None) -> str:
    if setting.among is not None and path.name not in setting.among:
        return "not among those to choose from"
    if engine and engine not in path.engines:
        return f"not with the {engine} engine"
    return path.unsuited(setting)


def _reason(setting: Setting, names: tuple[str, ...], suited: list[str], without: dict[str, str]) -> str:
    fast, cuda = setting.config.cluster.fast, setting.machine.device == "cuda"
    listed = ", ".join(names) or "none"
    if fast == "off":
        return f"{listed} (--fast off)" if cuda or names else ""
    if fast == "on":
        refusals = "; ".join(f"{name}: {reason}" for name, reason in without.items() if name not in names)
        return f"{listed} (--fast on)" + f"; without {refusals}" * bool(refusals)
    waiting = [name for name in suited if name not in names]
    if not cuda or not waiting:
        return f"{listed} (asked for)" if names and not cuda else listed * cuda
    return f"{listed}; not proven for such a run on this card: {', '.join(waiting)} (--fast on takes them)"
