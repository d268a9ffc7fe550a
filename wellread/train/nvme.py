"""A run's own folder on the NVMe disk that it was given."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from wellread.config import RunConfig
from wellread.planning.deepspeed_file import check_nvme
from wellread.run import RunDirectory
from wellread.train import ranks


def with_own_folder(run: RunDirectory) -> RunConfig:
    """The run's settings, with a folder of its own in what it was given of the NVMe disk.

    Raises
    ------
    UserError
        When that is no folder that can be written to.
    """
    config = run.config()
    if config.cluster.nvme_path is None:
        return config
    check_nvme(config.cluster.nvme_path)
    name = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:16]
    own = Path(config.cluster.nvme_path).resolve() / f"wellread-{name}"
    if ranks.local_rank() == 0:  # what an attempt with another strategy left there
        shutil.rmtree(own, ignore_errors=True)
    return config.replace(nvme_path=str(own))
