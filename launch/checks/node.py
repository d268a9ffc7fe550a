"""The doctor's checks of one machine.

    python -m launch.checks.node [REQUEST]

prints one JSON object, a `Report`, to stdout, so that srun or ssh can return it. The report is printed in marked
pieces: srun splits long lines and mixes the lines of several tasks.
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
"""Bytes of a report per line; srun splits lines longer than 1,024 bytes."""
GIB_FOR_RUNS, GIB_FOR_CORPORA, GIB_FOR_OPS = 10, 2, 1
"""A checkpoint of a model with a billion parameters takes 15 GiB; the compiled ops take 0.02 GiB."""
SECONDS_TO_SEE_A_FILE = 5
"""How long a file written by another machine may take to appear: NFS caches missing files for some seconds."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to check on a machine."""

    runs: str
    corpora: str
    extensions: str
    """TORCH_EXTENSIONS_DIR."""
    device: str = "auto"
    several: bool = False
    """Whether several nodes are checked together."""
    in_job: bool = False
    """Whether the checks run in the doctor's small SLURM job; its memory limit is then ignored."""
    memory: float | None = None
    """GiB that the cluster file requests."""
    build: bool = False
    token: str | None = None
    """Path of a file that the doctor wrote; each node tries to read it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The doctor's results from one machine."""

    host: str
    checks: list[Check]
    gpus: int
    versions: dict[str, str]
    root: str
    code: str
    """Hash of the code of launch and wellread on this machine."""
    token: str | None
    """Content of the request's file; None when it is not visible."""
    time: float = 0
    """Time on this machine when the report was sent, in seconds since the epoch."""

    @classmethod
    def of(cls, text: str) -> Report:
        """Parse a report from JSON."""
        values = json.loads(text)
        return cls(**values | {"checks": [Check(**check) for check in values["checks"]]})


def main() -> None:
    """Check this machine and print the report."""
    defaults = {"runs": "runs", "corpora": "corpora", "extensions": str(Path(sys.prefix) / "torch_extensions")}
    request = Request(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else defaults)
    answer = report(request)
    text = json.dumps(asdict(answer) | {"time": time.time()})
    mark = f"{MARK}{answer.host}-{os.getpid()} "
    for start in range(0, len(text), PIECE):
        print(mark + text[start : start + PIECE])
    sys.stdout.flush()


def report(request: Request) -> Report:
    """Run all checks of this machine; add what is compared between machines."""
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
    """Checks for every machine that starts or runs a job."""
    return [
        software.python(sys.version_info[:3]),
        software.packages(software.versions(), software.pinned()),
        system.disk("disk: runs", Path(request.runs), "--out", GIB_FOR_RUNS),
        system.disk("disk: corpora", Path(request.corpora), "--corpora", GIB_FOR_CORPORA),
    ]


def machine(request: Request, importing: dict[str, Any] | str) -> list[Check]:
    """Checks for a machine that runs ranks."""
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
    """Hash the code of launch and wellread that this process runs."""
    total = hashlib.sha256()
    for folder in ("launch", "wellread"):
        for path in sorted((provenance.ROOT / folder).rglob("*.py")):
            total.update(f"{path.relative_to(provenance.ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def _read_token(path: str | None) -> str | None:
    deadline = time.monotonic() + SECONDS_TO_SEE_A_FILE
    while path:
        with contextlib.suppress(OSError):
            return Path(path).read_text(encoding="utf-8")
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return None


if __name__ == "__main__":
    main()
