"""Fine-tuning end to end: the loss of a step, pretrained models, stopping, killing, resuming, detecting wrong data.

All tests use the real launcher, real ranks over gloo and real DeepSpeed, in fp32, on the shipped sample set.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.launched import Launched, assert_gone, hold, is_pending
from support.waiting import PATIENCE, wait_until

from wellread.checkpoint import Checkpoint, list_checkpoints, name_of, newest_valid
from wellread.corpus.read import Corpus
from wellread.order.permutation import Order
from wellread.record.reader import Record
from wellread.run import RunDirectory

pytestmark = pytest.mark.slow

STEPS, BATCH_SIZE = 12, 8
SCHEDULE = (0, 1, 2, 4, 8, 12)
# Adam divides a gradient by its size, so a gradient of zero plus rounding error becomes a full step in any direction.
# With eps far above rounding errors, weights differ as little as their gradients.
FLAGS = (
    *("--model", "tiny", "--data", "sample", "--dtype", "fp32", "--steps", STEPS, "--batch_size", BATCH_SIZE),
    *("--seq_len", 128, "--holdout", 0.05, "--save_schedule", "log", "--log_every", 1, "--optim.eps", 1e-4),
    *("--generations", 0),
)
DIVISIONS = {
    "1 rank x 8": ("--ranks_per_node", 1, "--micro_batch_size", 8),
    "2 ranks x 4": ("--ranks_per_node", 2, "--micro_batch_size", 4),
    "4 accumulations of 2": ("--ranks_per_node", 1, "--micro_batch_size", 2),
}
SAME_RECORD = ["step", "batch_id", "slot", "sample_id", "digest"]
"""Two records are equal if these columns are (design.md)."""

Finetune = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def finetune(program: Finetune, corpora: Path) -> Finetune:
    """Run ``wellread run finetune`` with `FLAGS` into `out`; later flags win."""
    return partial(_run, program, corpora)


@pytest.fixture
def finetune_in_process(in_process: Finetune, corpora: Path) -> Finetune:
    """As `finetune`, in this process: for a run that is finished or refused."""
    return partial(_run, in_process, corpora)


def _run(start: Finetune, corpora: Path, out: Path, *flags: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return start("launch", "run", "finetune", *FLAGS, "--corpora", corpora, "--out", out, *flags, **options)


@pytest.fixture(scope="module")
def divided(finetune: Finetune, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    """The same run with its batches divided in three ways. Tests only read it."""
    runs = {}
    for number, (division, flags) in enumerate(DIVISIONS.items()):
        runs[division] = RunDirectory(tmp_path_factory.mktemp("divided") / f"run{number}")
        finetune(runs[division].path, *flags, check=True)
    return runs


@pytest.fixture(scope="module")
def uninterrupted(divided: dict[str, RunDirectory]) -> RunDirectory:
    """An uninterrupted run with DDP on two ranks. Tests only read it."""
    return divided["2 ranks x 4"]


def step_losses(run: RunDirectory) -> np.ndarray:
    """Mean loss over all target tokens of each batch, from the record."""
    table = Record.open(run.record).table(["batch_id", "loss", "n_targets"])
    batch, loss, n = (table[name].to_numpy().astype(np.float64) for name in table.column_names)
    batch = batch.astype(np.int64)
    return np.bincount(batch, loss * n) / np.bincount(batch, n)


def assert_same_record(one: RunDirectory, other: RunDirectory) -> None:
    records = Record.open(one.record), Record.open(other.record)
    assert records[0].table(SAME_RECORD).equals(records[1].table(SAME_RECORD))
    assert records[0].head == records[1].head


def assert_bit_equal(one: RunDirectory, other: RunDirectory) -> None:
    """Same record, losses included, and the same weights, byte for byte, at every scheduled step."""
    assert_same_record(one, other)
    losses = [Record.open(run.record).table(["loss"])["loss"].to_numpy() for run in (one, other)]
    assert np.array_equal(*losses)
    for step in SCHEDULE:
        weights = [(run.checkpoints / name_of(step) / "model/model.safetensors").read_bytes() for run in (one, other)]
        assert weights[0] == weights[1], f"weights differ at step {step}"


def assert_verified(in_process: Finetune, run: RunDirectory) -> None:
    result = in_process("eval", "verify", run.path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"verified: {STEPS} batches, ")
    assert result.stdout.endswith(f" checkpoints agree, head {Record.open(run.record).head}\n")
    heads = {checkpoint.step: checkpoint.head for checkpoint in list_checkpoints(run.checkpoints)}
    assert heads[STEPS] == Record.open(run.record).head
    assert set(SCHEDULE) <= set(heads)


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(checkpoint / "model/model.safetensors")


# --- the loss of a step


@pytest.mark.parametrize("division", list(DIVISIONS)[1:])
def test_dividing_a_batch_changes_nothing(divided: dict[str, RunDirectory], division: str) -> None:
    """Losses agree within 1e-5 (relative), weights within 1e-5 after 12 steps that changed them by up to 2e-3 each."""
    reference, run = divided["1 rank x 8"], divided[division]
    assert_same_record(reference, run)
    tables = [Record.open(r.record).table(["n_targets", "loss"]) for r in (reference, run)]
    assert tables[0]["n_targets"].equals(tables[1]["n_targets"])
    np.testing.assert_allclose(tables[1]["loss"].to_numpy(), tables[0]["loss"].to_numpy(), rtol=1e-5)
    np.testing.assert_allclose(step_losses(run), step_losses(reference), rtol=1e-5)
    first, last = weights(reference.checkpoints / name_of(0)), weights(reference.checkpoints / name_of(STEPS))
    other = weights(run.checkpoints / name_of(STEPS))
    assert max(np.abs(last[name] - first[name]).max() for name in first) > 1e-3
    for name in last:
        np.testing.assert_allclose(other[name], last[name], rtol=0, atol=1e-5, err_msg=name)
    holdout = [list_checkpoints(r.checkpoints)[-1].manifest["holdout_loss"] for r in (reference, run)]
    assert holdout[0] == pytest.approx(holdout[1], rel=1e-5)


def test_step_is_the_mean_over_all_target_tokens(divided: dict[str, RunDirectory], tmp_path: Path) -> None:
    """Losses and weights of the first step equal those of plain transformers and torch, one sample at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    run = divided["1 rank x 8"]
    corpus, table = Corpus.open(run.corpus), Record.open(run.record).table(batches=(0, 1))
    model = AutoModelForCausalLM.from_pretrained(run.checkpoints / name_of(0) / "model", dtype=torch.float32).train()
    total = int(table["n_targets"].to_numpy().sum())
    summed = []
    for sample in table["sample_id"].to_pylist():
        tokens = torch.from_numpy(corpus.tokens(sample).astype(np.int64))
        predicted = torch.from_numpy(corpus.targets(sample))[1:]
        logits = model(input_ids=tokens[None]).logits[0, :-1][predicted]
        loss = torch.nn.functional.cross_entropy(logits, tokens[1:][predicted], reduction="sum")
        (loss / total).backward()
        summed.append(float(loss.detach()))
    np.testing.assert_allclose(summed / table["n_targets"].to_numpy(), table["loss"].to_numpy(), rtol=1e-5)
    means = summed / table["n_targets"].to_numpy()
    assert abs(np.sum(summed) / total - means.mean()) > 1e-3  # a mean of means would differ
    assert step_losses(run)[0] == pytest.approx(np.sum(summed) / total, rel=1e-5)

    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(
        groups, lr=2e-3, betas=(0.9, 0.95), eps=1e-4
    ).step()  # one batch of warm-up, so the first has the peak rate
    model.save_pretrained(tmp_path / "model")
    expected = weights(tmp_path)
    for division in divided.values():
        stepped = weights(division.checkpoints / name_of(1))
        assert stepped.keys() == expected.keys()
        for name in stepped:
            np.testing.assert_allclose(stepped[name], expected[name], rtol=0, atol=2e-6, err_msg=name)


def test_every_division_verifies(in_process: Finetune, divided: dict[str, RunDirectory]) -> None:
    for run in divided.values():
        assert_verified(in_process, run)
        assert [c.step for c in list_checkpoints(run.checkpoints)] == list(SCHEDULE)


# --- a finished run, and its output directory


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Modification time and size of each file."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(p.relative_to(directory)): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def test_a_finished_run_is_not_changed(finetune_in_process: Finetune, uninterrupted: RunDirectory) -> None:
    before, manifest = snapshot(uninterrupted.path), uninterrupted.manifest()
    result = finetune_in_process(uninterrupted.path, *DIVISIONS["2 ranks x 4"], check=True)
    assert f"{uninterrupted.path} is finished: step {STEPS} of {STEPS}; nothing to do\n" in result.stdout
    assert result.stderr == ""
    after = snapshot(uninterrupted.path)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {"lock"}
    assert uninterrupted.manifest() == manifest


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--batch_size", 16), "batch_size is 8, requested 16"),
        (("--steps", 13), "steps is 12, requested 13"),
        (("--seed", 1), "seed is 0, requested 1"),
        (("--optim.lr", 1e-4), "(optim.lr is 0.002, requested 0.0001)"),
    ],
)
def test_other_config_into_a_run_is_refused(
    finetune_in_process: Finetune, uninterrupted: RunDirectory, flags: tuple[object, ...], difference: str
) -> None:
    before = snapshot(uninterrupted.path)
    result = finetune_in_process(uninterrupted.path, *DIVISIONS["2 ranks x 4"], *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {uninterrupted.path}: contains another run (")
    assert result.stderr.count("\n") == 1
    assert difference in result.stderr
    assert result.stderr.endswith("; choose another --out\n")
    after = snapshot(uninterrupted.path)
    assert after.pop("lock")[1] == before.pop("lock")[1] == 0  # acquired and released
    assert after == before


# --- starting from a pretrained model


def test_pretrained_directory_as_model(
    in_process: Finetune,
    finetune: Finetune,
    finetune_in_process: Finetune,
    uninterrupted: RunDirectory,
    corpora: Path,
    tmp_path: Path,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parent = list_checkpoints(uninterrupted.checkpoints)[-1]
    model = AutoModelForCausalLM.from_pretrained(parent.model)
    tokenizer = AutoTokenizer.from_pretrained(parent.model)
    assert model.dtype == torch.float32
    assert model.config.model_type == "gpt_neox"
    assert len(tokenizer) == model.config.vocab_size == 2048
    text = "### Instruction:\nName three  primary colors — s'il vous plaît.\n\n### Response:\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    flags = ("--steps", 2, "--ranks_per_node", 2, "--optim.lr", 1e-4)
    child = RunDirectory(tmp_path / "child")
    finetune(child.path, "--model", parent.model, *flags, check=True)
    start, *_, end = list_checkpoints(child.checkpoints)
    assert start.step == 0
    assert start.manifest["holdout_loss"] == pytest.approx(parent.manifest["holdout_loss"], rel=1e-6)
    assert end.manifest["holdout_loss"] != start.manifest["holdout_loss"]
    for name, value in weights(parent.path).items():
        assert np.array_equal(weights(start.path)[name], value), name
    assert child.manifest()["identity"]["model"].startswith("weights:")
    assert in_process("eval", "verify", child.path).returncode == 0

    # Given by its name, the model is the same, so this is the run above, which is finished.
    shelf = tmp_path / "models"
    shelf.mkdir()
    (shelf / "colors-1").symlink_to(parent.model)
    search = {"WELLREAD_MODELS": os.pathsep.join([str(tmp_path / "nowhere"), str(shelf)])}
    plan = in_process(
        "launch", "plan", "finetune", *FLAGS, "--corpora", corpora, "--model", "colors-1", "--json", env=search
    )
    assert json.loads(plan.stdout)["model"] == "colors-1"
    result = finetune_in_process(child.path, "--model", "colors-1", *flags, env=search, check=True)
    assert f"{child.path} is finished: step 2 of 2; nothing to do\n" in result.stdout


# --- detecting wrong data


WRONG_ROWS = """
import sys
from dataclasses import replace
from wellread.train import loop

hidden, wrong, visible = map(int, sys.argv[2:])  # samples: replaced under their own id, replacement, replaced visibly
collate = loop.collate

def wrong_rows(corpus, ids, device):
    fed = ids.copy()
    fed[(fed == hidden) | (fed == visible)] = wrong
    batch = collate(corpus, fed, device)
    if hidden in ids:
        batch.sample_ids[fed == wrong] = hidden
    return batch

loop.collate = wrong_rows
from wellread.train.rank import main
sys.exit(main(sys.argv[1]))
"""


def test_wrong_row_in_forward_is_caught(
    in_process: Finetune, divided: dict[str, RunDirectory], root: Path, tmp_path: Path
) -> None:
    """One batch gets a wrong row with the right id, another one a wrong row with its own id: both are named."""
    origin = divided["1 rank x 8"]
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(origin.path, run.path, symlinks=False, ignore=shutil.ignore_patterns("checkpoints", "record", "tb"))
    order = Order(kind="shuffle", seed=0, n=Corpus.open(run.corpus).n_trainable, batch_size=BATCH_SIZE)
    hidden, wrong, visible = (int(i) for i in (order.batch(3)[5], order.batch(50)[0], order.batch(7)[2]))
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    trained = subprocess.run(
        [sys.executable, "-c", WRONG_ROWS, run.path, *map(str, (hidden, wrong, visible))],
        cwd=root, env=os.environ | rank, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr

    result = in_process("eval", "verify", run.path)
    assert result.returncode == 1
    *problems, verdict = result.stdout.splitlines()
    assert sorted(problems, reverse=True) == [
        f"batch 7 slot 2: read sample {wrong}, the order says {visible}",
        f"batch 3 slot 5: the tokens read as sample {hidden} are not those of the corpus",
    ]
    assert verdict.startswith(f"FAILED: 2 problems: {STEPS} batches, ")
    assert verdict.endswith(f" checkpoints, head {Record.open(run.record).head}")


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_flipped_bytes_are_named(in_process: Finetune, divided: dict[str, RunDirectory], tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(divided["1 rank x 8"].path, run.path, symlinks=False)  # with the corpus
    corpus = Corpus.open(run.corpus)
    sample = 17
    start = sum(int(n) for n in corpus.lengths(np.arange(sample)))
    model = run.checkpoints / name_of(4) / "model/model.safetensors"
    part = run.record / Record.open(run.record).parts[2]["name"]
    flips = {
        corpus.path / "tokens.bin": (2 * (start + 3), f"{corpus.path}: sample {sample}: "),
        model: (model.stat().st_size // 2, f"{model}: altered"),
        part: (part.stat().st_size // 2, f"{part}: altered"),
    }
    for path, (position, beginning) in flips.items():
        flip(path, position)
        result = in_process("eval", "verify", run.path)
        assert result.returncode == 1, path
        *problems, verdict = result.stdout.splitlines()
        assert len(problems) == 1, problems
        assert problems[0].startswith(beginning)
        assert verdict.startswith("FAILED: 1 problem: ")
        flip(path, position)  # back
    assert_verified(in_process, run)


# --- stopping, killing, resuming


Launch = Callable[..., Launched]


@pytest.fixture
def launch(root: Path, corpora: Path) -> Iterator[Launch]:
    """Start ``wellread run finetune`` and return at once. What still runs after the test is killed."""
    started: list[Launched] = []

    def start(out: Path, *flags: object) -> Launched:
        command = ["launch", "run", "finetune", *FLAGS, "--corpora", corpora, "--out", out, *flags]
        started.append(Launched([sys.executable, "-m", *map(str, command)], root))
        return started[-1]

    yield start
    for launched in started:
        if launched.process.poll() is None:
            launched.process.kill()  # its ranks end with it
            launched.process.communicate()


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("zero2", marks=pytest.mark.long)])
def test_stopped_run_continues_bit_exactly(
    in_process: Finetune, finetune: Finetune, launch: Launch, uninterrupted: RunDirectory, tmp_path: Path, strategy: str
) -> None:
    flags = (*DIVISIONS["2 ranks x 4"], "--strategy", strategy)
    reference = uninterrupted
    if strategy != "ddp":
        reference = RunDirectory(tmp_path / "reference")
        finetune(reference.path, *flags, check=True)
        assert_same_record(reference, uninterrupted)
        np.testing.assert_allclose(step_losses(reference), step_losses(uninterrupted), rtol=1e-5)

    run = RunDirectory(tmp_path / "run")
    launched = launch(run.path, *flags)
    launched.until("step  1/12")
    ranks = launched.ranks()  # early: three steps later there is another checkpoint
    assert len(ranks) == 2
    launched.until("step  5/12")
    hold(ranks[1])  # this pauses the run until both ranks have been sent SIGTERM
    launched.process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_pending(ranks[1], signal.SIGTERM), "SIGTERM passed on to rank 1")
    ranks[1].resume()
    assert launched.end() == 128 + signal.SIGTERM, launched.output
    assert_gone(ranks)
    assert "stopped by SIGTERM at step " in launched.output

    stopped, damaged = newest_valid(run.checkpoints)
    assert isinstance(stopped, Checkpoint)
    assert damaged == {}
    assert 5 <= stopped.step < 8
    assert Record.open(run.record).batches == stopped.step
    assert run.manifest()["attempts"][-1]["exit_code"] == 143

    resumed = finetune(run.path, *flags, check=True)
    assert f"resuming from {stopped.path.name}" in resumed.stdout
    assert_bit_equal(run, reference)
    assert_verified(in_process, run)
    assert [a["exit_code"] for a in run.manifest()["attempts"]] == [143, 0]


def test_killed_run_continues(
    in_process: Finetune, finetune: Finetune, launch: Launch, uninterrupted: RunDirectory, tmp_path: Path
) -> None:
    """Kill -9 a rank, kill -9 the launcher, truncate a checkpoint: no batch is read twice or left out."""
    run, flags = RunDirectory(tmp_path / "run"), DIVISIONS["2 ranks x 4"]
    launched = launch(run.path, *flags)
    launched.until("step  1/12")
    ranks = launched.ranks()
    launched.until("step  5/12")
    hold(ranks[1])  # this pauses the run, but rank 0 still writes the checkpoint
    launched.until("saved step-00000004")
    ranks[1].kill()
    assert launched.end() == 128 + signal.SIGKILL, launched.output
    assert "error: rank 1 was ended by signal 9 (SIGKILL)\n" in launched.output
    assert_gone(ranks)
    newest, _ = newest_valid(run.checkpoints)
    assert newest is not None
    assert newest.step == 4

    launched = launch(run.path, *flags)
    launched.until("resuming from step-00000004")
    ranks = launched.ranks()
    launched.until("step  9/12")
    hold(ranks[1])
    launched.until("saved step-00000008")
    launched.process.kill()
    assert launched.end() == -signal.SIGKILL
    assert_gone(ranks)
    newest, _ = newest_valid(run.checkpoints)
    assert newest is not None
    assert newest.step == 8
    assert Record.open(run.record).batches == 8

    truncated = newest.model / "model.safetensors"
    size = truncated.stat().st_size
    os.truncate(truncated, size // 2)
    resumed = finetune(run.path, *flags, check=True)
    skipped = f"skipped a damaged checkpoint: {truncated}: {size // 2:,} bytes, the manifest says {size:,}\n"
    assert skipped in resumed.stdout
    assert "resuming from step-00000004\n" in resumed.stdout
    assert_bit_equal(run, uninterrupted)
    assert_verified(in_process, run)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [name_of(step) for step in SCHEDULE]
