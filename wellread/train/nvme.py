"""The run's folder on the NVMe disk."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from wellread.config import RunConfig
from wellread.planning.deepspeed_file import check_nvme
from wellread.run import RunDirectory
from wellread.train import ranks


def with_own_folder(run: RunDirectory) -> RunConfig:
    """The run's settings, with `nvme_path` changed to a subfolder that only this run uses.

    Raises
    ------
    UserError
        When `nvme_path` is not a writable folder.
    """
    config = run.config()
    if config.cluster.nvme_path is None:
        return config
    check_nvme(config.cluster.nvme_path)
    name = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:16]
    folder = Path(config.cluster.nvme_path).resolve() / f"wellread-{name}"
    if ranks.local_rank() == 0:  # files of an earlier attempt with another strategy
        shutil.rmtree(folder, ignore_errors=True)
    return config.replace(nvme_path=str(folder))
