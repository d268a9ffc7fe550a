"""Speed compared with TRL's SFTTrainer with DeepSpeed on rows of Dolly, without and with packing.

    python -m bench.sft [--trl DIR] [--model tiny | pythia-70m] [--strategy zero2] [--json FILE]

DIR is a folder in which TRL is installed (pip install --no-deps --target DIR trl); without it, TRL must be importable.
Only its process imports it. Sizes, turns and rates are those of `bench.trainer`, and so are weights, tokens, loss
masks, batches, optimizer and threads of both sides. TRL gets its fast settings: fused attention, tokens and labels
prepared in advance, no gradient checkpointing, no logging; without packing, samples grouped by length; with packing,
`bfd`. First, every sample must have the same loss on both sides, also in a packed row: otherwise the row says why it is
missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers.training import Epoch, train, training_arguments
from bench.peers.work import compiled, labeled, packed_batch
from bench.trainer import PACKED, TOKENS, Peer, commands, options_of, parsed, prepared, rows_of, show, versions

GOALS = {TOKENS: 2.0, PACKED: 2.5}
"""Minimum ratios wellread / TRL."""
INSTALL = "pip install --no-deps --target {} trl"


def peer(epoch: Epoch) -> None:
    """Train an epoch with SFTTrainer on this rank."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trl = importlib.import_module("trl")  # no dependency: it comes from --trl
    rows = Dataset.from_list(list(labeled(compiled(epoch.work, epoch.folder))))
    train(
        trl.SFTTrainer,
        epoch,
        AutoModelForCausalLM.from_pretrained(
            epoch.folder / "model", attn_implementation="sdpa", trust_remote_code=False
        ),
        trl.SFTConfig(**training_arguments(epoch) | sft_arguments(epoch)),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        processing_class=AutoTokenizer.from_pretrained(epoch.folder / "model", trust_remote_code=False),
    )


def sft_arguments(epoch: Epoch) -> dict[str, Any]:
    """Arguments of SFTTrainer that differ from those of the Trainer; all others have its defaults."""
    plain = {"max_length": epoch.work.seq_len, "gradient_checkpointing": False}
    if not epoch.packed:
        return plain
    # SFTTrainer joins the packed rows of a forward pass to one row, over which sdpa computes attention with a dense
    # mask: one row per forward pass is the fastest.
    return plain | {
        "packing": True,
        "packing_strategy": "bfd",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": packed_batch(epoch.work, epoch.folder) // epoch.work.ranks,
        "train_sampling_strategy": "random",
    }


def peers(folder: Path | None) -> tuple[Peer, Peer]:
    """TRL without and with packing, from a folder of packages."""
    packages = folder.resolve() if folder else None
    return Peer("TRL", "bench.sft", packages=packages), Peer("TRL packed", "bench.sft", packed=True, packages=packages)


def version(folder: Path | None) -> str | None:
    """Version of TRL in a folder of packages, or of the one that can be imported; None if there is none."""
    if folder is None:
        return metadata.version("trl") if importlib.util.find_spec("trl") else None
    installed = list(metadata.distributions(name="trl", path=[str(folder)]))
    return installed[0].version if installed else None


def without_trl() -> Iterator[dict[str, Any]]:
    """The rows, and why they are missing."""
    reason = f"TRL is not installed; give --trl DIR, after {INSTALL.format('DIR')}"
    yield from ({"what": what, "missing": reason} for what in (TOKENS, PACKED))


def main() -> None:
    """Run the benchmark, or the process of the peer."""
    if sys.argv[1:2] == ["peer"]:
        peer(Epoch.of(sys.argv[2:]))
    else:
        bench()


def bench() -> None:
    """Compare with TRL."""
    parser = options_of("bench.sft", __doc__ or "")
    parser.add_argument("--trl", type=Path, metavar="DIR", help="folder in which TRL is installed")
    options, work = parsed(parser)
    installed = version(options.trl)
    if options.trl and not installed:
        parser.error(f"--trl {options.trl}: TRL is not installed there; {INSTALL.format(options.trl)}")
    if not installed:
        show(options, work, without_trl(), [], GOALS)
        return
    plain, packed = peers(options.trl)
    with prepared(options, work) as (folder, comparison):
        print(f"{versions()}, trl {installed}")
        rows = rows_of(plain, packed, comparison, work, folder, options.repeats)
        show(options, work, rows, commands(work, folder, plain, packed), GOALS)


if __name__ == "__main__":
    main()
