"""The launch scripts: shellcheck is clean, and each script plans what the table in scripts/README.md says."""

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
    """Script -> number of GPUs, GiB per GPU, and GiB of host memory, from scripts/README.md."""
    rows = re.findall(r"^\| `(ft-.*?)` \| (\d+) x (\d+) GiB \| ([\d,]+) \|", (SCRIPTS / "README.md").read_text(), re.M)
    return {name: (int(gpus), float(gpu), float(host.replace(",", ""))) for name, gpus, gpu, host in rows}


def plan(name: str, folder: Path, *flags: str) -> dict[str, Any]:
    """The plan of a script, started in another folder, on the nodes from the table."""
    gpus, gpu_mem, host_mem = needs()[name]
    sizes = ["--gpu_mem", str(gpu_mem), "--host_mem", str(host_mem)]
    if name.endswith("-slurm.sh"):
        (folder / "cluster.yaml").write_text(f"kind: slurm\ngres: gpu:{gpus}\n")
        sizes += ["--cluster", str(folder / "cluster.yaml")]
    else:
        sizes += ["--ranks_per_node", str(gpus)]
    result = subprocess.run(
        [SCRIPTS / name, "plan", "--json", *sizes, *flags],
        cwd=folder,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def chosen_strategy(answer: dict[str, Any]) -> dict[str, Any]:
    return next(of for of in answer["strategies"] if of["strategy"] == answer["chosen"])


def test_the_table_names_every_script() -> None:
    assert sorted(needs()) == NAMES
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_shellcheck_is_clean(name: str) -> None:
    if not shutil.which("shellcheck"):
        missing("shellcheck is not installed; Debian: apt-get install shellcheck")
    result = subprocess.run(
        ["shellcheck", "--external-sources", SCRIPTS / name, SCRIPTS / "finetune_lib.sh"],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if "naive" not in name])
def test_a_script_fits_on_its_nodes(name: str, tmp_path: Path) -> None:
    answer = plan(name, tmp_path)
    assert name.startswith(f"ft-{answer['model']}")
    assert (answer["device"], answer["ranks"]) == ("cuda", needs()[name][0])
    assert chosen_strategy(answer)["fits"]


def test_the_naive_12b_does_not_fit_and_the_planned_one_does(tmp_path: Path) -> None:
    naive, planned = (plan(name, tmp_path) for name in ("ft-pythia-12b-naive.sh", "ft-pythia-12b.sh"))
    assert naive["chosen"] == "ddp"
    assert not chosen_strategy(naive)["fits"]
    assert chosen_strategy(naive)["gpu_bytes"] > 16 * 11_846_072_320  # weights, gradients and moments
    assert planned["chosen"] != "ddp"
    same = ("model", "batch_size", "seq_len", "steps", "save_steps", "ranks")
    assert {key: naive[key] for key in same} == {key: planned[key] for key in same}


def test_flags_override_those_of_the_script(tmp_path: Path) -> None:
    answer = plan("ft-pythia-2.8b.sh", tmp_path, "--save_every", "7", "--steps", "20")
    assert answer["save_steps"] == [0, 7, 14, 20]
