"""Read the record of a run with Polars: which samples were read how often, and how their losses fell.

    make ft                                                    # a run to read: runs/tiny-sample
    .venv/bin/python examples/read_record.py runs/tiny-sample

The record is plain Parquet, one row per sample and step: nothing of wellread is imported here. docs/formats.md
describes the columns.
"""

import sys
from pathlib import Path

import polars as pl

run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny-sample")
record = pl.scan_parquet(run / "record" / "part-*.parquet")
samples = pl.scan_parquet(run / "corpus" / "samples.parquet")

print("Loss by epoch (mean over readings, in nats per token):")
by_epoch = (
    record.group_by("epoch")
    .agg(pl.len().alias("readings"), pl.col("sample_id").n_unique().alias("samples"), pl.col("loss").mean())
    .sort("epoch")
)
print(by_epoch.collect())

print("The five samples that were still hardest at their last reading, and where their rows come from:")
last_reading = record.sort("step").group_by("sample_id").last()
hardest = (
    last_reading.join(samples, on="sample_id")
    .sort("loss", descending=True)
    .select("sample_id", "step", "loss", "source", "rows", "category")
    .head(5)
)
print(hardest.collect())

print("Samples that were never read, by side of the holdout:")
never_read = (
    samples.join(record, on="sample_id", how="anti").group_by(pl.col("split").cast(pl.String)).len().sort("split")
)
print(never_read.collect())
