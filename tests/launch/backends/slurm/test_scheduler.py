"""The exact text of job scripts, and that no name can inject commands.

No SLURM is needed: the scripts run in bash with a fake `srun` that stores its arguments.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.sbatch_flags import flags

from launch.backends.slurm import jobs as slurm
from launch.cluster import ClusterFile, load
from wellread.errors import UserError
from wellread.run import RunDirectory

SUBMITIT = ["-u", "-m", "submitit.core._submit"]
GPU = """
kind: slurm
python: /opt/my venv/bin/python
partition: gpu
account: project-7
qos: high
constraint: a100&nvlink
gres: gpu:a100:8
time: 2-12:00:00
memory: 500.5
cpus_per_rank: 16
exclusive: true
setup:
  - module load cuda/12.8
  - export NCCL_DEBUG=INFO
srun:
  - --container-image=docker://registry.example.org#team/train:1
  - --container-mounts=/scratch/my data:/data
sbatch:
  comment: it's "mine"
  mail-type: END,FAIL
signal_delay: 300
"""


def text_of(cluster: ClusterFile, path: Path, **options: Any) -> str:
    """Return the job script of the run at `path`."""
    run = RunDirectory(path)
    settings = {"name": run.name, "nodes": 1, "ranks_per_node": 1, "code": run.code.resolve()} | options
    return slurm.sbatch_text(cluster, run, slurm.parameters(cluster, **settings))


def sbatch_words(line: str) -> list[str]:
    """Split a line as sbatch does (`_get_argument` in its opt.c), in which a backslash always escapes."""
    words, word, quote, escaped, in_word = [], "", "", False, False
    for character in line:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = in_word = True
        elif quote:
            word, quote = (word, "") if character == quote else (word + character, quote)
        elif character in "'\"":
            quote, in_word = character, True
        elif character == "#":
            break
        elif character.isspace():
            words += [word] * in_word
            word, in_word = "", False
        else:
            word, in_word = word + character, True
    return words + [word] * in_word


# --- golden files


def test_the_plain_file(golden: Callable[[str, str], None]) -> None:
    path = Path("/srv/runs/tiny-sample")
    text = text_of(ClusterFile(kind="slurm", name="slurm"), path, nodes=2)
    golden("sbatch-plain.sh", text.replace(shlex.quote(sys.executable), "PYTHON"))


def test_the_file_of_a_cluster_with_gpus(golden: Callable[[str, str], None], tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_text(GPU)
    text = text_of(load(str(tmp_path / "gpu.yaml")), Path("/srv/my runs/dolly"), nodes=4, ranks_per_node=2, after="17")
    golden("sbatch-gpu.sh", text)
    assert flags(text)["--gres"] == "gpu:a100:2"  # one GPU per rank, not all GPUs of the node


@pytest.mark.parametrize(
    ("gres", "ranks", "expected"),
    [
        (None, 2, None), ("shard:2", 2, "shard:2"), ("gpu", 2, "gpu:2"), ("gpu:8", 4, "gpu:4"),
        ("gpu:a100:8", 1, "gpu:a100:1"), ("gpu:h100", 4, "gpu:h100:4"), ("shard:2,gpu:h100:8", 4, "shard:2,gpu:h100:4"),
        ("gpu:8,nvme:1", 2, "gpu:2,nvme:1"), ("gpu:2080ti:4", 2, "gpu:2080ti:2"), ("gpu:4090:8", 2, "gpu:4090:2"),
        ("gpu:1g.10gb:7", 3, "gpu:1g.10gb:3"), ("gpumem:80", 2, "gpumem:80"), ("gpumem:80,gpu:4", 2, "gpumem:80,gpu:2"),
    ],
)  # fmt: skip
def test_a_job_requests_one_gpu_per_rank(gres: str | None, ranks: int, expected: str | None) -> None:
    text = text_of(ClusterFile(kind="slurm", gres=gres), Path("/srv/runs/x"), ranks_per_node=ranks)
    assert flags(text).get("--gres") == expected


# --- no injection

PIECES = st.one_of(
    st.sampled_from(
        ["$(touch broken-out)", "`touch broken-out`", ";touch broken-out;", "'", '"', "$HOME", "${PATH}", " ", "  ",
         "#", " #", "-", "--", "&&", "|", ">broken-out", "<", "*", "?", "[a]", "{a,b}", "~", "!", "!!", "=", ",", ":",
         "(", ")",
         "^", "é", "λ", "漢字", "🙂", "\u00a0", "\u2028", "\u200b", "'$(touch broken-out)'", "\"$(touch broken-out)\"",
         "' --uid=0 '", "@", "+", ".", "..."]
    ),
    st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="/%\\"), min_size=1, max_size=8),
)  # fmt: skip
NAMES = st.lists(PIECES, min_size=1, max_size=5).map("".join).filter(lambda n: n not in (".", "..") and len(n) < 60)
VALUES = NAMES.map(lambda text: text.replace("\\", ""))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an srun that writes its arguments, each followed by a zero byte, to argv where it runs."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").write_text(
        '#!/bin/sh\nprintf "%s\\0" "$@" > argv\nprintf "%s" "$SUBMITIT_EXECUTOR" > executor\n'
    )
    (folder / "bin" / "srun").chmod(0o755)
    return folder


def executed(bench: Path, text: str) -> list[str]:
    """Run a script and return the arguments of srun; fail on any other file or output."""
    work = bench / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (bench / "script.sh").write_text(text)
    env = {"PATH": f"{bench / 'bin'}:{os.environ['PATH']}", "HOME": str(work), "LC_ALL": "C.UTF-8"}
    result = subprocess.run(["bash", str(bench / "script.sh")], cwd=work, env=env, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert sorted(path.name for path in work.iterdir()) == ["argv", "executor"]
    assert (work / "executor").read_text() == "slurm"
    *arguments, last = (work / "argv").read_bytes().split(b"\0")
    assert last == b""
    return [os.fsdecode(argument) for argument in arguments]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parent=NAMES, name=NAMES, python=NAMES, argument=VALUES, comment=VALUES, partition=VALUES)
@example("a b", "it's", 'py"th', "$(touch broken-out)", "`touch broken-out`", "x #y")
@example("$(touch broken-out)", ";touch broken-out", "a b", "--x='y'", "' --uid=0 '", '"')
@example("#", "-n", "~", "*", "", "\u2028")
def test_no_name_or_path_injects_commands(
    bench: Path, parent: str, name: str, python: str, argument: str, comment: str, partition: str
) -> None:
    path = Path("/nowhere", parent, name)
    cluster = ClusterFile(
        kind="slurm",
        python=f"/nowhere/{python}/bin/python",
        srun=(argument,),
        partition=partition,
        sbatch={"comment": comment},
    )
    slurm.check(RunDirectory(path))
    text = text_of(cluster, path, nodes=2, ranks_per_node=3)
    assert executed(bench, text) == [
        "--unbuffered", "--output", f"{path}/submit/%j_%t_log.out", "--error", f"{path}/submit/%j_%t_log.err",
        "--kill-on-bad-exit=1", argument, f"/nowhere/{python}/bin/python", *SUBMITIT, f"{path}/submit",
    ]  # fmt: skip
    expected = {
        "--chdir": f"{path}/code",
        "--comment": comment,
        "--error": f"{path}/submit/%j_0_log.err",
        "--job-name": name,
        "--nodes": "2",
        "--ntasks-per-node": "3",
        "--open-mode": "append",
        "--output": f"{path}/submit/%j_0_log.out",
        "--partition": partition,
        "--requeue": "",
        "--signal": "USR2@90",
        "--time": "1440",
    }
    assert flags(text) == expected
    assert flags(text, sbatch_words) == expected


def test_the_parser_of_the_tests_is_strict() -> None:
    assert flags("#!/bin/bash\n\n# x\n#SBATCH --a='b c'\necho\n#SBATCH --d=e\n") == {"--a": "b c"}
    with pytest.raises(ValueError, match="unpack"):
        flags("#SBATCH --a=b --c=d\n")
    assert sbatch_words(r""" --a='b c'"'"d --e\ f#g""") == ["--a=b c'd", "--e f"]
    assert sbatch_words(r"'a\b'") == ["ab"]  # therefore slurm.check refuses a backslash


@pytest.mark.parametrize("name", ["a%j", "100%", "a\\b", "a\nb", "a\tb", "a\x7fb", "a\x1bb"])
def test_paths_with_special_characters_are_refused(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError) as error:
            slurm.check(RunDirectory(path))
        assert str(error.value).startswith(f"--out {str(path)!r}: %, \\ and control characters ")
        assert "\n" not in str(error.value)


def test_a_refused_path_is_one_line_and_exit_code_2(program, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for command in ("plan", "run"):
        result = program("launch", command, "finetune", "--cluster", "slurm", "--out", tmp_path / "100%#SBATCH")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: --out '{tmp_path}/100%#SBATCH': %, \\ and control characters ")
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- plans


def test_a_plan_contains_the_script_and_needs_no_slurm(program, tmp_path: Path, root: Path) -> None:  # type: ignore[no-untyped-def]
    out, empty = tmp_path / "my run", tmp_path / "bin"
    empty.mkdir()
    (tmp_path / "big.yaml").write_text(
        "kind: slurm\nranks_per_node: 2\ncpus_per_rank: 4\npython: /opt/venv/bin/python\n"
    )
    cluster_flags = ["--cluster", tmp_path / "big.yaml", "--nodes", 2, "--time", "1:00:00", "--partition", "long"]
    env = {"PATH": str(empty), "OMP_NUM_THREADS": None, "TORCH_EXTENSIONS_DIR": None}
    other_flags = ["--out", out, "--corpora", tmp_path / "corpora", "--json"]
    result = program("launch", "plan", "finetune", *cluster_flags, *other_flags, env=env, check=True)
    values = json.loads(result.stdout)
    assert values["command"] == ["/opt/venv/bin/python", "-u", "-m", "finetune", "train", str(out)]
    assert values["environment"] == {
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "4",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUTF8": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": "/opt/venv/torch_extensions",
        "WELLREAD_CODE": f"{out}/code",
    }
    assert (values["cluster"], values["nodes"], values["ranks_per_node"], values["ranks"]) == ("slurm", 2, 2, 4)
    options = flags(values["sbatch"])
    names = ("--nodes", "--ntasks-per-node", "--cpus-per-task", "--time", "--partition", "--job-name", "--chdir")
    assert [options[name] for name in names] == ["2", "2", "4", "60", "long", "my run", f"{out}/code"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.yaml", "bin"]

    result = program(
        "launch", "plan", "finetune", *cluster_flags, "--out", out, "--snapshot", "off", env=env, check=True
    )
    assert f"\nsbatch file    #!/bin/bash\n{' ' * 15}\n{' ' * 15}# Parameters\n" in result.stdout
    assert f"#SBATCH --chdir={root}\n" in result.stdout
    assert f"WELLREAD_CODE={root}\n" in result.stdout


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ({}, ["#SBATCH --mem=0"]),
        ({"memory": 1.5}, ["#SBATCH --mem=1536M"]),
        ({"sbatch": {"mem-per-cpu": "2G"}}, ["#SBATCH --mem-per-cpu=2G"]),
        ({"sbatch": {"mem": "3G"}}, ["#SBATCH --mem=3G"]),
    ],
)
def test_a_job_requests_the_memory_that_its_plan_counts_on(
    file: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    text = text_of(ClusterFile(kind="slurm", **file), tmp_path, whole_memory=True)
    assert [line for line in text.splitlines() if "--mem" in line] == lines
    assert "--mem=0" not in text_of(ClusterFile(kind="slurm", **file), tmp_path)
