"""Verify the marks of a corpus: their table against its hash, the coins, the texts and the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wellread.config import RunConfig
from wellread.corpus.holdout import is_sealed
from wellread.corpus.marks import COLUMNS, FILE, Marks, coin, has_marks
from wellread.corpus.read import Corpus
from wellread.record.findings import Findings
from wellread.record.verify_tables import check_names


def check(findings: Findings, corpus: Corpus) -> None:
    """Compare marks.parquet with the registered hash, its coins with their key, and its rows with the samples."""
    registered = corpus.marks
    if registered is None:
        return
    place, meta = corpus.path / FILE, corpus.path / "corpus.json"
    check_names(findings, place, COLUMNS)
    marks = Marks.read(corpus.path)
    actual = marks.sha256(registered.seed)
    findings.expect(meta, "marks.sha256", registered.sha256, actual, f"the places in {FILE}")
    findings.expect(meta, "marks.places", registered.places, len(marks.taken), FILE)
    findings.expect(meta, "marks.documents", registered.documents, len(np.unique(marks.document)), FILE)
    keys = zip(marks.document.tolist(), marks.place.tolist(), strict=True)
    first = [coin(registered.seed, *key) for key in keys]
    forms = list(zip(marks.taken, marks.left, marks.original, strict=True))
    wrong = [i for i, ((one, other, _), heads) in enumerate(zip(forms, first, strict=True)) if (one < other) != heads]
    findings.add_rows(f"{place}: taken: row {{}}: not the form that the coin of its place picks", wrong)
    wrong = [i for i, (one, other, original) in enumerate(forms) if original not in (one, other) or one == other]
    findings.add_rows(f"{place}: original: row {{}}: not one of two different forms", wrong)
    texts = zip(marks.text, marks.start.tolist(), marks.original, strict=True)
    wrong = [i for i, (text, start, form) in enumerate(texts) if not (start >= 0 and text.startswith(form, start))]
    findings.add_rows(f"{place}: text: row {{}}: does not have the original form at its start", wrong)
    _check_samples(findings, corpus, place, marks)
    settings = corpus.meta["settings"].get("marks", {})
    copies = {
        f"marks.{name}": (corpus.meta["marks"][name], settings.get(name))
        for name in ("version", "seed", "file", "pairs")
    }
    findings.expect_all(meta, copies, "settings")
    share, seed = settings.get("share", 1), settings.get("share_seed", 0)
    wrong = [i for i, document in enumerate(marks.document.tolist()) if not has_marks(document, share, seed)]
    findings.add_rows(f"{place}: document: row {{}}: not among those that have marks", wrong)


def _check_samples(findings: Findings, corpus: Corpus, place: Path, marks: Marks) -> None:
    """Rows are by sample id, and a place is in a sample of the side of its document."""
    ids, settings = marks.sample_id, corpus.meta["settings"]
    outside = (ids < 0) | (ids >= corpus.n) | ((ids >= corpus.n_ordinary) & (ids < corpus.n_trainable))
    outside[1:] |= np.diff(ids) < 0
    findings.add_rows(
        f"{place}: sample_id: row {{}}: not an ordinary sample, or not in order", np.flatnonzero(outside).tolist()
    )
    if {"holdout", "holdout_seed"} <= settings.keys():
        of = {
            each: is_sealed(each, settings["holdout"], settings["holdout_seed"]) for each in {*marks.document.tolist()}
        }
        sealed = np.array([of[each] for each in marks.document.tolist()], dtype=np.bool_)
        wrong = sealed != (ids >= corpus.n_trainable)
        findings.add_rows(
            f"{place}: sample_id: row {{}}: not a sample of the side of its document", np.flatnonzero(wrong).tolist()
        )


def check_config(findings: Findings, place: Path, config: RunConfig, corpus: Corpus) -> None:
    """Compare the settings of a run with the marks of its corpus."""
    registered = corpus.marks
    name = Path(config.data.marks).name if config.data.marks else None
    findings.expect(place, "marks", name, registered.file if registered else None, "corpus.json")
    if registered:
        findings.expect(place, "marks_seed", config.data.marks_seed, registered.seed, "corpus.json")
        share = corpus.meta["settings"].get("marks", {}).get("share", 1)
        findings.expect(place, "marks_share", config.data.marks_share, share, "corpus.json")
