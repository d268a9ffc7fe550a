"""Why SLURM rejected a job, and what to do."""

from __future__ import annotations

import re

from launch.cluster import ClusterFile

REMEDIES = {
    r"partition": "choose another --partition, or correct partition: in the cluster file; sinfo lists partitions",
    r"account": "correct account: in the cluster file; sacctmgr show associations lists yours",
    r"qos": "correct qos: in the cluster file; sacctmgr show qos lists them",
    r"time limit": "lower --time; sinfo shows the limits of partitions",
    r"node count|node configuration": "lower --nodes, gres: or memory:; sinfo --Node --long shows what nodes have",
    r"memory": "lower memory: in the cluster file; sinfo --Node --long shows what nodes have",
    r"generic resource|gres": "correct gres: in the cluster file; sinfo --format=%G lists what nodes have",
    r"contact|connect|timed out": "try again later; scontrol ping shows whether the controller answers",
}
"""Pattern in SLURM's error when it rejects a job -> what to do; the first match counts."""


def rejection(cluster: ClusterFile, text: str) -> str:
    """Return one line about a rejected job: where it was submitted, SLURM's reason, and what to do."""
    lines = [line.partition("error:")[2].strip() for line in text.splitlines() if "error:" in line]
    reason = next(iter(lines), " ".join(text.split())).removeprefix("Batch job submission failed: ")
    remedy = next((hint for pattern, hint in REMEDIES.items() if re.search(pattern, reason, re.IGNORECASE)), None)
    remedy = remedy or "compare the cluster file with sinfo and scontrol show partition"
    return f"--cluster {cluster.path or cluster.name}: SLURM rejected the job ({reason}); {remedy}"
