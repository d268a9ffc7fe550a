"""Pretraining end to end: plan, train on one rank and two, sample, export; bad input."""

import io
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import Program

from launch.job import Job
from launch.options import LaunchOptions
from wellread.checkpoint import list_checkpoints
from wellread.config import PretrainConfig, RunConfig, TextConfig
from wellread.config.flat import keys_of
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.models.directories import fingerprint
from wellread.models.registry import find
from wellread.planning.plan import Plan
from wellread.recipes.registry import handed_over, received
from wellread.record.reader import Record
from wellread.run import RunDirectory

STORIES = "--size 32x2x4x2 --data stories:400 --vocab 512 --seq_len 48 --batch_size 8 --dtype fp32 --optim.lr 3e-3"


RANKS = {"one": (1, "ddp"), "ddp": (2, "ddp"), "zero1": (2, "zero1")}


@pytest.fixture(scope="module")
def run_of(program: Program, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDirectory]:
    """The same pretraining on one rank and on two, with two strategies; each runs when it is first asked for."""
    folder = tmp_path_factory.mktemp("pretrain")

    @cache
    def run(name: str) -> RunDirectory:
        ranks, strategy = RANKS[name]
        flags = f"{STORIES} --steps 40 --ranks_per_node {ranks} --strategy {strategy} --out {folder / name}".split()
        program("launch", "run", "pretrain", *flags, "--corpora", corpora, "--generations", 1, check=True)
        return RunDirectory.open(folder / name)

    return run


@pytest.mark.long
@pytest.mark.slow
def test_any_ranks_and_strategies_read_the_same_batches(
    run_of: Callable[[str], RunDirectory], in_process: Program
) -> None:
    runs = {name: run_of(name) for name in RANKS}
    records = {name: Record.open(run.record) for name, run in runs.items()}
    heads = {name: list_checkpoints(run.checkpoints)[-1].head for name, run in runs.items()}
    assert len(set(heads.values())) == 1
    losses = {name: record.table().column("loss").to_numpy() for name, record in records.items()}
    assert np.abs(losses["one"] - losses["ddp"]).max() < 2e-4
    assert np.abs(losses["one"] - losses["zero1"]).max() < 2e-4
    first, last = losses["one"][:8].mean(), losses["one"][-40:].mean()
    assert abs(first - np.log(512)) < 0.1  # uniform at the start
    assert last < first - 1
    in_process("eval", "verify", runs["zero1"].path, check=True)


@pytest.mark.slow
def test_files_of_a_pretraining(run_of: Callable[[str], RunDirectory]) -> None:
    run = run_of("ddp")
    config, plan, corpus = run.config(), Plan.open(run.plan_file), Corpus.open(run.corpus)
    assert isinstance(config, PretrainConfig)
    assert (config.data.vocab, config.data.packing, config.optim.weight_decay, config.optim.min_lr) == (
        "512",
        "stream",
        0.1,
        0.0,
    )
    checkpoints = list_checkpoints(run.checkpoints)
    assert [checkpoint.step for checkpoint in checkpoints] == [0, 1, 2, 4, 8, 16, 32, 40] == list(plan.save_steps)
    holdout = [checkpoint.manifest["holdout_loss"] for checkpoint in checkpoints]
    assert abs(holdout[0] - np.log(512)) < 0.1
    assert holdout[-1] < holdout[0] - 1
    assert 0.05 < 1 - corpus.n_trainable / corpus.n < 0.15
    written = json.loads((checkpoints[-1].path / "generations.jsonl").read_text().splitlines()[0])
    assert written["sample_id"] == corpus.n_trainable
    assert written["prompt"]
    saved = json.loads((checkpoints[-1].model / "config.json").read_text())
    assert (saved["vocab_size"], saved["max_position_embeddings"], saved["num_key_value_heads"]) == (512, 48, 2)
    assert (checkpoints[-1].model / "tokenizer.model").read_bytes() == (
        corpus.tokenizer / "tokenizer.model"
    ).read_bytes()


@pytest.mark.slow
def test_sampling_and_exporting(run_of: Callable[[str], RunDirectory], in_process: Program, tmp_path: Path) -> None:
    run = run_of("ddp").path
    text = in_process(
        "pretrain", "sample", run, "Once upon a time", "--temperature", 0, "--tokens", 20, check=True
    ).stdout
    assert text.startswith("Once upon a time")
    assert text != in_process("pretrain", "sample", f"{run}@step-0", "Once", "--tokens", 20, check=True).stdout
    result = in_process("pretrain", "export", f"{run}@step-40", "--format", "llama2c-v0", "--out", tmp_path / "m.bin")
    assert result.returncode == 0, result.stderr
    header = np.frombuffer((tmp_path / "m.bin").read_bytes()[:28], dtype="<i4")
    assert header.tolist() == [32, 96, 2, 4, 2, 512, 48]
    assert (tmp_path / "tokenizer.bin").exists()


@pytest.mark.long
@pytest.mark.slow
def test_continued_training_uses_the_vocabulary_of_the_model(
    run_of: Callable[[str], RunDirectory], program: Program, corpora: Path, tmp_path: Path
) -> None:
    model = list_checkpoints(run_of("ddp").checkpoints)[-1].model
    text = tmp_path / "mine.txt"
    text.write_text("\n<|endoftext|>\n".join(f"The boy number {i} ran home." for i in range(80)))
    flags = f"--data {text} --seq_len 32 --steps 2 --batch_size 4 --dtype fp32 --out {tmp_path / 'run'}".split()
    program("launch", "run", "pretrain", "--model", model, *flags, "--corpora", corpora, check=True)
    run = RunDirectory.open(tmp_path / "run")
    ids = Corpus.open(run.corpus).tokenizer / "tokenizer.model"
    assert ids.read_bytes() == (model / "tokenizer.model").read_bytes()
    first = list_checkpoints(run.checkpoints)[0].model
    assert fingerprint(find(str(first))) == fingerprint(find(str(model)))
    result = program("launch", "plan", "pretrain", "--model", model, *flags, "--vocab", "600", "--corpora", corpora)
    assert result.returncode == 2
    assert (
        "--vocab 600: has 600 tokens, but model has 512; leave it out to use the vocabulary of the model"
        in result.stderr
    )


@pytest.mark.long
@pytest.mark.slow
def test_compiled_layers_learn_the_same(program: Program, corpora: Path, tmp_path: Path) -> None:
    losses = {}
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        flags = f"{STORIES} --steps 6 --save_every 6 --out {tmp_path / name} --generations 1".split()
        program("launch", "run", "pretrain", *flags, *more, "--corpora", corpora, check=True)
        run = RunDirectory.open(tmp_path / name)
        losses[name] = Record.open(run.record).table().column("loss").to_numpy()
        holdout = list_checkpoints(run.checkpoints)[-1].manifest["holdout_loss"]
        losses[name] = np.append(losses[name], holdout)
    assert not np.array_equal(losses["plain"], losses["compiled"])  # other kernels, so it was compiled
    assert np.abs(losses["plain"] - losses["compiled"]).max() < 1e-4
    result = program("launch", "plan", "pretrain", "--compile", "--strategy", "zero1")
    assert (result.returncode, "--compile: works only with ddp" in result.stderr) == (2, True)


@pytest.mark.long
@pytest.mark.slow
def test_stories_sorted_by_a_metric(program: Program, corpora: Path, tmp_path: Path) -> None:
    flags = f"{STORIES} --steps 6 --metrics --packing story --order sorted:words:desc --out {tmp_path / 'run'}".split()
    program("launch", "run", "pretrain", *flags, "--corpora", corpora, "--generations", 0, check=True)
    run = RunDirectory.open(tmp_path / "run")
    words = Corpus.open(run.corpus).metric("words")
    read = Record.open(run.record).table().column("sample_id").to_numpy()
    assert len(read) == 48
    assert (np.diff(words[read]) <= 0).all()
    assert words[read].min() >= np.sort(words[: Corpus.open(run.corpus).n_trainable])[::-1][47]


def test_sizes_by_number() -> None:
    spec = find("stories-128x4x8x2")
    assert (spec.width, spec.layers, spec.heads, spec.kv_heads, spec.intermediate) == (128, 4, 8, 2, 352)
    assert (spec.family, spec.fresh, spec.tied) == ("llama", True, True)
    for name, reason in {
        "stories-130x4x8": "8 heads do not divide the width 130; choose a multiple of 8",
        "stories-128x4x8x3": "3 heads of keys and values do not divide 8 heads",
        "stories-24x1x8": "rotary embedding needs heads of even width, not 3;",
        "stories-0x1x8": "sizes must not be 0; write stories-WIDTHxLAYERSxHEADS, e.g. stories-288x6x6",
    }.items():
        with pytest.raises(UserError, match=re.escape(f"--model {name}: {reason}")):
            find(name)


def test_the_fresh_model_has_the_vocabulary_and_the_positions_of_its_corpus(tmp_path: Path) -> None:
    def job(**settings: Any) -> Job:
        return Job.resolve(PretrainConfig.of(corpora=str(tmp_path), **settings), LaunchOptions())

    spec = job(model="stories-15m", seq_len=512).spec
    assert (spec.vocab, spec.positions) == (4096, 512)
    spec = job(model="stories-260k").spec
    assert (spec.vocab, spec.positions) == (512, 512)
    assert job().planned().model == "stories-15m"
    assert str(job().run.path) == "runs/stories-15m-stories"


def test_settings_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig.of(vocab="600", packing="story", order="sequential", out=str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO(handed_over(config)))
    assert received("pretrain") == config
    run = RunDirectory(tmp_path)
    for written in (config, RunConfig.of(out=str(tmp_path))):
        run.write_config(written)
        assert run.config() == written
    with pytest.raises(
        UserError, match="--template dolly: is a setting for instructions, not for stories; leave it out"
    ):
        PretrainConfig.of(template="dolly")
    assert set(TextConfig.unused) < keys_of(RunConfig).keys()


BAD = {
    "--size 100x2x3": "--model stories-100x2x3: 3 heads do not divide the width 100; choose a multiple of 3",
    "--size 16M": "--size 16M: choose 260K, 15M, 42M, 110M, or WIDTHxLAYERSxHEADS, e.g. 128x4x4",
    "--size 15M --model stories-42m": "--size 15M: --model stories-42m is also set; leave one of them out",
    "--pack": "--pack True: is a setting for instructions, not for stories; leave it out",
    "--model pythia-70m": "--model pythia-70m: pretraining can only continue a model in a directory",
    "--data dolly": "--data dolly: dolly is not raw text; use it with wellread run finetune",
    "--vocab 200": "--vocab 200:",
    "--vocab 30000 --data stories:100": "--vocab 30000:",
    "--packing story --data TMP/one.txt": "TMP/one.txt: contains no <|endoftext|>, so its stories cannot be separated",
    "--data TMP/latin.txt": "TMP/latin.txt",
    "--data TMP/empty.jsonl": "TMP/empty.jsonl row 2: empty story",
    "--order file:TMP/ids.npy --data stories:100 --vocab 512": "--order file:TMP/ids.npy:",
    "--order sorted:words:asc --data stories:100 --vocab 512": "--order sorted:words:asc",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input(in_process: Program, tmp_path: Path, flags: str) -> None:
    (tmp_path / "one.txt").write_text("One story alone, and no end of it.")
    (tmp_path / "latin.txt").write_bytes(b"A caf\xe9 of stories.\n<|endoftext|>\nAnother one.")
    (tmp_path / "empty.jsonl").write_text('{"text": "A story."}\n{"text": " "}\n')
    np.save(tmp_path / "ids.npy", np.array([0, 1, 999_999]))
    arguments = flags.replace("TMP", str(tmp_path)).split()
    where = ["--out", tmp_path / "run", "--corpora", tmp_path / "corpora", "--steps", 1]
    result = in_process("launch", "run", "pretrain", *arguments, *where)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert BAD[flags].replace("TMP", str(tmp_path)) in line
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("corpora/.*.building"))
