"""The story of pythia-12b under plain DDP, scaled to any machine: what dies of memory for real, and what does not.

    python -m scripts.oom_demo [--keep DIRECTORY]

Runs are started inside a memory control group (cgroup v1 or v2), whose limit the kernel enforces: too small for DDP
on two ranks, large enough for what the plan chooses. Needs the right to make control groups, so usually root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.memory import SHAPES, make_data, make_model
from wellread.models.registry import find
from wellread.planning.estimate import Work, estimate
from wellread.planning.host_memory import MOUNT, OWN_GROUPS
from wellread.planning.machine import Machine
from wellread.planning.plan import Plan
from wellread.units import GIB

ROOT = Path(__file__).resolve().parent.parent
SHAPE, STEPS, SEQ_LEN = "120M", 4, 128
LIMIT = 4.6
"""GiB; DDP on two ranks needs more, ZeRO less."""
FLAGS = (
    f"--ranks_per_node 2 --batch_size 4 --micro_batch_size 2 --seq_len {SEQ_LEN} --steps {STEPS} --save_every {STEPS}"
)


@dataclass(frozen=True)
class Group:
    """A memory control group."""

    folder: Path
    version: int

    def enter(self) -> None:
        """Move this process into the group; made for `preexec_fn`."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed in it."""
        text = (self.folder / {1: "memory.oom_control", 2: "memory.events"}[self.version]).read_text()
        return int(next(line for line in text.splitlines() if line.startswith("oom_kill ")).split()[1])


@contextmanager
def memory_group(limit: int, name: str = "") -> Iterator[Group]:
    """A control group whose processes may hold `limit` bytes together, swap included; `name` ends its folder's.

    Raises
    ------
    PermissionError, FileNotFoundError
        When this user may make none, or the kernel has no memory controller here.
    """
    lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    own = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
    version, parent = (2, MOUNT) if own is None else (1, MOUNT / "memory" / own.lstrip("/"))
    if version == 2 and "memory" not in (MOUNT / "cgroup.subtree_control").read_text().split():
        raise FileNotFoundError("the memory controller is not switched on for groups below the root's")
    group = Group(parent / f"wellread-{os.getpid()}{name}", version)
    group.folder.mkdir()
    try:
        sizes = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max", "memory.swap.max")}
        memory, swap = (group.folder / name for name in sizes[version])
        memory.write_text(str(limit))
        if swap.exists():  # v1 counts memory and swap together
            swap.write_text(str(limit if version == 1 else 0))
        yield group
    finally:
        _remove(group.folder)


def _remove(folder: Path) -> None:
    """Remove a group, and what still runs in it."""
    for number in (folder / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)
    for _ in range(50):
        with suppress(OSError):  # busy until the kernel has buried the last process
            folder.rmdir()
            return
        time.sleep(0.1)
    folder.rmdir()


def may_limit_memory() -> bool:
    """Whether this user can make memory control groups here."""
    try:
        with memory_group(GIB):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Ran:
    """A launch that has ended."""

    code: int
    kills: int
    strategies: list[str]
    """Of its attempts."""
    predicted: float | None
    """GiB that the last of them was predicted to need."""
    loss: str
    """Last one logged."""


def launched(title: str, group: Group, place: Path, run: str, *flags: str) -> Ran:
    """Start a run inside the group, show what it says, and return how it ended."""
    out = place / "runs" / run
    asked = f"run finetune --model {place / 'model'} --data {place / 'rows.jsonl'} {FLAGS} --log_every 1".split()
    command = [sys.executable, "-m", "launch", *asked, "--corpora", str(place / "corpora"), "--out", str(out), *flags]
    print(f"\n== {title}\n$ python -m launch run finetune ... {' '.join(flags)}", flush=True)
    before = group.kills
    code = subprocess.run(command, cwd=ROOT, preexec_fn=group.enter, check=False).returncode
    print(f"-> exit code {code}, {group.kills - before} killed by the kernel", flush=True)
    manifest = out / "manifest.json"
    attempts = json.loads(manifest.read_text())["attempts"] if manifest.exists() else []
    logs = sorted((out / "log").glob("attempt-*-rank-0.log"))
    lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith("step ")]
    loss = lines[-1].split("loss")[1].split()[0] if lines else "-"
    plan = Plan.open(out / "plan.json") if attempts else None
    predicted = plan.needs["host_bytes"] / GIB if plan and plan.needs else None
    return Ran(code, group.kills - before, [attempt["strategy"] for attempt in attempts], predicted, loss)


def tell(place: Path, limit: int) -> int:
    """Run the four acts; return 0 when each went as it had to."""
    make_model(place / "model", SHAPES[SHAPE])
    make_data(place / "rows.jsonl")
    spec, machine = find(str(place / "model")), Machine(device="cpu", ranks_per_node=2, host_mem=limit / GIB)
    naive = estimate(spec, Work(micro_batch=2, seq_len=SEQ_LEN), machine, "ddp")
    print(
        f"{SHAPE} parameters on 2 ranks, {limit / GIB:.2f} GiB; DDP is predicted to need {naive.host_bytes / GIB:.2f}"
    )
    with memory_group(limit) as group:
        refused = launched("the gate predicts it", group, place, "refused", "--strategy", "ddp")
        title = "naive, by force: the kernel kills"
        dead = launched(title, group, place, "naive", "--strategy", "ddp", "--force", "--ladder", "off")
        moved = launched("the ladder survives it", group, place, "ladder", "--strategy", "ddp", "--force")
        planned = launched("as planned", group, place, "planned")
    rows = {"gate": refused, "naive": dead, "ladder": moved, "planned": planned}
    print(f"\n{'':8} {'exit code':>9} {'kernel kills':>12} {'predicted GiB':>13} {'last loss':>9}  strategies")
    for name, ran in rows.items():
        needed = "-" if ran.predicted is None else f"{ran.predicted:.2f}"
        numbers = f"{ran.code:>9} {ran.kills:>12} {needed:>13} {ran.loss:>9}"
        print(f"{name:8} {numbers}  {' -> '.join(ran.strategies) or '-'}")
    as_told = (
        (refused.code, refused.kills) == (2, 0)
        and dead.code == 137
        and dead.kills > 0
        and (moved.code, moved.strategies[0], len(moved.strategies)) == (0, "ddp", 2)
        and moved.kills > 0
        and (planned.code, planned.kills, planned.loss) == (0, 0, moved.loss)
    )
    print("as told" if as_told else "NOT as told: see above", flush=True)
    return 0 if as_told else 1


def main() -> int:
    """Make a place, tell the story there, and clear up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep model and runs there")
    asked = parser.parse_args()
    limit = int(LIMIT * GIB)
    if not may_limit_memory():
        print("oom-demo: no memory control group can be made here; try it as root", file=sys.stderr)
        return 2
    place = asked.keep or Path(tempfile.mkdtemp(prefix="wellread-oom-"))
    place.mkdir(parents=True, exist_ok=True)
    try:
        return tell(place, limit)
    finally:
        if not asked.keep:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
