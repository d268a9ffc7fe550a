"""A run with canaries: the dose that was read is found, the one that was not is not, and other samples stay random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest
from support.programs import Program

from eval.groups import Groups
from eval.randomness import Randomness
from wellread.corpus.read import Corpus
from wellread.files import read_json
from wellread.order.permutation import Order
from wellread.order.store import open_order
from wellread.record.verify import verify
from wellread.results import read
from wellread.run import RunDirectory

SETTINGS = [
    "--size", "64x2x4", "--data", "stories:1500", "--vocab", "512", "--seq_len", "64", "--batch_size", "32",
    "--steps", "170", "--optim.lr", "0.005", "--save_every", "170", "--generations", "0", "--snapshot", "off",
    "--ranks_per_node", "1", "--strategy", "ddp", "--then", "none",
]  # fmt: skip
CANARIES = ["--canaries", "32", "--canary_repeats", "0,16", "--canary_controls", "199", "--canary_at", "late"]


@pytest.mark.long
@pytest.mark.minutes(2)
def test_a_dose_that_was_read_is_found(program: Program, in_process: Program, corpora: Path, tmp_path: Path) -> None:
    """At 0 readings p-values are uniform, and by chance this fails for 1 of 1,000 seeds; the seeds are fixed."""
    path = tmp_path / "run"
    result = program(
        "wellread", "run", "pretrain", *SETTINGS, *CANARIES, "--out", path, "--corpora", corpora, check=True
    )
    assert "canaries: 512 readings, 9.41% of all, in place of other samples" in result.stdout
    run = RunDirectory.open(path)
    assert verify(run) == []
    in_process("wellread", "canaries", path, check=True)
    rows = read(run.eval / "canaries.parquet")
    at = {(r.step, r.task, r.group, r.metric): r for r in rows}
    share = at[170, "canaries/repeats_16", "all", "found"]
    print(f"found at 16 readings: {share.value:.0%} [{share.ci_low:.0%}, {share.ci_high:.0%}]")
    assert at[170, "canaries/repeats_16", "all", "p"].value <= 0.01
    for step, task in ((0, "canaries/repeats_16"), (0, "canaries/repeats_0"), (170, "canaries/repeats_0")):
        p = [r.value for r in rows if (r.step, r.task, r.metric) == (step, task, "p") and r.group[:6] == "sample"]
        assert len(p) == 32
        assert kstest(p, "uniform").pvalue > 0.001
        assert at[step, task, "all", "p"].value > 0.001
    _others_stay_random(run)


def _others_stay_random(run: RunDirectory) -> None:
    """The order is that of the same run without canaries, and displaced samples are in no comparison of times."""
    corpus, order = Corpus.open(run.corpus), open_order(run)
    base = Order(kind="shuffle", seed=0, n=corpus.n_ordinary, batch_size=32)
    actual, plain = order.batches(0, 170), base.batches(0, 170)
    changed = actual != plain
    assert changed.sum() == 512
    assert (actual[changed] >= corpus.n_ordinary).all()
    assert np.argwhere(changed)[:, 0].min() >= 170 - 57  # late: the last third
    random = Randomness.of(run)
    assert random.why_not(needs_one_draw=True) == ""
    inserted = {each["sample_id"] for each in read_json(run.order_notes)["inserted"]}
    assert {*random.selected.tolist()} == inserted | {*plain[changed].tolist()}
    groups = Groups.of(run, 10_000, 0).at(100)
    assert not {*range(corpus.n_ordinary, corpus.n_trainable)} & {*np.concatenate(list(groups.values())).tolist()}
    assert not {*plain[changed].tolist()} & {*groups["unread"].tolist()}
