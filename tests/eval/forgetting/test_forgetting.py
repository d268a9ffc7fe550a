"""Forgetting of a run: its readings and cohorts, its table, and the runs that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.programs import Program

from eval.forgetting.evaluation import Forgetting
from eval.forgetting.needs import dropouts, no_dropout
from eval.forgetting.readings import Readings
from eval.groups import SEALED, UNREAD, Groups
from wellread.checkpoint import list_checkpoints
from wellread.files import sha256_file, with_checksum, write_json
from wellread.record.reader import Record
from wellread.results import Result, read
from wellread.run import RunDirectory
from wellread.scores import Scores

OLD = Path(__file__).resolve().parents[2] / "fixtures" / "run-c5af5a2"


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch, tiny_run: RunDirectory) -> None:
    """Replaces the models: at step t, a sample has loss 7 - t / 20 - id / 1000, and 0.25 less once it was read."""
    groups = Groups.of(tiny_run, 2000, 0)
    first = np.append(groups.first_read, np.full(groups.corpus.n - groups.corpus.n_trainable, 10**6))

    def scores_of(run: Any, checkpoint: Any, corpus: Any, ids: Any, *_: Any) -> Scores:
        loss = 7 - checkpoint.step / 20 - ids / 1000 - 0.25 * (first[ids] < checkpoint.step)
        n = np.full(ids.size, 4)
        return Scores(sample_id=ids, n_targets=n, log_likelihood=-loss * n)

    monkeypatch.setattr("eval.forgetting.evaluation.scores_of", scores_of)


def rewrite(run: RunDirectory, kind: str, loss: Any) -> None:
    """Replace recorded losses of parts or sealed files by ``loss(step of the weights, sample ids)``."""
    import pyarrow
    import pyarrow.parquet

    head = json.loads((run.record / "head.json").read_text())
    for entry in head[kind]:
        path = run.record / entry["name"]
        table = pyarrow.parquet.read_table(path)
        at = table["step"].to_numpy() if kind == "sealed" else table["batch_id"].to_numpy()
        values = loss(at, table["sample_id"].to_numpy()).astype(np.float32)
        table = table.set_column(table.column_names.index("loss"), "loss", pyarrow.array(values))
        pyarrow.parquet.write_table(table, path)
        entry["sha256"] = sha256_file(path)
    write_json(run.record / "head.json", with_checksum(head))


def cells(run: RunDirectory) -> dict[tuple[int, str, str], Result]:
    return {(r.step, r.group, r.metric): r for r in read(run.eval / "forgetting.parquet")}


@pytest.mark.usefixtures("exact")
def test_the_gain_of_reading_is_measured(copied_run: RunDirectory, in_process: Program) -> None:
    """Losses fall by a twentieth per step for all, and by a quarter by reading; between four points, f is a line."""
    for kind in ("parts", "sealed"):
        rewrite(copied_run, kind, lambda step, ids: 7 - step / 20 - ids / 1000)
    result = in_process("eval", "forgetting", copied_run.path)
    assert result.returncode == 0, result.stderr
    assert "sealed losses were measured at 4 steps only (0, 4, 8, 12): between them the curve is a gu" in result.stderr
    assert "step 12: scored; difference from sealed: read 0.2" in result.stderr
    values = cells(copied_run)
    groups = {step: {group for s, group, _ in values if s == step} for step in (0, 4, 12)}
    assert groups[0] == {UNREAD}
    assert groups[4] >= {"read", UNREAD, "age:0-10", "times:1", "batch:0-1"}
    assert groups[12] >= {"read", "age:0-10", "age:10-20", "times:1"}
    assert values[12, "age:10-20", "difference"].n == 3 * 16  # read in the batches 0, 1 and 2, so 12, 11 and 10 ago
    assert values[12, "read", "difference"].n == 12 * 16
    for (step, group, metric), each in values.items():
        if metric == "difference":  # the line in log(1 + step) is not the truth between the points
            assert each.value == pytest.approx(0.0 if group == UNREAD else 0.25, abs=0.06), (step, group)
    assert values[4, "batch:0-1", "difference"].value == pytest.approx(0.25, abs=1e-4)  # step 0 is a point
    read12, sealed = values[12, "read", "plain_difference"], Groups.of(copied_run, 2000, 0).at(12)[SEALED]
    ids = Groups.of(copied_run, 2000, 0).at(12)["read"]
    assert read12.value == pytest.approx(0.25 + (ids.mean() - sealed.mean()) / 1000)
    assert "Forgetting: what is left of a reading?" in (copied_run.path / "report" / "index.html").read_text()


def replace_sealed(run: RunDirectory, change: Any) -> None:
    """Replace each file of sealed losses by ``change(table)``."""
    import pyarrow.parquet

    for entry in json.loads((run.record / "head.json").read_text())["sealed"]:
        path = run.record / entry["name"]
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


@pytest.mark.usefixtures("exact")
def test_readings_far_from_measured_steps_are_named(copied_run: RunDirectory, in_process: Program) -> None:
    """Measured at 0, 9, 10, 11, 12: what the batches 1 to 8 have read is compared with a guess."""
    import pyarrow as pa

    def later(table: Any) -> Any:
        steps = {0: [0], 4: [9, 10], 8: [11], 12: [12]}[table["step"][0].as_py()]
        return pa.concat_tables(
            table.set_column(0, "step", pa.array([step] * len(table), pa.int64())) for step in steps
        )

    replace_sealed(copied_run, later)
    result = in_process("eval", "forgetting", copied_run.path, "--steps", 12)
    assert result.returncode == 0, result.stderr
    assert "warning: 128 of 192 first readings are far from any step at which sealed losses were m" in result.stderr


def test_only_documents_that_were_measured_are_compared(copied_run: RunDirectory) -> None:
    replace_sealed(copied_run, lambda table: table.slice(0, 40))  # the same 40 samples at each step
    groups, all_groups = Forgetting(copied_run).groups, Groups.of(copied_run, 2000, 0)
    measured = Record.open(copied_run.record).sealed()["sample_id"].to_numpy()
    documents = np.unique(all_groups.documents[measured])
    assert len(documents) == 40
    assert np.unique(groups.documents[groups.at(12)[SEALED]]).tolist() == documents.tolist()
    assert groups.at(12)["read"].tolist() == all_groups.at(12)["read"].tolist()


def test_skipped_batches_are_not_readings(copied_run: RunDirectory) -> None:
    import pyarrow
    import pyarrow.parquet

    head = json.loads((copied_run.record / "head.json").read_text())
    path = copied_run.record / head["parts"][0]["name"]
    table = pyarrow.parquet.read_table(path)
    skipped = table["batch_id"].to_numpy() == 2
    index = table.column_names.index("skipped")
    pyarrow.parquet.write_table(table.set_column(index, "skipped", pyarrow.array(skipped)), path)
    readings = Readings.of(copied_run, Groups.of(copied_run, 2000, 0))
    ids = table["sample_id"].to_numpy()
    assert (readings.batches[ids[skipped]] == -1).all()
    assert np.isnan(readings.losses[ids[skipped]]).all()
    assert (readings.batches[ids[~skipped]] == table["batch_id"].to_numpy()[~skipped]).all()
    assert (readings.losses[ids[~skipped]] == table["loss"].to_numpy()[~skipped]).all()


def test_cohorts_divide_the_read_samples(tiny_run: RunDirectory) -> None:
    groups = Groups.of(tiny_run, 2000, 0)
    readings = Readings.of(tiny_run, groups)
    cohorts = dict(readings.cohorts(groups, 12))
    for kind in ("batch:", "age:", "times:", "lr:"):
        members = [ids for name, ids in cohorts.items() if name.startswith(kind)]
        assert sorted(np.concatenate(members)) == groups.at(12)["read"].tolist(), kind
    assert len([name for name in cohorts if name.startswith("batch:")]) == 8
    (peak,) = [name for name in cohorts if name.endswith("-0.002")]
    assert (readings.rates[readings.batches[cohorts[peak]]] > 0.0016 * (1 - 1e-9)).all()
    assert dict(readings.cohorts(groups, 0)) == {}


def test_only_the_first_reading_counts(copied_run: RunDirectory) -> None:
    """A record in which batch 3 reads again what batch 0 has read."""
    import pyarrow
    import pyarrow.parquet

    head = json.loads((copied_run.record / "head.json").read_text())
    path = copied_run.record / head["parts"][0]["name"]
    table = pyarrow.parquet.read_table(path)
    ids = table["sample_id"].to_numpy().copy()
    ids[48:64] = ids[:16]
    index = table.column_names.index("sample_id")
    pyarrow.parquet.write_table(table.set_column(index, "sample_id", pyarrow.array(ids)), path)
    readings = Readings.of(copied_run, Groups.of(copied_run, 2000, 0))
    assert (readings.batches[ids[:16]] == 0).all()
    assert (readings.losses[ids[:16]] == table["loss"].to_numpy()[:16]).all()


# --- runs that are refused


def refusal(in_process: Program, run: Path, *flags: object) -> str:
    result = in_process("eval", "forgetting", run, *flags)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def test_a_run_of_an_older_version(in_process: Program) -> None:
    text = refusal(in_process, OLD / "finetune" / "run")
    assert "record: no losses of sealed samples (sealed-*.parquet); the run is of an older version, train again" in text


def test_losses_at_one_step_only(copied_run: RunDirectory, in_process: Program) -> None:
    head = json.loads((copied_run.record / "head.json").read_text())
    write_json(copied_run.record / "head.json", with_checksum(head | {"sealed": head["sealed"][:1]}))
    assert "losses of sealed samples at one step only; train further" in refusal(in_process, copied_run.path)


@pytest.mark.usefixtures("exact")
def test_documents_that_were_measured_once(copied_run: RunDirectory, in_process: Program) -> None:
    """A few documents per checkpoint, none of them twice: nothing says how their losses changed."""
    replace_sealed(copied_run, lambda table: table.slice(table["step"][0].as_py(), 4))
    text = refusal(in_process, copied_run.path)
    assert "record: hardly any sealed document was measured twice, so no change of their losses is known" in text


def test_a_packed_run(copied_run: RunDirectory, in_process: Program) -> None:
    values = yaml.safe_load(copied_run.config_file.read_text())
    copied_run.config_file.write_text(yaml.safe_dump(values | {"pack": True}))
    text = refusal(in_process, copied_run.path)
    assert "its samples are packed (--pack), and the record has one loss per packed sample" in text


def test_a_run_with_dropout(copied_run: RunDirectory, in_process: Program) -> None:
    for checkpoint in list_checkpoints(copied_run.checkpoints)[-1:]:
        path = checkpoint.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_dropout": 0.1}))
    text = refusal(in_process, copied_run.path)
    assert f"{copied_run.path}: trained with dropout (hidden_dropout 0.1), so its recorded losses are higher" in text


def test_dropout_of_adapters(tiny_run: RunDirectory, copied_run: RunDirectory, in_process: Program) -> None:
    no_dropout(tiny_run)
    values = yaml.safe_load(copied_run.config_file.read_text())
    values["lora"] |= {"rank": 4, "dropout": 0.05}
    copied_run.config_file.write_text(yaml.safe_dump(values))
    assert "trained with dropout (--lora.dropout 0.05)" in refusal(in_process, copied_run.path)


def test_which_settings_are_dropout() -> None:
    settings = {"resid_pdrop": 0.1, "attention_dropout": 0, "summary_first_dropout": 0.1, "classifier_dropout": None}
    assert dropouts(settings | {"hidden_size": 4, "drop_path": "no"}) == {"resid_pdrop": 0.1, "attention_dropout": 0.0}


def test_a_step_without_checkpoint(tiny_run: RunDirectory, in_process: Program) -> None:
    assert "no checkpoint at step 5; choose from 0, 4, 8, 12" in refusal(in_process, tiny_run.path, "--steps", 5)


def test_the_record_of_a_run_is_unchanged(tiny_run: RunDirectory) -> None:
    """The tests above write only copies."""
    assert Record.open(tiny_run.record).damaged_parts() == []
