"""Kinds of tampering with entries, keys and types: something is added, or what a check needs is removed."""

from __future__ import annotations

import pyarrow

from support.tampering import (
    CHECKED,
    LISTED,
    LORA,
    PACKED,
    Kind,
    configured,
    copied,
    corpus_column,
    in_corpus,
    json_value,
    put,
    recorded,
    recorded_column,
    retyped,
    without_key,
    written,
)

CORPUS, MANIFEST = "corpus/corpus.json", "manifest.json"
PLAIN_WEIGHTS = ("finetune", "packed", "pretrain")
SHUFFLED = ("finetune", "packed", "lora")
PART = "record/part-*"
CONFIGURED = "step-00000000/model/config.json"
ENTRIES = [
    Kind(
        "a part is copied",
        "part-00000012-00000015.parquet: not listed",
        copied(PART, "record/part-00000012-00000015.parquet"),
    ),
    Kind(
        "the next part is a copy",
        "not listed in head.json",
        copied(PART, "record/part-00000006-00000009.parquet"),
        ("packed", "lora"),
    ),
    Kind(
        "the next part of a stopped run is a copy",
        "not listed in head.json",
        copied(PART, "record/part-00000010-00000012.parquet"),
        ("finetune", "pretrain"),
    ),
    Kind(
        "losses of sealed samples are added",
        "not listed in head.json",
        copied(PART, "record/sealed-00000099-00000099.parquet"),
    ),
    Kind("a hidden file of the record", "record/.x: not listed in head.json", written("record/.x")),
    Kind("a copy of head.json", "head.json.bak: not listed in head.json", written("record/head.json.bak")),
    Kind("an order of a run without one", "order.npy: is not a file of this run", written("order.npy"), SHUFFLED),
    Kind(
        "notes of a run without an order",
        "order.json: is not a file of this run",
        written("order.json", b"{}"),
        SHUFFLED,
    ),
    Kind("canaries outside the corpus", "canaries.parquet: is not a file of this run", written("canaries.parquet")),
    Kind("a copy of the manifest", "manifest.json.bak: is not a file of this run", written("manifest.json.bak")),
    Kind("a hidden copy of the plan", ".plan.json: is not a file of this run", written(".plan.json")),
    Kind("a checkpoint in the run", "step-00000009: is not a file of this run", written("step-00000009")),
    Kind("a part in the run", "is not a file of this run", written("part-00000000-00000008.parquet")),
    Kind("a hidden file of the checkpoints", ".x: is not a checkpoint", written("checkpoints/first/../.x")),
    Kind(
        "a hidden file with a checkpoint's name",
        ".step-00000009.tmp: is not",
        written("checkpoints/first/../.step-00000009.tmp"),
    ),
    Kind("a hidden file of the corpus", "corpus/.x: not listed in corpus.json", written("corpus/.x")),
]
"""Files that are added."""
KEYS = [
    Kind("no attempts", "attempts: is empty", json_value(MANIFEST, "attempts", [])),
    *(
        Kind(f"no {key} of an attempt", f"attempts[0].{key} is missing", without_key(MANIFEST, f"attempts.0.{key}"))
        for key in ("hosts", "device", "nodes", "ranks_per_node", "cluster", "strategy", "started")
    ),
    Kind("no exit code", "attempts[0].exit_code is missing", without_key(MANIFEST, "attempts.0.exit_code"), CHECKED),
    Kind("a key of an attempt is added", "attempts[0].more: is not a key", json_value(MANIFEST, "attempts.0.more", 1)),
    Kind("a key of the code is added", "code.more: is not a key", json_value(MANIFEST, "attempts.0.code.more", 1)),
    *(
        Kind(f"no {key} in the corpus", f"settings.{key} is missing", without_key(CORPUS, f"settings.{key}"))
        for key in ("holdout", "holdout_seed", "max_bad_rows")
    ),
    Kind("no loss_on in the corpus", "settings.loss_on is missing", without_key(CORPUS, "settings.loss_on"), SHUFFLED),
    Kind("no packing in the settings", "settings.packing is missing", without_key(CORPUS, "settings.packing"), LISTED),
    Kind("no pack in the settings", "settings.pack", without_key(CORPUS, "settings.pack"), PACKED),
    Kind("a key of the counts is added", "counts.more: is not a key", json_value(CORPUS, "counts.more", 1), CHECKED),
    Kind("a key of a data set is added", "sets[0].more: is not a key", json_value(CORPUS, "sets.0.more", 1)),
    Kind("a key of the tokenizer is added", "tokenizer.more: is not a key", json_value(CORPUS, "tokenizer.more", 1)),
    Kind("begin of sequence", "tokenizer.bos: 7", json_value(CORPUS, "tokenizer.bos", 7), LISTED),
    Kind("no begin of sequence", "tokenizer.bos is missing", without_key(CORPUS, "tokenizer.bos"), LISTED),
    Kind("no end of sequence", "tokenizer.eos is missing", without_key(CORPUS, "tokenizer.eos")),
    Kind("too few usable rows", ": usable 1, expected", json_value(CORPUS, "sets.0.usable", 1), ("packed", "lora")),
    Kind("no usable rows", "sets.0.usable is missing", without_key(CORPUS, "sets.0.usable"), CHECKED),
    Kind("no rows taken", "sets.0.taken is missing", without_key(CORPUS, "sets.0.taken")),
    Kind("no hashes of tables", "sha256 is missing", without_key(CORPUS, "sha256"), CHECKED),
    Kind("no bad rows", "bad_rows is missing", without_key(CORPUS, "bad_rows")),
    Kind("no metrics", "metrics is missing", without_key(CORPUS, "metrics"), LISTED),
]
"""Keys that are added, or that a check needs and that are removed."""
TYPES = [
    *(
        Kind(f"type of {name} in the record", f"type of {name}", recorded(retyped(name, pyarrow.int16())))
        for name in ("slot", "epoch", "n_targets", "step")
    ),
    Kind(
        "type of n_tokens in the corpus",
        "type of n_tokens",
        in_corpus("samples.parquet", retyped("n_tokens", pyarrow.int64())),
    ),
    Kind(
        "type of segments",
        "type of segment",
        in_corpus("segments.parquet", retyped("segment", pyarrow.int32())),
        PACKED,
    ),
    Kind("type of metrics", "type of words", in_corpus("metrics.parquet", retyped("words", pyarrow.float64())), LISTED),
    Kind("no document", "document: row 3: has no value", corpus_column("document", put(3, None))),
    Kind("no epoch of a row", "epoch: row 3: has no value", recorded_column("epoch", put(3, None))),
    Kind(
        "no document of a segment",
        "document: row 1: has no value",
        corpus_column("document", put(1, None), "segments.parquet"),
        PACKED,
    ),
    Kind("configuration of a checkpoint", CONFIGURED, configured("config.json", "rope_theta", 5.0), PLAIN_WEIGHTS),
    Kind(
        "configuration of the first checkpoint",
        CONFIGURED,
        configured("config.json", "hidden_act", "relu", "first"),
        PLAIN_WEIGHTS,
    ),
    Kind("configuration of an adapter", "adapter_config.json: r: ", configured("adapter_config.json", "r", 7), LORA),
]
"""Tables with other types or without values, and checkpoints with other configurations."""
