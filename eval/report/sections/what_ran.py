"""Section: what ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.report.facts import Facts
from eval.section import Section

TEMPLATE = Path(__file__).with_name("what_ran.html.j2")


def section(facts: Facts, before: Sequence[Section]) -> Section:
    """Model, data, plan and head of the record."""
    record, read = facts.record, facts.read
    skipped = record.skipped().size
    return Section(
        heading="What ran",
        n=f"{record.batches:,} batches{f', of which {skipped:,} were skipped,' * (skipped > 0)} and {read.readings:,} "
        f"readings of {read.samples:,} samples in the record.",
        help="The record was computed from the tensors that entered the model; wellread verify recomputes its hashes.",
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={"summary": _summary(facts)},
    )


def _summary(facts: Facts) -> dict[str, str]:
    from wellread.planning.plan import Plan

    run, read, checkpoints = facts.run, facts.read, facts.checkpoints
    config, plan = run.config(), Plan.open(run.plan_file)
    machine, ranks = plan.machine, f"{plan.ranks} rank{'s' * (plan.ranks > 1)}"
    last = checkpoints[-1] if checkpoints else None
    return {
        "model": config.model.name,
        "data": f"{config.data.name}, {config.data.holdout:g} of its documents sealed{', packed' * config.data.pack}",
        "steps": f"{facts.record.batches:,} of {plan.steps:,}",
        "samples read": f"{read.samples:,} of {plan.counts.trainable:,} trainable, {read.readings:,} readings",
        "tokens read": f"{last.tokens:,} at step {last.step:,}" if last else "no checkpoint",
        "batch": f"{plan.batch_size} = {plan.micro_batch_size} × {plan.accumulation} accumulated × {ranks}",
        "strategy": f"{plan.strategy}, {plan.dtype}: {plan.strategy_reason}",
        "ranks": f"{ranks} on {machine.nodes} node{'s' * (machine.nodes > 1)} ({machine.cluster}, {machine.device})",
        "sequence length": f"{plan.seq_len:,} tokens",
        "learning rate": f"{config.optim.lr}",
        "seed": str(config.schedule.seed),
        "record head": facts.record.head,
    }
