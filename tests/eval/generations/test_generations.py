"""Texts of checkpoints: what is stored, what is measured, compared with computations that do not use the package."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sacrebleu
import torch
from support.spans import longest_span
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.__main__ import main
from eval.evaluate import evaluate
from eval.generations import metrics, prompts, sealed, texts, writing
from eval.generations.evaluation import Generations
from eval.generations.prompts import Prompt
from wellread.checkpoint import list_checkpoints
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.results import Result, read
from wellread.run import RunDirectory

SETTINGS: dict[str, Any] = {"prompts": 6, "new_tokens": 12, "max_samples": 10}
Written = tuple[RunDirectory, list[Result]]


def files(run: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.eval / "generations").glob("*.parquet"))}


def value(results: list[Result], step: int, group: str, metric: str) -> float:
    (result,) = [r for r in results if (r.step, r.group, r.metric) == (step, group, metric)]
    return result.value


# -- what is measured


def test_means_are_those_of_the_texts_on_disk(written: Written) -> None:
    run, results = written
    tokenizer = AutoTokenizer.from_pretrained(run.corpus / "tokenizer")
    corpus = Corpus.open(run.corpus)
    for step in (0, 4, 8, 12):
        rows = pq.read_table(run.eval / "generations" / f"step-{step:08d}.parquet").to_pylist()
        assert len(rows) == 12
        for method in ("greedy", "sampled"):
            texts = [row["text"] for row in rows if row["method"] == method]
            ids = [row["prompt_id"] for row in rows if row["method"] == method]
            references = []
            for i in ids:
                tokens, targets = corpus.tokens(i).tolist(), corpus.targets(i).tolist()
                first = targets.index(True)
                last = [*targets[first:], False].index(False) + first
                references.append(tokenizer.decode(tokens[first:last][:12], skip_special_tokens=True))
            words = [len(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower().replace("’", "'"))) for text in texts]
            assert value(results, step, method, "words") == pytest.approx(np.mean(words), rel=1e-6)
            grams = [[tuple(t.split()[i : i + 4]) for i in range(len(t.split()) - 3)] for t in texts]
            repeated = np.mean([1 - len(set(g)) / len(g) if g else 0 for g in grams])
            assert value(results, step, method, "repeated") == pytest.approx(repeated, abs=1e-12)
            bleu = sacrebleu.corpus_bleu(texts, [references]).score
            assert value(results, step, method, "corpus_bleu") == pytest.approx(bleu, abs=1e-9)
            chrf = [sacrebleu.sentence_chrf(t, [r]).score for t, r in zip(texts, references, strict=True)]
            assert value(results, step, method, "chrf") == pytest.approx(np.mean(chrf), abs=1e-9)


def test_bits_per_byte_by_brute_force(written: Written) -> None:
    """In float64, sample by sample, from the logits of all tokens."""
    run, results = written
    corpus, tokenizer = Corpus.open(run.corpus), AutoTokenizer.from_pretrained(run.corpus / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(run.checkpoints / "step-00000012" / "model").double()
    stored = pq.read_table(run.eval / "generations" / "sealed-step-00000012.parquet").to_pydict()
    assert len(stored["sample_id"]) == 10
    loss, n_targets, n_bytes = 0.0, 0, 0
    special = set(tokenizer.all_special_ids)
    for i in stored["sample_id"]:
        tokens = torch.tensor(corpus.tokens(i).astype(np.int64))
        with torch.no_grad():
            logp = model(tokens[None]).logits[0].log_softmax(-1)
        places = [p for p in np.flatnonzero(corpus.targets(i)).tolist() if int(tokens[p]) not in special]
        assert len(places) < corpus.targets(i).sum()  # the token that ends the sample is left out
        loss -= sum(float(logp[p - 1, tokens[p]]) for p in places)
        n_targets += len(places)
        n_bytes += len(tokenizer.decode(tokens[places]).encode())
    assert value(results, 12, "sealed", "bits_per_byte") == pytest.approx(loss / math.log(2) / n_bytes, rel=1e-5)
    assert value(results, 12, "sealed", "loss") == pytest.approx(loss / n_targets, rel=1e-5)
    assert value(results, 12, "sealed", "perplexity") == pytest.approx(math.exp(loss / n_targets), rel=1e-5)


def test_no_special_token_is_in_a_text(written: Written) -> None:
    run, _ = written
    tokenizer = AutoTokenizer.from_pretrained(run.corpus / "tokenizer")
    for path in (run.eval / "generations").glob("step-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            assert not any(token in row["text"] for token in tokenizer.all_special_tokens)
            assert tokenizer.eos_token_id not in row["tokens"][:-1]
            assert 1 <= len(row["tokens"]) <= 12


def test_repeated_by_hand() -> None:
    assert metrics.repeated("a b c") == 0
    assert metrics.repeated("a b c d") == 0
    assert metrics.repeated("a a a a a a") == pytest.approx(2 / 3)  # three 4-grams, one different
    assert metrics.repeated("one two three four one two three four") == pytest.approx(1 / 5)


def test_overlap_of_equal_and_different_texts() -> None:
    values = metrics.overlap(("the red ball is big", "no"), ("the red ball is big", "yes"))
    assert values["bleu"] == pytest.approx([100, 0])
    assert values["chrf"] == pytest.approx([100, 0])


@pytest.mark.parametrize("texts", [("a big red ball.", "no, no", ""), ("the ball", "yes", "it is")])
def test_overlap_is_that_of_sacrebleu_by_itself(texts: tuple[str, ...]) -> None:
    """References are prepared once for all checkpoints; that must not change what they give."""
    references = ("the red ball is big.", "yes, no", "it was")
    values, of_corpus = metrics.overlap(texts, references), metrics.corpus_overlap(texts, references)
    pairs = list(zip(texts, references, strict=True))
    assert values["bleu"].tolist() == [sacrebleu.sentence_bleu(text, [true]).score for text, true in pairs]
    assert values["chrf"].tolist() == [sacrebleu.sentence_chrf(text, [true]).score for text, true in pairs]
    assert of_corpus["corpus_bleu"] == sacrebleu.corpus_bleu(texts, [references]).score
    assert of_corpus["corpus_chrf"] == sacrebleu.corpus_chrf(texts, [references]).score


def test_the_longest_span_that_was_read_by_brute_force(copy_of_written: RunDirectory) -> None:
    run = copy_of_written
    assert main(["index", str(run.path)]) == 0
    results = evaluate(Generations(run, steps=[0, 12], **SETTINGS), progress=False)
    assert value(results, 0, "reference", "longest_read") == 0  # nothing was read
    corpus, special = Corpus.open(run.corpus), AutoTokenizer.from_pretrained(run.corpus / "tokenizer").all_special_ids
    ids = set(Record.open(run.record).table(columns=["sample_id"]).column("sample_id").to_pylist())
    read_tokens = [corpus.tokens(i).tolist() for i in ids]
    rows = pq.read_table(run.eval / "generations" / "step-00000012.parquet").to_pylist()
    for method in ("greedy", "sampled"):
        written_texts = [[t for t in row["tokens"] if t not in special] for row in rows if row["method"] == method]
        lengths = [longest_span(text, read_tokens) for text in written_texts]
        assert value(results, 12, method, "longest_read") == pytest.approx(np.mean(lengths))
    references = [prompt.reference[:12] for prompt in Generations(run, **SETTINGS).fixed_prompts]
    lengths = [longest_span([t for t in text if t not in special], read_tokens) for text in references]
    assert value(results, 12, "reference", "longest_read") == pytest.approx(np.mean(lengths))
    assert max(lengths) >= 4


# -- what is stored


def test_a_run_that_was_killed_writes_the_same_bytes(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, _ = written
    shutil.copytree(complete.path, tmp_path / "run", symlinks=False, ignore=shutil.ignore_patterns("eval"))
    run, calls = RunDirectory.open(tmp_path / "run"), [0]
    write = writing.write

    def killed(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # the second batch of sampled texts
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(writing, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Generations(run, steps=[0, 12], **SETTINGS), progress=False)
    assert [*files(run)] == ["step-00000000.parquet"]
    results = evaluate(Generations(run, steps=[0, 12], **SETTINGS), progress=False)
    assert calls[0] == 4 + 1 + 4  # only the missing batches
    assert len(files(run)) == 4
    assert files(run).items() <= files(complete).items()
    assert [r.value for r in results] == [r.value for r in written[1] if r.step in (0, 12)]


def test_a_second_call_runs_no_model(copy_of_written: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(writing, "write", fail)
    monkeypatch.setattr(sealed, "compute", fail)
    before = files(copy_of_written)
    evaluate(Generations(copy_of_written, **SETTINGS), progress=False)
    assert files(copy_of_written) == before
    with pytest.raises(AssertionError, match="the model ran"):
        evaluate(Generations(copy_of_written, **SETTINGS | {"seed": 1}), progress=False)


def test_a_fan_out(copy_of_written: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", "6", "--new_tokens", "12", "--max_samples", "10"]
    assert main(["parts", "generations", str(copy_of_written.path), *flags]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert [part[-2] for part in parts] == ["0", "4", "8", "12"]
    before = files(copy_of_written)
    (copy_of_written.eval / "generations" / "step-00000004.parquet").unlink()
    (copy_of_written.eval / "generations.parquet").unlink()
    assert main(parts[1]) == 0
    assert files(copy_of_written) == before
    assert not (copy_of_written.eval / "generations.parquet").exists()


def test_the_command(copy_of_written: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", "6", "--new_tokens", "12", "--max_samples", "10", "--steps", "0,12"]
    assert main(["generations", str(copy_of_written.path), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "step"
    assert {result.step for result in read(copy_of_written.eval / "generations.parquet")} == {0, 12}
    assert {result.step for result in Generations.of_kept(copy_of_written)} == {0, 4, 8, 12}


# -- prompts


def test_batches_have_prompts_of_similar_length_that_may_be_continued_equally_far() -> None:
    lengths = [3, 9, 5, 8, 4, 2, 7]
    sized = [Prompt(i, i, [1] * n, [1]) for i, n in enumerate(lengths)]
    groups = [
        (batch.number, batch.new_tokens, [len(prompt.tokens) for prompt in batch.prompts])
        for batch in prompts.batches(sized, 5, 12)
    ]
    assert groups == [(0, 5, [2, 3, 4, 5]), (1, 5, [7]), (2, 4, [8]), (3, 3, [9])]


def test_a_prompt_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(UserError, match="prompt of sample 7: 12 tokens, but the model has only 12 positions"):
        list(prompts.batches([Prompt(7, 7, [1] * 12, [1])], 5, 12))


def test_fewer_sealed_samples_than_prompts(written: Written) -> None:
    run, _ = written
    sealed_samples = Corpus.open(run.corpus).n - Corpus.open(run.corpus).n_trainable
    notes = list(Generations(run, prompts=10_000).notes())
    assert notes == [f"{sealed_samples:,} prompts instead of 10,000: no more samples are sealed"]


@pytest.mark.parametrize(("flag", "number", "least"), [("prompts", 1, 2), ("new_tokens", 0, 1), ("max_samples", 1, 2)])
def test_numbers_that_are_too_small(written: Written, flag: str, number: int, least: int) -> None:
    settings: dict[str, Any] = {flag: number}
    with pytest.raises(UserError, match=f"--{flag} {number}: must be at least {least}"):
        Generations(written[0], **settings)


# -- what saturation reads


def test_items_have_the_means_of_the_results(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    run, results = written
    (checkpoint,) = (each for each in list_checkpoints(run.checkpoints) if each.step == 8)
    items = {each.metric: each for each in Generations.items(run, checkpoint)}
    assert len(items) == 2 * 10 + 1
    assert items["greedy/words"].flags == "--prompts 6 --new_tokens 12 --seed 0"
    assert items["sealed/bits_per_byte"].flags == "--max_samples 10 --seed 0"
    assert list(Generations.of_kept(run)) == results
    for metric, each in items.items():
        group, name = metric.split("/")
        assert each.values.mean() == pytest.approx(value(results, 8, group, name), rel=1e-9)
    assert items["sealed/bits_per_byte"].ids.size == 10
    assert items["greedy/bleu"].ids.tolist() == items["sampled/words"].ids.tolist()


def test_items_of_other_weights_or_of_no_file_do_not_exist(copy_of_written: RunDirectory) -> None:
    first, last = (list_checkpoints(copy_of_written.checkpoints)[place] for place in (0, -1))
    shutil.copy(texts.path(copy_of_written, last), texts.path(copy_of_written, first))
    assert list(Generations.items(copy_of_written, first)) == []
    sealed.path(copy_of_written, last).unlink()
    assert list(Generations.items(copy_of_written, last)) == []
