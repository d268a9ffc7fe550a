"""The scripts in examples/ run, and print what their first lines promise."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from support.programs import ROOT

from wellread.run import RunDirectory


def example(*command: object, **variables: str) -> str:
    """Run an example from the top of the repository; return what it prints."""
    result = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_record_is_read_with_polars(tiny_run: RunDirectory) -> None:
    text = example(sys.executable, "examples/read_record.py", tiny_run.path, POLARS_FMT_MAX_ROWS="20")
    record = pl.read_parquet(tiny_run.record / "part-*.parquet")
    (epoch,) = record["epoch"].unique().to_list()
    mean = record["loss"].mean()
    assert f"│ {epoch}     ┆ {len(record)}      ┆ {record['sample_id'].n_unique()}     ┆ {mean:.6f}" in text
    counts = {"sealed": 146, "trainable": 518 - record["sample_id"].n_unique()}
    assert [f"{side:<9} ┆ {count}" in text for side, count in counts.items()] == [True, True]


def test_a_dry_run_prints_the_sbatch_file() -> None:
    text = example("examples/slurm_dry_run.sh")
    for option in ("--gres=gpu:a100:8", "--nodes=2", "--ntasks-per-node=8", "--mem=512000M", "--time=1440"):
        assert f"#SBATCH {option}\n" in text
    assert "16 ranks" in text


@pytest.mark.slow
def test_a_model_is_trained_and_asked(tmp_path: Path) -> None:
    text = example("examples/finetune_and_ask.sh", STEPS="4", RUN=str(tmp_path / "run"))
    assert "finished at step 4" in text
    assert "\nverified: 4 batches, " in text
