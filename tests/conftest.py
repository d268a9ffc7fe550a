"""Fixtures of all tests: real data, real runs, programs started as a user starts them; no network, no GPU.

`program` runs ``python -m …`` from the repository root; `corpus` is the compiled sample set; `tiny_run` is one finished
run of two ranks, read-only; `copied_run` is a copy of it, corpus included, that a test may damage; `golden` compares a
text with a file; `disk` and `memory_group` are as small as a test wants them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.programs import ROOT, SHARED, Program, missing

from launch import ops
from launch.cluster import ClusterFile
from scripts import oom_demo
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.run import RunDirectory

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the same ranks and numbers on every machine; a test of a GPU passes its own
    "NO_COLOR": "1",
    "COLUMNS": "120",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "1",  # threads that wait for each other on cores that others use need ten times as long
}
UNSET = ("WELLREAD_MODELS", "WELLREAD_DEBUG", "RANK", "WORLD_SIZE", "LOCAL_RANK")

ON_THE_CLUSTER = ("cluster/test_slurm", "cluster/test_development_cluster", "launch/test_doctor")
"""Files that use the one SLURM cluster."""
LONGEST = (
    *(*ON_THE_CLUSTER, "runs/test_kills", "train/engines/test_engines", "runs/test_finetune", "runs/test_resume"),
    *("real_data/test_strategies", "models/test_adapter", "runs/test_bad_loss", "cluster/test_hostfile"),
    *("corpus/test_pack", "models/test_families", "planning/test_estimate", "planning/test_parameters"),
    *("launch/test_ladder", "real_data/test_smollm2", "bad_input/test_flags", "test_errors"),
    *("launch/backends/test_elastic", "scripts/test_gpu_check", "train/test_gate", "runs/test_old_run"),
)
"""Files that take a minute or more. They begin first: else one worker would be at one when the others have no more."""


def file_of(nodeid: str) -> str:
    """The file of a test below tests/, without its ending."""
    return nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")


def pytest_configure() -> None:
    os.environ.update(SETTINGS)
    for name in UNSET:
        os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(file_of(item.nodeid), len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file, for its fixtures, and all that use the cluster to one worker of ``pytest -n``."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = file_of(nodeid)
            return ON_THE_CLUSTER[0] if file in ON_THE_CLUSTER else file

    config.option.loadscopereorder = False  # the order is that of pytest_collection_modifyitems
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def compiled_ops(request: pytest.FixtureRequest) -> None:
    """Compile DeepSpeed's ops before the slow tests, which wait for their ranks some minutes and no longer.

    In a new environment that takes minutes; each of two workers begins with an op of its own.
    """
    slow = any(item.get_closest_marker("slow") for item in request.session.items)
    if not slow or shutil.which("c++") is None:
        return
    variables = {"TORCH_EXTENSIONS_DIR": str(ops.folder(ClusterFile(kind="local")))}
    needed = ["deepspeed_shm_comm", "cpu_adam"]
    for op in needed if os.environ.get("PYTEST_XDIST_WORKER") != "gw1" else needed[::-1]:
        ops.ensure(op, variables)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data beside the checkout; where it may be missing is a developer's machine, never CI."""
    if not SHARED.is_dir():
        missing(f"{SHARED} is missing: the real data lies beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def program() -> Program:
    """Run ``python -m MODULE ARGUMENT…`` from the repository root, with stdout and stderr captured as text.

    ``env`` adds variables (None removes one), ``timeout`` is in seconds, ``check=True`` makes an exit code above 0 fail
    the test with the program's whole output.
    """

    def run(
        module: str,
        *arguments: object,
        env: dict[str, str | None] | None = None,
        timeout: float = 300,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        variables = {k: v for k, v in (os.environ | (env or {})).items() if v is not None}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(command)} gave {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
            )
        return done

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of so many bytes (a tmpfs) and return where; called again, change its size."""
    path = tmp_path / "disk"
    path.mkdir()

    def sized(size: int) -> Path:
        options = f"remount,size={size}" if path.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            missing(f"a tmpfs cannot be mounted here ({done.stderr.strip()})")
        return path

    yield sized
    if path.is_mount():
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def memory_group() -> Iterator[Callable[..., Path]]:
    """Make a control group with a limit of so many bytes of memory; what is written to its cgroup.procs enters it."""
    with ExitStack() as groups:

        def limited(size: int, name: str = "") -> Path:
            if not oom_demo.may_limit_memory():
                missing("no memory controller of control groups that may be written to")
            return groups.enter_context(oom_demo.memory_group(size, name)).folder

        yield limited


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], None]:
    """Compare a text with the file of that name in tests/golden; what is of one machine has been replaced in it."""

    def compare(name: str, text: str) -> None:
        file = ROOT / "tests" / "golden" / name
        if os.environ.get("REFRESH_GOLDEN"):
            file.write_text(text)
        remedy = "if the change is meant, run this test once more with REFRESH_GOLDEN=1"
        assert file.exists(), f"{file} is missing; {remedy}"
        assert text == file.read_text(), remedy

    return compare


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of compiled corpora that all tests share: pass it as ``--corpora``."""
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="session")
def corpus(corpora: Path) -> Corpus:
    """The shipped sample set, compiled for the tiny model with a quarter of its documents sealed."""
    from finetune.prepare import prepare

    return Corpus.open(prepare(RunConfig.of(corpora=str(corpora))))


@pytest.fixture(scope="session")
def tiny_run(program: Program, corpus: Corpus, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run: tiny on sample, 12 steps of 16 on 2 ranks, checkpoints at 0, 4, 8, 12. Read it, never write."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    flags = [
        "--steps",
        12,
        "--save_every",
        4,
        "--keep_states",
        4,
        "--out",
        out,
        "--corpora",
        corpora,
        "--ranks_per_node",
        2,
        "--generations",
        0,
    ]
    program("launch", "run", "finetune", *flags, check=True)
    return RunDirectory.open(out)


@pytest.fixture
def copied_run(tiny_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of `tiny_run` with its own corpus (no link), for tests that damage, resume or evaluate."""
    shutil.copytree(tiny_run.path, tmp_path / "run", symlinks=False)
    return RunDirectory.open(tmp_path / "run")


@pytest.fixture(scope="session")
def pythia_tokenizer(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the real GPT-NeoX/Pythia tokenizer (50,277 tokens), laid out as in the models of the hub."""
    directory = tmp_path_factory.mktemp("pythia-tokenizer")
    shutil.copyfile(shared / "tokenizers" / "pythia_20B_tokenizer.json", directory / "tokenizer.json")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A GPT-NeoX so small that a step takes milliseconds, with the sample corpus's tokenizer."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from wellread.corpus.tokenizer import copy_files

    target = tmp_path_factory.mktemp("models") / "small"
    config = GPTNeoXConfig(
        vocab_size=2048,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    copy_files(corpus.tokenizer, target)
    return target
