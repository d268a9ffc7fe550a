"""A user's DeepSpeed file (``--ds_config``): read it, check it, and find out which strategy it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.text_io import Parser, read_text

OWNED = {
    "train_batch_size": "--batch_size",
    "train_micro_batch_size_per_gpu": "--micro_batch_size",
    "gradient_accumulation_steps": "--batch_size and --micro_batch_size",
    "elasticity": "--batch_size",
    "gradient_clipping": "--optim.clip",
    "optimizer": "--optim.*",
    "scheduler": "--optim.*",
    "bf16": "--dtype",
    "bfloat16": "--dtype",
    "fp16": "--dtype",
    "amp": "--dtype",
    "torch_autocast": "--dtype",
    "data_types": "--grad_accum_dtype",
    "activation_checkpointing": "--activation_checkpointing",
    "prescale_gradients": "the mean over all target tokens",
    "gradient_predivide_factor": "the mean over all target tokens",
    "communication_data_type": "--dtype",
    "sequence_parallel_size": "--ranks_per_node",
    "curriculum_learning": "the order of a run",
    "data_efficiency": "the order of a run",
    "steps_per_print": "--log_every",
}
"""Key of a DeepSpeed file that only the plan may set -> the flag or rule that decides its value."""


def read(path: str | Path) -> dict[str, Any]:
    """Read the settings of a DeepSpeed file, and check them.

    Raises
    ------
    UserError
        When it cannot be read, sets a key of `OWNED`, or does not describe a ZeRO strategy.
    """
    where = f"--ds_config {path}"
    try:
        settings = Parser().decode(read_text(Path(path).expanduser()))
    except OSError as error:
        raise UserError(f"{where}: could not be read ({error.strerror}); give a DeepSpeed file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({str(error).partition(';')[0]})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{where}: does not contain a JSON object; see configs/ds/ for examples")
    for key in settings:
        if key in OWNED:
            raise UserError(f"{where}: sets {key}, which the plan sets from {OWNED[key]}; remove it from the file")
    zero = settings.get("zero_optimization")
    if not isinstance(zero, dict) or type(zero.get("stage")) is not int or zero["stage"] not in (1, 2, 3):
        raise UserError(
            f"{where}: zero_optimization.stage must be 1, 2 or 3; for training without ZeRO, use --strategy ddp"
        )
    for key in ("offload_optimizer", "offload_param"):
        _check_offload(f"{where}: {key}", zero.get(key, {}))
    strategy(settings)
    return settings


def _check_offload(where: str, offload: Any) -> None:
    if not isinstance(offload, dict) or offload.get("device", "none") not in ("none", "cpu", "nvme"):
        raise UserError(f'{where}: must be an object with the device none, cpu or nvme, e.g. {{"device": "cpu"}}')
    if "nvme_path" in offload:
        raise UserError(f"{where}: sets nvme_path; remove it from the file and give --nvme_path instead")
    ratio = offload.get("ratio", 1)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise UserError(f"{where}: ratio {ratio!r} must be a number from 0 to 1")


def strategy(settings: dict[str, Any]) -> str:
    """Name of the strategy that DeepSpeed settings describe, by their stage and what they offload.

    Raises
    ------
    UserError
        When they offload something that DeepSpeed offloads only in stage 3.
    """
    zero = settings["zero_optimization"]
    stage, ratio = zero["stage"], zero.get("offload_optimizer", {}).get("ratio", 1)
    devices = set(offload_devices(settings).values())
    if stage < 3 and (ratio < 1 or "nvme" in devices or "offload_param" in offload_devices(settings)):
        raise UserError(
            f"--ds_config: zero_optimization.stage {stage} offloads parameters, by ratio or to NVMe; only stage 3 can"
        )
    if not devices:
        return f"zero{stage}"
    return f"zero{stage}-{'nvme' if 'nvme' in devices else 'partial' if ratio < 1 else 'offload'}"


def offload_devices(settings: dict[str, Any]) -> dict[str, str]:
    """What is offloaded where: offload_optimizer, offload_param -> cpu or nvme; without what is not offloaded."""
    zero = settings["zero_optimization"]
    devices = {key: zero.get(key, {}).get("device", "none") for key in ("offload_optimizer", "offload_param")}
    return {key: device for key, device in devices.items() if device != "none"}


def check_nvme(path: str) -> None:
    """Make sure that the directory for offloading to NVMe exists and is writable.

    Raises
    ------
    UserError
        When it is not, or the disk is full.
    """
    if not Path(path).is_dir():
        raise UserError(f"--nvme_path {path}: no such directory; create it on the NVMe disk of every node")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--nvme_path {path}: not writable; choose a directory that you may write to")
    if not shutil.disk_usage(path).free:
        raise UserError(f"--nvme_path {path}: the disk is full; choose a directory on a disk with free space")
