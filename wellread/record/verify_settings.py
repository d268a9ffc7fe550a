"""Verify the settings of a run: manifest.json, config.yaml, plan.json and order.json against each other."""

from __future__ import annotations

import hashlib
from collections import Counter
from math import ceil
from typing import Any

import numpy as np

from wellread.config import RunConfig, TextConfig, to_dict
from wellread.corpus.read import Corpus
from wellread.files import array_header, read_json
from wellread.order.build import build
from wellread.order.inserted import plain
from wellread.order.permutation import ListedOrder, Order, steps_of
from wellread.order.spec import parse
from wellread.planning.plan import Plan
from wellread.planning.rate import warmup_steps
from wellread.planning.saving import save_steps
from wellread.planning.strategies import STRATEGIES
from wellread.record import verify_canaries, verify_marks
from wellread.record.findings import SHOWN, Findings
from wellread.run import CHECKSUM, MANIFEST, RunDirectory
from wellread.whole import read_whole

NOTES = {
    "version": int, "control": bool,
    "phases": [{"name": str, "order": str, "start": int, "stop": int}],
    "inserted": [{"tag": str, "sample_id": int, "batch_id": int, "slot": int}], "checksum": str,
}  # fmt: skip
"""Shape of order.json."""
SETTINGS = ("seq_len", "holdout", "holdout_seed", "max_bad_rows")
"""Settings of every corpus: without one, what follows from it could not be compared."""
IDS_AT_ONCE = 1 << 20
"""Sample ids of an order that are compared at once, so that the memory does not grow with the run."""


def check(findings: Findings, run: RunDirectory, manifest: dict[str, Any], corpus: Corpus | None) -> None:
    """Compare config.yaml, plan.json and the corpus with the identity of the run."""
    identity = manifest["identity"]
    findings.expect(run.manifest_file, "version", manifest.get("version"), 1)
    findings.expect_checksum(run.manifest_file, manifest)
    findings.expect_keys(run.manifest_file, dict.fromkeys(manifest), MANIFEST)
    with findings.reading(run.config_file):
        config = run.config()
        _check_bytes(findings, run)
        _check_config(findings, run, config, identity)
        if corpus:
            verify_canaries.check_config(findings, run.config_file, config, corpus)
            verify_marks.check_config(findings, run.config_file, config, corpus)
            registered = corpus.canaries.sha256 if corpus.canaries else None
            findings.expect(
                corpus.path / "corpus.json",
                "canaries.sha256",
                registered,
                identity["order"].get("canaries"),
                "manifest.json",
            )
            _check_settings(findings, corpus, config)
            findings.expect(
                corpus.path / "corpus.json",
                "settings.seq_len",
                corpus.meta["settings"].get("seq_len"),
                identity["seq_len"],
                "manifest.json",
            )
    with findings.reading(run.plan_file):
        plan = Plan.open(run.plan_file)
        findings.expect_checksum(run.plan_file, read_json(run.plan_file))
        _check_plan(findings, run, plan, identity, corpus)
        _check_plan_of(findings, run, plan, manifest)


def _check_settings(findings: Findings, corpus: Corpus, config: RunConfig) -> None:
    """The settings of the corpus are those of config.yaml; what is missing could not be compared."""
    settings, place = corpus.meta["settings"], corpus.path / "corpus.json"
    of_kind = ("packing", "long_stories") if isinstance(config.data, TextConfig) else ("loss_on",)
    required = (*SETTINGS, *of_kind) if "sets" in corpus.meta else ()  # corpora from before mixtures have fewer
    required += ("version", "sets", "tokenizer") if "checksum" in corpus.meta else ()
    findings.add(
        *(f"{place}: settings.{name} is missing; restore it from a copy" for name in required if name not in settings)
    )
    for name, value in vars(config.data).items():
        stored = settings.get(name)
        unused = name == "long_stories" and settings.get("packing") != "story"
        if name in settings and name not in ("seq_len", "metrics") and not isinstance(stored, dict):
            findings.expect(place, f"settings.{name}", stored, None if unused else value, "config.yaml")
    findings.expect(place, "settings.pack", settings.get("pack", False), corpus.packed, "its files")


def _check_bytes(findings: Findings, run: RunDirectory) -> None:
    """The last line of config.yaml is the hash of the lines above; in older files it is missing."""
    text, separator, last = read_whole(run.config_file).rpartition(CHECKSUM.encode())
    expected = hashlib.sha256(text).hexdigest()
    if separator and last != f"{expected}\n".encode():
        findings.add(f"{run.config_file}: sha256: {last[:80]!r}, expected {expected} (the lines above)")
    if not separator and (b"sha256" in last or b"lines above" in last):
        findings.add(f"{run.config_file}: its last line is damaged")


def _check_plan_of(findings: Findings, run: RunDirectory, plan: Plan, manifest: dict[str, Any]) -> None:
    """The plan is that of config.yaml; when a run has finished, also that of its last attempt."""
    config, machine = run.config(), plan.machine
    values: dict[str, tuple[object, object]] = {
        "order": (plan.order, config.schedule.order),
        "order_control": (plan.order_control, config.schedule.order_control),
        "nodes": (machine.nodes, config.cluster.nodes),
        "counts_exact": (plan.counts.exact, True),
        "engine": (plan.engine, STRATEGIES[plan.strategy].engine),
        "save_steps": (
            list(plan.save_steps), [*save_steps(plan.steps, config.save.save_every, config.save.save_schedule)]
        ),
    }  # fmt: skip
    if config.cluster.ranks_per_node != "auto":
        values["ranks_per_node"] = (machine.ranks_per_node, config.cluster.ranks_per_node)
    if config.cluster.micro_batch_size and not plan.failures:
        values["micro_batch_size"] = (plan.micro_batch_size, config.cluster.micro_batch_size)
    if config.cluster.strategy != "auto" and not plan.failures:
        values["strategy"] = (plan.strategy, config.cluster.strategy)
    findings.expect_all(run.plan_file, values, "config.yaml")
    last = manifest["attempts"][-1:]
    if any(each.get("exit_code") == 0 for each in last):
        fields = ("strategy", "ranks", "nodes", "ranks_per_node", "device", "cluster", "grad_accum_dtype")
        flat = plan.as_dict()
        copies = {name: (flat[name], last[0][name]) for name in fields if name in last[0]}
        findings.expect_all(run.plan_file, copies, "the last attempt in manifest.json")


def _check_config(findings: Findings, run: RunDirectory, config: RunConfig, identity: dict[str, Any]) -> None:
    schedule, order = config.schedule, identity["order"]
    values: dict[str, tuple[object, object]] = {
        "seed": (schedule.seed, identity["seed"]),
        "batch_size": (schedule.batch_size or identity["batch_size"], identity["batch_size"]),
        "seq_len": (config.data.seq_len or identity["seq_len"], identity["seq_len"]),
        "steps": (schedule.steps or identity["steps"], identity["steps"]),
        "dtype": (config.model.dtype, identity["dtype"]),
        **{flag: (getattr(config.model, flag), identity.get(flag, False)) for flag in ("tf32", "float8")},
        "optim": (to_dict(config.optim), identity["optim"]),
        "lora": (to_dict(config.lora) if config.lora.rank else None, identity.get("lora")),
        "freeze": (config.model.freeze or None, identity.get("freeze")),
        "pack": (config.data.pack, identity.get("pack", False)),
        "order": (parse(schedule.order).kind, order["kind"]),
    }
    in_pass = _pass_samples(run, config, identity)
    fresh = identity["model"].startswith("fresh:")
    if config.model.init == "fresh":
        values["init"] = ("fresh", "fresh" if fresh else "pretrained")
    if schedule.epochs and not schedule.steps:
        values["epochs"] = (steps_of(schedule.epochs, in_pass, identity["batch_size"]), identity["steps"])
    findings.expect_all(run.config_file, values, "manifest.json")
    listed = "ids" in order
    findings.expect(run.manifest_file, "identity.order.batch_size", order["batch_size"], identity["batch_size"])
    findings.expect(run.manifest_file, "identity.order.seed", order["seed"], identity["seed"])
    if listed:
        passes = "shuffle" if schedule.order_control or order["kind"] == "filter" else "sequential"
        findings.expect(run.config_file, "order_control", order["pass"], passes, "manifest.json")


def _pass_samples(run: RunDirectory, config: RunConfig, identity: dict[str, Any]) -> int:
    """Samples of one pass. The list of a control arm may have all readings of the run: then plan.json has the pass."""
    n: int = identity["order"]["n"]
    has_all = config.schedule.order_control and n == identity["steps"] * identity["batch_size"]
    return Plan.open(run.plan_file).counts.in_pass if has_all else n


def _check_plan(
    findings: Findings, run: RunDirectory, plan: Plan, identity: dict[str, Any], corpus: Corpus | None
) -> None:
    order, in_pass = identity["order"], _pass_samples(run, run.config(), identity)
    epochs = identity["steps"] * identity["batch_size"] / in_pass
    warmup = warmup_steps(identity["optim"]["warmup"], identity["steps"])
    older = ceil(identity["optim"]["warmup"] * identity["steps"])  # binary: one more for some fractions
    values: dict[str, tuple[object, object]] = {
        "batch_size": (plan.batch_size, identity["batch_size"]),
        "seq_len": (plan.seq_len, identity["seq_len"]),
        "steps": (plan.steps, identity["steps"]),
        "dtype": (plan.dtype, identity["dtype"]),
        "order": (parse(plan.order).kind, order["kind"]),
        "warmup_steps": (plan.warmup_steps, warmup if plan.warmup_steps != older else older),
        "epochs": (plan.epochs, round(epochs, 4)),
        "pass_samples": (plan.counts.in_pass, in_pass),
        "micro_batch_size": (plan.micro_batch_size * plan.accumulation * plan.ranks, plan.batch_size),
    }
    findings.expect_all(run.plan_file, values, "manifest.json")
    if corpus:
        counts: dict[str, tuple[object, object]] = {
            "samples": (plan.counts.samples, corpus.n),
            "trainable": (plan.counts.trainable, corpus.n_trainable),
            "sealed": (plan.counts.sealed, corpus.n - corpus.n_trainable),
        }
        if order["kind"] == "sorted":
            counts["pass_samples"] = (plan.counts.in_pass, corpus.n_ordinary)
        findings.expect_all(run.plan_file, counts, "the corpus")


def check_order(findings: Findings, run: RunDirectory, identity: dict[str, Any], order: Order, corpus: Corpus) -> None:
    """Compare the order with its identity and the corpus, and order.json with the order."""
    expected, inserted, order = identity["order"], order, plain(order)
    if isinstance(order, ListedOrder):
        header = array_header(order.ids)
        with open(run.order_file, "rb") as file:
            if file.read(len(header)) != header or run.order_file.stat().st_size != len(header) + order.ids.nbytes:
                findings.add(
                    f"{run.order_file}: its header or size is not that of {order.ids.dtype} [{len(order.ids)}]"
                )
        outside = _outside(order, corpus.n_ordinary)
        findings.add(*(f"{run.order_file}: row {i}: {corpus.why_not(int(order.ids[i]))}" for i in outside))
        findings.expect(run.manifest_file, "identity.order.n", expected["n"], len(order.ids), "order.npy")
    else:
        findings.expect(run.manifest_file, "identity.order.n", expected["n"], corpus.n_ordinary, "the corpus")
    if expected["kind"] in ("sorted", "filter") or (corpus.canaries and not isinstance(order, ListedOrder)):
        actual = build(run.config().schedule, corpus, expected).order  # made of the corpus only
    else:
        actual = inserted
    findings.expect(run.manifest_file, "identity.order", expected, actual.identity(), "the order")
    if expected["kind"] == "curriculum" or corpus.canaries:
        with findings.reading(run.order_notes):
            _check_notes(findings, run, identity, inserted)


def _outside(order: ListedOrder, n: int) -> list[int]:
    """The first rows of a list, at most five, whose sample is not 0 … n - 1; some rows at once."""
    rows: list[int] = []
    for start in range(0, len(order.ids), IDS_AT_ONCE):
        part = order.ids[start : start + IDS_AT_ONCE]
        rows += (start + np.flatnonzero((part < 0) | (part >= n))[:SHOWN]).tolist()
        order.release()
    return rows[:SHOWN]


def _times(order: Order, steps: int, sample_ids: list[int]) -> dict[int, int]:
    """How often batches 0 … steps - 1 read each of these samples; some batches at once."""
    ids = np.array(sorted(set(sample_ids)), dtype=np.int64)
    times, most = np.zeros(len(ids), dtype=np.int64), max(1, IDS_AT_ONCE // order.batch_size)
    for start in range(0, steps if len(ids) else 0, most):
        read = order.batches(start, min(steps, start + most)).ravel()
        places = np.minimum(np.searchsorted(ids, read), len(ids) - 1)
        times += np.bincount(places[ids[places] == read], minlength=len(ids))
        order.release()
    return dict(zip(ids.tolist(), times.tolist(), strict=True))


def _check_notes(findings: Findings, run: RunDirectory, identity: dict[str, Any], order: Order) -> None:
    """The phases follow each other; each insertion is where the order reads it, and every reading of it is listed."""
    notes, place, steps = read_json(run.order_notes, NOTES), run.order_notes, identity["steps"]
    findings.expect_checksum(place, notes)
    findings.expect_keys(place, notes, NOTES)
    control = run.config().schedule.order_control
    findings.expect_all(place, {"version": (notes["version"], 1), "control": (notes["control"], control)})
    start = 0
    for phase in notes["phases"]:
        findings.expect(place, f"phases: start of {phase['name']!r}", phase["start"], start)
        parse(phase["order"])
        start = phase["stop"]
    if not control and identity["order"]["kind"] == "curriculum":
        findings.expect(place, "phases: end of the last", start, steps, "steps in manifest.json")
    listed = [(each["batch_id"], each["slot"], each["sample_id"]) for each in notes["inserted"]]
    inside = [(batch, slot) for batch, slot, _ in listed if 0 <= batch < steps and 0 <= slot < order.batch_size]
    positions = np.array([batch * order.batch_size + slot for batch, slot in inside], dtype=np.int64)
    actual = dict(zip(inside, order.samples(positions).tolist(), strict=True))
    for batch_id, slot, sample_id in listed:
        expected = actual.get((batch_id, slot))
        findings.expect(place, f"inserted: batch {batch_id} slot {slot}", sample_id, expected, "the order")
    findings.expect(place, "inserted", listed, sorted(set(listed)), "each place once, in order of reading")
    n_listed = Counter(each[2] for each in listed)
    for sample_id, times in _times(order, steps, [*n_listed]).items():
        findings.expect(place, f"inserted: readings of sample {sample_id}", n_listed[sample_id], times, "the order")
