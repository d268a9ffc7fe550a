"""Fixtures of all tests: real data, real runs, programs started as a user starts them; no network, no GPU.

`program` runs ``python -m …`` from the repository root. `corpus` is the compiled sample set. `tiny_run` is a finished
run of two ranks, which tests only read. `copied_run` is a copy of it with its own corpus, which a test may damage.
`golden` compares a text with a file. `disk` and `memory_group` limit disk space and memory.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
from support.made_once import made_once
from support.programs import ROOT, SHARED, Program, missing

import wellread.starting  # noqa: F401  # before `in_process` runs a program, so that Ctrl-C still ends pytest
from launch import ops
from launch.cluster import ClusterFile
from scripts import oom_demo
from wellread import open_run
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.record.history import History
from wellread.run import RunDirectory

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the same ranks and numbers on every machine; a test of a GPU passes its own
    "NO_COLOR": "1",
    "COLUMNS": "120",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "1",  # threads that share busy cores wait for each other and need ten times as long
}
UNSET = ("WELLREAD_MODELS", "WELLREAD_DEBUG", "RANK", "WORLD_SIZE", "LOCAL_RANK")

MINUTES_OF_A_SLOW_TEST = 0.2
"""What a slow test counts when files are sorted by how long they take; the marker `minutes` gives another number."""


def pytest_configure() -> None:
    os.environ.update(SETTINGS)
    for name in UNSET:
        os.environ.pop(name, None)
    hypothesis.settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("any machine")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell without job control does that to ``pytest &``
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs that tests interrupt inherit it


def minutes_of(item: pytest.Item) -> float:
    """Roughly how long a test takes, from its markers."""
    if marker := item.get_closest_marker("minutes"):
        return float(marker.args[0])
    return MINUTES_OF_A_SLOW_TEST if any(item.iter_markers("slow")) or any(item.iter_markers("long")) else 0.0


@pytest.hookimpl(trylast=True)  # after the selection by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that the processes of ``pytest -n`` end at about the same time."""
    minutes: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        minutes[item.path] += minutes_of(item)
    items.sort(key=lambda item: (-minutes[item.path], str(item.path)))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the time limit of the test begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run only one test at a time on the SLURM cluster, whichever process of ``pytest -n`` it belongs to."""
    if item.get_closest_marker("slurm") is None:
        return (yield)
    with open(Path(tempfile.gettempdir()) / "wellread-tests-slurm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def compiled_ops(request: pytest.FixtureRequest) -> None:
    """Compile DeepSpeed's ops before the slow tests, which wait for their ranks for a few minutes only.

    In a new environment this takes minutes. The second process of ``pytest -n 2`` starts with the second op.
    """
    slow = any(minutes_of(item) for item in request.session.items)
    if not slow or shutil.which("c++") is None:
        return
    variables = {"TORCH_EXTENSIONS_DIR": str(ops.folder(ClusterFile(kind="local")))}
    names = ["deepspeed_shm_comm", "cpu_adam"]
    for op in names if os.environ.get("PYTEST_XDIST_WORKER") != "gw1" else names[::-1]:
        ops.ensure(op, variables)


@pytest.fixture(scope="session", autouse=True)
def small_heap() -> Iterator[None]:
    """Exempt the imported modules from garbage collection, so that the collection after each test is fast."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()  # otherwise DuckDB reports its objects as leaked when Python ends


@pytest.fixture(autouse=True)
def collected_garbage(small_heap: None) -> Iterator[None]:
    """Collect garbage after each test: a file or process that is left open fails this test, not a later one."""
    yield
    gc.collect()
    gc.freeze()  # what has survived, such as modules that the test was the first to import


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data next to the checkout. It may be missing on a developer's machine, but not in CI."""
    if not SHARED.is_dir():
        missing(f"{SHARED} is missing: the real data is expected next to the checkout")
    return SHARED


@pytest.fixture(scope="session")
def program() -> Program:
    """Run ``python -m MODULE ARGUMENT…`` from the repository root and capture stdout and stderr as text.

    ``env`` adds variables (None removes one) and ``timeout`` is in seconds. With ``check=True`` the test fails if the
    exit code is not 0, and shows all that the program printed.
    """

    def run(
        module: str,
        *arguments: object,
        env: dict[str, str | None] | None = None,
        timeout: float = 600,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        variables = {k: v for k, v in (os.environ | (env or {})).items() if v is not None}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        result = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and result.returncode:
            pytest.fail(
                f"{' '.join(command)}: exit code {result.returncode}\n"
                f"--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
            )
        return result

    return run


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    """Run ``python -m MODULE ARGUMENT…`` in this process, which saves seconds. For commands that start no ranks.

    It is called as `program` is, without a `timeout`; `env` applies only to this command.
    """

    def run(
        module: str, *arguments: object, env: dict[str, str | None] | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        command = [module, *map(str, arguments)]
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", command)
            patch.delitem(sys.modules, f"{module}.__main__", raising=False)
            for name, value in (env or {}).items():
                if value is None:
                    patch.delenv(name, raising=False)
                else:
                    patch.setenv(name, value)
            capfd.readouterr()
            with pytest.raises(SystemExit) as end:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        printed = capfd.readouterr()
        assert isinstance(end.value.code, int)
        if check and end.value.code:
            pytest.fail(f"{' '.join(command)}: exit code {end.value.code}\n{printed.out}\n{printed.err}")
        return subprocess.CompletedProcess(command, end.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk (a tmpfs) of the given number of bytes and return its path. A second call changes its size."""
    path = tmp_path / "disk"
    path.mkdir()

    def sized(size: int) -> Path:
        options = f"remount,size={size}" if path.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        mount = subprocess.run(command, capture_output=True, text=True, check=False)
        if mount.returncode:
            missing(f"a tmpfs could not be mounted ({mount.stderr.strip()})")
        return path

    yield sized
    if path.is_mount():
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def memory_group() -> Iterator[Callable[..., Path]]:
    """Create a control group with a memory limit in bytes; processes enter it by a write to its cgroup.procs."""
    with ExitStack() as groups:

        def limited(size: int, name: str = "") -> Path:
            if not oom_demo.may_limit_memory():
                missing("control groups with a memory controller are not available or not writable")
            return groups.enter_context(oom_demo.memory_group(size, name)).folder

        yield limited


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], None]:
    """Compare a text with a file in tests/golden. The caller has replaced machine-specific parts of the text."""

    def compare(name: str, text: str) -> None:
        file = ROOT / "tests" / "golden" / name
        if os.environ.get("REFRESH_GOLDEN"):
            file.write_text(text)
        remedy = "if this change is intended, run the test again with REFRESH_GOLDEN=1"
        assert file.exists(), f"{file} is missing; {remedy}"
        assert text == file.read_text(), remedy

    return compare


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of compiled corpora that all tests share, also those of other processes: pass it as ``--corpora``."""
    return made_once(tmp_path_factory, "corpora", lambda folder: None)


@pytest.fixture(scope="session")
def corpus(corpora: Path) -> Corpus:
    """The shipped sample set, compiled for the tiny model with a quarter of its documents sealed."""
    from finetune.prepare import prepare

    return Corpus.open(prepare(RunConfig.of(corpora=str(corpora))))


@pytest.fixture(scope="session")
def tiny_run(program: Program, corpus: Corpus, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run: tiny on sample, 12 steps of 16 on 2 ranks, checkpoints at 0, 4, 8, 12. Read it, never write."""
    steps = ["--steps", 12, "--save_every", 4, "--keep_states", 4, "--ranks_per_node", 2, "--generations", 0]

    def train(folder: Path) -> None:
        out = ["--out", folder / "run", "--corpora", corpora]
        program("launch", "run", "finetune", *steps, *out, check=True)

    return RunDirectory.open(made_once(tmp_path_factory, "tiny", train) / "run")


@pytest.fixture(scope="session")
def history(tiny_run: RunDirectory) -> History:
    """What `tiny_run` has read and will read."""
    return open_run(tiny_run.path).history


@pytest.fixture(scope="session")
def texts(corpus: Corpus) -> list[str]:
    """Text of every sample, as the tokenizer decodes it."""
    tokenizer = Tokenizer.load(corpus.tokenizer)
    return [tokenizer.decode(corpus.tokens(i).tolist()) for i in range(corpus.n)]


@pytest.fixture
def copied_run(tiny_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of `tiny_run` with a copy of the corpus, for tests that damage, resume or evaluate a run."""
    shutil.copytree(tiny_run.path, tmp_path / "run", symlinks=False)
    return RunDirectory.open(tmp_path / "run")


@pytest.fixture(scope="session")
def pythia_tokenizer(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the real GPT-NeoX/Pythia tokenizer (50,277 tokens), with the files that models on the hub have."""
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

    config = GPTNeoXConfig(
        vocab_size=2048,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )

    def make(folder: Path) -> None:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        copy_files(corpus.tokenizer, folder)

    return made_once(tmp_path_factory, "small", make)
