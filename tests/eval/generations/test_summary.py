"""The summary of saturation, all of its columns recomputed from the files on disk.

Texts are measured one by one, by `wellread.data.text_metrics` (whose values are tested elsewhere) and by sacrebleu.
Means, intervals and joins are made here with pandas, in another way than in the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import sacrebleu
from support.spans import longest_span
from transformers import AutoTokenizer

from eval.__main__ import main
from wellread.corpus.read import Corpus
from wellread.data import text_metrics
from wellread.files import read_json, write_json
from wellread.run import RunDirectory

pytestmark = pytest.mark.slow
STEPS = [0, 4, 8, 12]
NEW_TOKENS = 12
TEXT_METRICS = (*text_metrics.NAMES, "repeated", "longest_read")
OUTPUT = {
    "greedy": (*TEXT_METRICS, "bleu", "chrf", "corpus_bleu", "corpus_chrf"),
    "sampled": (*TEXT_METRICS, "bleu", "chrf", "corpus_bleu", "corpus_chrf"),
    "reference": TEXT_METRICS,
    "sealed": ("loss", "perplexity", "bits_per_byte"),
}
Numbers = dict[str, float]


class Disk:
    """What a run has on disk, read without the package's own readers of results."""

    def __init__(self, run: RunDirectory) -> None:
        self.folder, self.corpus = run.eval / "generations", Corpus.open(run.corpus)
        self.tokenizer = AutoTokenizer.from_pretrained(run.corpus / "tokenizer")
        self.documents = pd.read_parquet(run.corpus / "samples.parquet").set_index("sample_id")["document"]
        columns = ["batch_id", "sample_id", "loss", "n_targets"]
        self.record = pd.concat([pd.read_parquet(path, columns=columns) for path in run.record.glob("part-*.parquet")])

    def plain(self, tokens: list[int]) -> list[int]:
        return [token for token in tokens if token not in self.tokenizer.all_special_ids]

    def continuation(self, sample_id: int) -> list[int]:
        """The first targets of a sample, as many as a text may have tokens."""
        tokens, targets = self.corpus.tokens(sample_id).tolist(), self.corpus.targets(sample_id).tolist()
        first = targets.index(True)
        return list(tokens[first : [*targets[first:], False].index(False) + first][:NEW_TOKENS])

    def read_until(self, step: int) -> list[list[int]]:
        ids = self.record.loc[self.record["batch_id"] < step, "sample_id"].unique()
        return [self.corpus.tokens(int(i)).tolist() for i in ids]


def repeated(text: str) -> float:
    words = pd.Series(text.split(), dtype=object)
    grams = pd.Series([" ".join(words[i : i + 4]) for i in range(len(words) - 3)], dtype=object)
    return float(grams.duplicated().mean()) if len(grams) else 0.0


def with_interval(name: str, totals: pd.Series, sizes: pd.Series, documents: pd.Series) -> Numbers:
    """Ratio of sums with its documented interval: 1.96 cluster-robust errors, factor c / (c - 1).

    The error is that of the delta method for two sums over documents: (var(T) - 2 q cov(T, S) + q² var(S)) / mean(S)².
    A plain mean is the ratio whose sizes are 1.
    """
    sums = pd.DataFrame({"total": totals.to_numpy(float), "size": sizes.to_numpy(float)}).groupby(
        documents.to_numpy()
    ).sum()  # fmt: skip
    c, ratio = len(sums), sums["total"].sum() / sums["size"].sum()
    covariance = sums.cov(ddof=1)
    variance = covariance.at["total", "total"] + ratio * (
        ratio * covariance.at["size", "size"] - 2 * covariance.at["total", "size"]
    )
    error = math.sqrt(max(0.0, c * variance)) / sums["size"].sum()
    return {name: ratio, f"{name}_low": ratio - 1.96 * error, f"{name}_high": ratio + 1.96 * error}


def of_texts(disk: Disk, group: str, texts: pd.DataFrame, samples: list[list[int]]) -> Iterator[Numbers]:
    """Metrics of each text with their intervals; `texts` has a row per prompt: text, plain tokens and true text."""
    columns = pd.DataFrame(
        [
            dict(zip(text_metrics.NAMES, text_metrics.measure([text])[0].astype(float), strict=True))
            for text in texts.text
        ]
    )
    columns["repeated"] = [repeated(text) for text in texts.text]
    columns["longest_read"] = [longest_span(tokens, samples) for tokens in texts.tokens]
    if group != "reference":
        pairs = list(zip(texts.text, texts.true, strict=True))
        columns["bleu"] = [sacrebleu.sentence_bleu(text, [true]).score for text, true in pairs]
        columns["chrf"] = [sacrebleu.sentence_chrf(text, [true]).score for text, true in pairs]
        yield {
            f"{group}/corpus_bleu": sacrebleu.corpus_bleu(texts.text.tolist(), [texts.true.tolist()]).score,
            f"{group}/corpus_chrf": sacrebleu.corpus_chrf(texts.text.tolist(), [texts.true.tolist()]).score,
        }
    documents = disk.documents.loc[texts.prompt_id]
    for metric in columns:
        yield with_interval(f"{group}/{metric}", columns[metric], pd.Series(1.0, columns.index), documents)


def of_sealed(disk: Disk, step: int) -> Iterator[Numbers]:
    losses = pd.read_parquet(disk.folder / f"sealed-step-{step:08d}.parquet")
    documents = disk.documents.loc[losses.sample_id]
    loss = with_interval("sealed/loss", losses.loss, losses.n_targets, documents)
    yield loss
    yield {name.replace("loss", "perplexity"): math.exp(number) for name, number in loss.items()}
    yield with_interval("sealed/bits_per_byte", losses.loss / math.log(2), losses.n_bytes, documents)


def expected(disk: Disk, step: int) -> Numbers:
    rows = pd.read_parquet(disk.folder / f"step-{step:08d}.parquet").sort_values("prompt_id")
    references = {i: disk.continuation(i) for i in rows.prompt_id.unique()}
    true = {i: disk.tokenizer.decode(tokens, skip_special_tokens=True) for i, tokens in references.items()}
    rows["tokens"] = [disk.plain(list(tokens)) for tokens in rows.tokens]
    rows["true"] = rows.prompt_id.map(true)
    of_reference = pd.DataFrame(
        {"prompt_id": list(true), "text": list(true.values()), "tokens": [disk.plain(references[i]) for i in true]}
    )
    samples, numbers = disk.read_until(step), {}
    for method, texts in rows.groupby("method"):
        for each in of_texts(disk, str(method), texts, samples):
            numbers |= each
    for each in (*of_texts(disk, "reference", of_reference, samples), *of_sealed(disk, step)):
        numbers |= each
    return numbers


@pytest.fixture
def run(copy_of_written: RunDirectory) -> RunDirectory:
    """A run with an index, of which every two sealed samples are of one document."""
    path = copy_of_written.corpus / "samples.parquet"
    table = pq.read_table(path)
    place, documents = table.column_names.index("document"), table.column("document").to_numpy()
    sealed = table.column("split").to_pandas() == "sealed"
    documents = np.where(sealed, np.arange(len(documents)) // 2, documents)
    pq.write_table(table.set_column(place, table.schema.field(place), [documents]), path)
    meta = read_json(copy_of_written.corpus / "corpus.json")
    meta["sizes"]["samples.parquet"] = path.stat().st_size
    write_json(copy_of_written.corpus / "corpus.json", meta)
    assert main(["index", str(copy_of_written.path)]) == 0
    return copy_of_written


def test_every_output_column_is_that_of_the_files_on_disk(run: RunDirectory) -> None:
    assert main(["saturation", str(run.path), "--only", "greedy/words"]) == 0
    summary = pd.read_parquet(run.eval / "saturation" / "summary.parquet").set_index("step")
    assert summary.index.tolist() == STEPS
    written = [name for name in summary.columns if name != "tokens" and not name.startswith("read ")]
    names = {
        f"{group}/{metric}{end}"
        for group, metrics in OUTPUT.items()
        for metric in metrics
        for end in ("", *(("_low", "_high") if not metric.startswith("corpus_") else ()))
    }
    assert set(written) == names
    disk = Disk(run)
    prompts = pd.read_parquet(disk.folder / "step-00000012.parquet").prompt_id.unique()
    assert disk.documents.loc[prompts].nunique() < len(prompts)  # otherwise clusters are not tested
    for step in STEPS:
        numbers = expected(disk, step)
        assert set(numbers) == names
        for name, number in numbers.items():
            assert summary.loc[step, name] == pytest.approx(number, rel=1e-6, abs=1e-9), (step, name)


def test_every_input_column_is_that_of_record_and_metrics(copy_of_written: RunDirectory) -> None:
    """What was read, recomputed with pandas from the metrics of samples and the record."""
    run = copy_of_written
    assert main(["saturation", str(run.path), "--metrics", "--only", "greedy/words"]) == 0
    summary = pd.read_parquet(run.eval / "saturation" / "summary.parquet").set_index("step")
    metrics_of_samples = pd.read_parquet(run.eval / "saturation" / "metrics.parquet").set_index("sample_id")
    read_samples = Disk(run).record.join(metrics_of_samples, on="sample_id")
    for before, step in zip([0, 0, 4, 8], STEPS, strict=True):
        for span, start in (("interval", before), ("cumulative", 0)):
            rows = read_samples[(start <= read_samples["batch_id"]) & (read_samples["batch_id"] < step)]
            values = {name: rows[name].mean() for name in metrics_of_samples.columns}
            loss = (rows["loss"].astype(float) * rows["n_targets"]).sum() / max(1, rows["n_targets"].sum())
            values |= {"loss": loss, "perplexity": np.exp(loss)}
            columns = {name for name in summary.columns if name.startswith(f"read {span}/")}
            assert columns == {f"read {span}/{name}" for name in values}
            for name, number in values.items():
                value_of = summary.loc[step, f"read {span}/{name}"]
                assert np.isnan(value_of) if step == 0 else value_of == pytest.approx(number, rel=1e-5), (step, name)
