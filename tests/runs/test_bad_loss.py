"""A batch with a loss that is not finite: the run stops and names the samples, or skips the batch and notes that."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import Program

from eval.groups import Groups
from wellread.checkpoint import list_checkpoints, name_of
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.order.permutation import Order
from wellread.record.reader import Record
from wellread.run import RunDirectory

STEPS, BATCH_SIZE, BAD = 7, 8, 4
pytestmark = pytest.mark.slow
Train = Callable[..., Any]


@pytest.fixture(scope="module")
def poison(small_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus, int]:
    """A model with an infinite embedding of one token; the corpus; the only sample with that token, read by batch 4."""
    from safetensors.numpy import load_file, save_file

    from finetune.prepare import prepare

    config = RunConfig.of(model=str(small_model), data="sample", seq_len=96, corpora=str(corpora))
    corpus = Corpus.open(prepare(config))
    where = np.concatenate([np.full(len(corpus.tokens(i)), i) for i in range(corpus.n)])
    tokens = np.concatenate([corpus.tokens(i) for i in range(corpus.n)])
    order = Order(kind="shuffle", seed=0, n=corpus.n_trainable, batch_size=BATCH_SIZE)
    sample, token = next(
        (int(sample), int(token))
        for sample in order.batch(BAD)
        for token in corpus.tokens(int(sample))
        if set(where[tokens == token]) == {sample}
    )
    directory = tmp_path_factory.mktemp("poison") / "model"
    shutil.copytree(small_model, directory)
    weights = load_file(directory / "model.safetensors")
    weights["gpt_neox.embed_in.weight"][token] = np.inf
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory, corpus, sample


@pytest.fixture(scope="module")
def train(program: Program, poison: tuple[Path, Corpus, int], corpora: Path) -> Train:
    def run(out: Path, *flags: object) -> Any:
        sizes = ["--steps", STEPS, "--save_every", 3, "--keep_states", 9, "--batch_size", BATCH_SIZE, "--seq_len", 96]
        where = ["--model", poison[0], "--data", "sample", "--corpora", corpora, "--out", out]
        usual = ["--dtype", "fp32", "--ranks_per_node", 2, "--optim.lr", 1e-3, "--log_every", 1]
        return program("launch", "run", "finetune", *sizes, *where, *usual, *flags)

    return run


def description(corpus: Corpus, sample: int) -> str:
    row = corpus.samples().slice(sample, 1).to_pylist()[0]["rows"][0]
    return f"samples, largest loss first: {sample} (sample:{row}, loss nan), "


def test_run_stops_and_names_the_samples(train: Train, poison: tuple[Path, Corpus, int], tmp_path: Path) -> None:
    _, corpus, sample = poison
    result = train(tmp_path / "run", "--strategy", "zero2")
    assert result.returncode == 1
    line = next(line for line in result.stderr.splitlines() if line.startswith("error:"))
    assert f"batch {BAD}: loss is not finite (nan); the weights were not updated (--on_bad_loss skip" in line
    assert description(corpus, sample) in line
    assert line.count(", loss ") == BATCH_SIZE
    assert Record.open(tmp_path / "run/record").batches == 3  # as many as the last checkpoint


@pytest.fixture(scope="module")
def skipped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str]:
    out = tmp_path_factory.mktemp("skipped") / "run"
    result = train(out, "--on_bad_loss", "skip", "--strategy", "ddp", "--eval_every", 2)
    assert result.returncode == 0, result.stderr
    return RunDirectory(out), result.stdout


def test_a_skipped_batch_is_read_but_not_learned(
    in_process: Program, skipped: tuple[RunDirectory, str], poison: tuple[Path, Corpus, int]
) -> None:
    run, printed = skipped
    _, corpus, sample = poison
    assert f"skipped batch {BAD}: loss is not finite (nan); {description(corpus, sample)}" in printed
    record, checkpoints = Record.open(run.record), list_checkpoints(run.checkpoints)
    assert record.batches == STEPS
    assert record.skipped().tolist() == [BAD]
    assert {c.step: c.manifest["skipped"] for c in checkpoints} == {0: 0, 3: 0, 6: 1, 7: 1}
    losses = record.table(["loss"], (BAD, BAD + 1))["loss"].to_numpy()
    assert np.isnan(losses).sum() == 1  # its own; the other samples of the batch have losses
    result = in_process("eval", "verify", run.path)
    assert (result.returncode, result.stderr) == (0, "")

    groups = Groups.of(run, max_samples=10_000, seed=0).at(STEPS)
    bad = set(Order(kind="shuffle", seed=0, n=corpus.n_trainable, batch_size=BATCH_SIZE).batch(BAD).tolist())
    assert len(groups["read"]) == (STEPS - 1) * BATCH_SIZE
    assert not bad & set(groups["read"].tolist())
    text = in_process("eval", "read", run.path, "--batch", BAD, check=True).stdout
    assert "skipped: not learned from" in text
    assert in_process("eval", "report", run.path).returncode == 0


def test_verify_finds_a_manifest_that_hides_a_skip(
    in_process: Program, skipped: tuple[RunDirectory, str], tmp_path: Path
) -> None:
    shutil.copytree(skipped[0].path, tmp_path / "run", symlinks=True)
    (tmp_path / "run/corpus").unlink()
    (tmp_path / "run/corpus").symlink_to(skipped[0].corpus.resolve())
    manifest = tmp_path / "run/checkpoints/step-00000006/checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"skipped": 0}))
    result = in_process("eval", "verify", tmp_path / "run")
    assert result.returncode == 1
    assert "step-00000006: says 0 skipped batches, the record has 1 at this step" in result.stdout + result.stderr


@pytest.mark.long
def test_resuming_after_a_skip_is_bit_exact(train: Train, skipped: tuple[RunDirectory, str], tmp_path: Path) -> None:
    original = skipped[0]
    shutil.copytree(original.path, tmp_path / "run", symlinks=True)
    run = RunDirectory(tmp_path / "run")
    run.corpus.unlink()
    run.corpus.symlink_to(original.corpus.resolve())
    shutil.rmtree(run.checkpoints / name_of(STEPS))
    # Evaluations and generations during training do not change it.
    result = train(run.path, "--on_bad_loss", "skip", "--strategy", "ddp", "--generations", 0)
    assert "resuming from step-00000006" in result.stdout
    tables = [Record.open(r.record).table() for r in (original, run)]
    names = [name for name in tables[0].column_names if name != "loss"]
    assert tables[0].select(names).equals(tables[1].select(names))
    assert np.array_equal(*(table["loss"].to_numpy() for table in tables), equal_nan=True)
    ends = [(r.checkpoints / name_of(STEPS) / "model/model.safetensors").read_bytes() for r in (original, run)]
    assert ends[0] == ends[1]


def test_each_checkpoint_stores_generations_of_its_model(
    skipped: tuple[RunDirectory, str], poison: tuple[Path, Corpus, int]
) -> None:
    """For the first three sealed samples, on two ranks. TensorBoard has the same texts and their duration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from wellread.corpus.tokenizer import Tokenizer

    run, (_, corpus, _) = skipped[0], poison
    tokenizer = Tokenizer.load(corpus.tokenizer)
    events = EventAccumulator(str(run.tb)).Reload()
    for checkpoint in list_checkpoints(run.checkpoints):
        assert "generations.jsonl" in checkpoint.manifest["files"]
        rows = [json.loads(line) for line in (checkpoint.path / "generations.jsonl").read_text().splitlines()]
        assert [row["sample_id"] for row in rows] == [corpus.n_trainable + k for k in range(3)]
        for row in rows:
            tokens = [token for token in corpus.tokens(row["sample_id"]).tolist() if token != tokenizer.eos]
            assert tokenizer.decode(tokens) == row["prompt"] + row["reference"]
            assert row["prompt"].endswith("### Response:\n")
            assert row["generated"]
        text = next(t for t in events.Tensors("generations/1/text_summary") if t.step == checkpoint.step)
        assert rows[1]["reference"].splitlines()[0] in text.tensor_proto.string_val[0].decode()
    assert [event.step for event in events.Scalars("holdout/loss")] == [0, 2, 3, 4, 6, 7]
    assert [event.step for event in events.Scalars("train/skipped")] == [BAD + 1]
    assert BAD + 1 not in [event.step for event in events.Scalars("train/loss")]
    assert len(events.Scalars("speed/generation_seconds")) == 4
    padding = [event.value for event in events.Scalars("speed/padding")]
    assert all(0 <= value < 0.3 for value in padding)
    assert "speed/mfu" not in events.Tags()["scalars"]  # nothing is known of the peak of a CPU
