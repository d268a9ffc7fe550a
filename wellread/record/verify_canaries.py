"""Verify the canaries of a corpus: their table against its hash and the samples, and their settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wellread.config import RunConfig
from wellread.config.canary import RANDOM
from wellread.corpus.canaries import COLUMNS, FILE, SET, Texts
from wellread.corpus.read import Corpus
from wellread.record.findings import Findings
from wellread.record.verify_tables import SAMPLES, check_names, pieces


def check(findings: Findings, corpus: Corpus) -> None:
    """Compare canaries.parquet with the registered hash, and the canaries with the samples of their set."""
    registered = corpus.canaries
    if registered is None:
        return
    place, meta = corpus.path / FILE, corpus.path / "corpus.json"
    check_names(findings, place, COLUMNS)
    texts = Texts.read(corpus.path)
    actual = texts.sha256(registered.seed)
    findings.expect(meta, "canaries.sha256", registered.sha256, actual, f"the canaries and controls in {FILE}")
    kinds = np.arange(len(texts.control)) >= registered.count
    findings.expect(place, "control", texts.control.tolist(), kinds.tolist(), "canaries in corpus.json")
    findings.expect(meta, "canaries.controls", registered.controls, int(kinds.sum()), FILE)
    repeats = np.concatenate([registered.doses, np.zeros(int(kinds.sum()), dtype=np.int64)])
    findings.expect(place, "repeats", texts.repeats.tolist(), repeats.tolist(), "canaries in corpus.json")
    ids = np.arange(corpus.n_ordinary, corpus.n_trainable)
    findings.add_rows(
        f"{place}: canary of sample {{}}: its tokens are not those of the sample",
        [
            i
            for i, tokens in zip(ids.tolist(), texts.sequences, strict=False)
            if not np.array_equal(corpus.tokens(i), tokens)
        ],
    )
    wrong: list[int] = []
    for start, table in pieces(corpus.path / SAMPLES):
        at = np.arange(start, start + len(table))
        is_canary = (at >= corpus.n_ordinary) & (at < corpus.n_trainable)
        wrong += at[(np.array(table["source"].to_pylist()) == SET) != is_canary].tolist()
    samples = f"{corpus.path / SAMPLES}: source: row {{}}: only the last trainable samples are of set {SET}"
    findings.add_rows(samples, wrong)
    table = corpus.samples(["rows"])
    rows = [row[0] if row else -1 for row in table["rows"].slice(corpus.n_ordinary, len(ids)).to_pylist()]
    findings.expect(place, "row", texts.rows[: len(ids)].tolist(), rows, "samples.parquet")
    described = corpus.meta["settings"].get("canaries", {})
    copies = {
        f"canaries.{name}": (corpus.meta["canaries"][name], described.get(name))
        for name in ("version", "seed", "per_dose", "repeats", "at")
    }
    findings.expect_all(meta, copies, "settings")
    expected = described.get("text")
    findings.expect(meta, "canaries.text", registered.text, expected, "settings")
    if expected == RANDOM:
        findings.expect(meta, "canaries.controls", registered.controls, described.get("controls"), "settings")


def check_config(findings: Findings, place: Path, config: RunConfig, corpus: Corpus) -> None:
    """Compare the settings of a run with the canaries of its corpus."""
    registered, canary = corpus.canaries, config.canary
    per_dose = registered.per_dose if registered else 0
    findings.expect(place, "canaries", canary.canaries, per_dose, "corpus.json")
    if registered and canary.canaries:
        findings.expect(place, "canary_repeats", list(canary.doses), list(registered.repeats), "corpus.json")
        findings.expect(place, "canary_at", canary.canary_at, registered.at, "corpus.json")
