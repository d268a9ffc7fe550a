"""What the doctor looks at on each machine.

    python -m launch.checks.node [REQUEST]

prints one JSON object, a `Report`, so that srun and ssh can carry it home. It goes out in marked pieces: srun hands
on long lines in parts, and mixes those of several tasks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch import ops
from launch.checks import host as system
from launch.checks import software
from launch.checks.check import Check
from launch.devices import count_gpus
from wellread import provenance

MARK = "\x1ewellread-doctor "
PIECE = 800
"""Bytes of a report per line; srun keeps a line of up to 1,024 whole."""
GIB_FOR_RUNS, GIB_FOR_CORPORA, GIB_FOR_OPS = 10, 2, 1
"""A checkpoint of a model of a billion parameters takes 15; the compiled ops take 0.02."""
SECONDS_TO_SEE_A_FILE = 5
"""How long a file written elsewhere may take to appear: NFS remembers for a while what was not there."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to look at."""

    runs: str
    corpora: str
    extensions: str
    """TORCH_EXTENSIONS_DIR."""
    device: str = "auto"
    several: bool = False
    """Whether this is one node of several."""
    in_job: bool = False
    """Whether it runs in a small SLURM job, whose own limit of memory says nothing."""
    memory: float | None = None
    """GiB that the cluster's file asks for."""
    build: bool = False
    token: str | None = None
    """File that the doctor wrote for all nodes to read."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a machine tells the doctor."""

    host: str
    checks: list[Check]
    gpus: int
    versions: dict[str, str]
    root: str
    code: str
    """Hash of the code of launch and wellread that ran."""
    token: str | None
    """What it read in the request's file."""
    time: float = 0
    """Its clock, as the report left."""

    @classmethod
    def of(cls, text: str) -> Report:
        """The report in a node's answer."""
        values = json.loads(text)
        return cls(**values | {"checks": [Check(**check) for check in values["checks"]]})


def main() -> None:
    """Look at this machine, and send what was found."""
    defaults = {"runs": "runs", "corpora": "corpora", "extensions": str(Path(sys.prefix) / "torch_extensions")}
    request = Request(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else defaults)
    answer = report(request)
    text = json.dumps(asdict(answer) | {"time": time.time()})
    mark = f"{MARK}{answer.host}-{os.getpid()} "
    for start in range(0, len(text), PIECE):
        print(mark + text[start : start + PIECE])
    sys.stdout.flush()


def report(request: Request) -> Report:
    """All checks of this machine, and what to compare with other machines."""
    importing = software.import_torch()
    gpus = importing["gpus"] if isinstance(importing, dict) else []
    return Report(
        host=socket.gethostname(),
        checks=[*installed(request), *machine(request, importing)],
        gpus=len(gpus),
        versions=software.versions(),
        root=str(provenance.ROOT),
        code=code_hash(),
        token=_read_token(request.token),
    )


def installed(request: Request) -> list[Check]:
    """Checks of whatever machine starts or runs a job."""
    return [
        software.python(sys.version_info[:3]),
        software.packages(software.versions(), software.pinned()),
        system.disk("disk: runs", Path(request.runs), "--out", GIB_FOR_RUNS),
        system.disk("disk: corpora", Path(request.corpora), "--corpora", GIB_FOR_CORPORA),
    ]


def machine(request: Request, importing: dict[str, Any] | str) -> list[Check]:
    """Checks of a machine that runs ranks."""
    cache = Path(request.extensions)
    checks = [software.torch(importing)]
    if isinstance(importing, dict):
        has_driver = Path("/proc/driver/nvidia/version").exists()
        checks.append(software.device(importing, request.device, count_gpus(), has_driver))
    on_gpu = isinstance(importing, dict) and bool(importing["gpus"]) and request.device != "cpu"
    needed = [op for op in ops.OPS if not (on_gpu and op == "deepspeed_shm_comm")]
    ready = all(ops.compiled(op, cache) for op in needed)
    checks += [software.compiler(ready), software.ninja(), *software.locks(cache)]
    checks += [software.op_compiled(op, cache, request.build, on_gpu) for op in needed]
    checks += [
        software.libaio(),
        system.port(),
        system.host_name(request.several),
        system.open_files(),
        system.locked_memory(on_gpu),
        system.core_files(),
    ]
    return [
        *checks,
        system.memory(request.memory, request.in_job),
        system.shared_memory(),
        system.disk("disk: torch_extensions", cache, "TORCH_EXTENSIONS_DIR=", GIB_FOR_OPS),
    ]


def code_hash() -> str:
    """Hash of the code of launch and wellread that this process runs."""
    total = hashlib.sha256()
    for folder in ("launch", "wellread"):
        for path in sorted((provenance.ROOT / folder).rglob("*.py")):
            total.update(f"{path.relative_to(provenance.ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def _read_token(path: str | None) -> str | None:
    deadline = time.monotonic() + SECONDS_TO_SEE_A_FILE
    while path:
        with contextlib.suppress(OSError):
            return Path(path).read_text()
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return None


if __name__ == "__main__":
    main()
