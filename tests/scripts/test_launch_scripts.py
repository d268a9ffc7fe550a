"""The launch scripts: clean shell, and each plans what its table says on the nodes that it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.programs import ROOT, missing

SCRIPTS = ROOT / "scripts"
LAUNCHERS = sorted(SCRIPTS.glob("ft-*.sh"))
NAMES = [path.name for path in LAUNCHERS]


def needs() -> dict[str, tuple[int, float, float]]:
    """Script -> GPUs, GiB of each, and GiB of host memory, as scripts/README.md says."""
    rows = re.findall(r"^\| `(ft-.*?)` \| (\d+) x (\d+) GiB \| ([\d,]+) \|", (SCRIPTS / "README.md").read_text(), re.M)
    return {name: (int(gpus), float(gpu), float(host.replace(",", ""))) for name, gpus, gpu, host in rows}


def plan(name: str, folder: Path, *flags: str) -> dict[str, Any]:
    """What a script plans, started from another folder, on the nodes of its table."""
    gpus, gpu_mem, host_mem = needs()[name]
    sizes = ["--gpu_mem", str(gpu_mem), "--host_mem", str(host_mem)]
    if name.endswith("-slurm.sh"):
        (folder / "cluster.yaml").write_text(f"kind: slurm\ngres: gpu:{gpus}\n")
        sizes += ["--cluster", str(folder / "cluster.yaml")]
    else:
        sizes += ["--ranks_per_node", str(gpus)]
    done = subprocess.run(
        [SCRIPTS / name, "plan", "--json", *sizes, *flags],
        cwd=folder,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def chosen(found: dict[str, Any]) -> dict[str, Any]:
    return next(of for of in found["strategies"] if of["strategy"] == found["chosen"])


def test_the_table_names_every_script() -> None:
    assert sorted(needs()) == NAMES
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_shellcheck_has_nothing_to_say(name: str) -> None:
    if not shutil.which("shellcheck"):
        missing("shellcheck is not installed; Debian: apt-get install shellcheck")
    done = subprocess.run(
        ["shellcheck", "--external-sources", SCRIPTS / name, SCRIPTS / "finetune_lib.sh"],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if "naive" not in name])
def test_a_script_fits_where_its_table_says(name: str, tmp_path: Path) -> None:
    found = plan(name, tmp_path)
    assert name.startswith(f"ft-{found['model']}")
    assert (found["device"], found["ranks"]) == ("cuda", needs()[name][0])
    assert chosen(found)["fits"]


def test_the_naive_12b_does_not_fit_and_its_twin_does(tmp_path: Path) -> None:
    naive, planned = (plan(name, tmp_path) for name in ("ft-pythia-12b-naive.sh", "ft-pythia-12b.sh"))
    assert naive["chosen"] == "ddp"
    assert not chosen(naive)["fits"]
    assert chosen(naive)["gpu_bytes"] > 16 * 11_846_072_320  # weights, gradients and moments alone
    assert planned["chosen"] != "ddp"
    same = ("model", "batch_size", "seq_len", "steps", "save_steps", "ranks")
    assert {key: naive[key] for key in same} == {key: planned[key] for key in same}


def test_flags_win_over_the_scripts_own(tmp_path: Path) -> None:
    found = plan("ft-pythia-2.8b.sh", tmp_path, "--save_every", "7", "--steps", "20")
    assert found["save_steps"] == [0, 7, 14, 20]
