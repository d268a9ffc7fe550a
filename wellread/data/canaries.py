"""Draw the canaries of a corpus and their controls, and add them to a corpus that is being compiled."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.config import RunConfig
from wellread.config.canary import FEWEST_CONTROLS, RANDOM, CanaryConfig
from wellread.corpus.canaries import SET, VERSION, Registration, Texts, random_texts
from wellread.corpus.holdout import document_id
from wellread.corpus.shards import Sample, Shard, write_shard
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.files import sha256_file
from wellread.text_io import Parser, read_text

SHARD = "shards/canaries.npz"
"""The last of the shards, by its name."""
Encode = Callable[[list[str]], Sequence[Sequence[int]]]
"""Tokens of complete texts, as they would be read as documents."""
Measure = Callable[[Sequence[NDArray[np.uint32]]], NDArray[np.float32]]
"""Text metrics of samples, (samples, metrics), from their tokens."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What canaries add to the settings of a corpus; nothing without canaries.

    Raises
    ------
    UserError
        When the file of texts cannot be read.
    """
    canary = config.canary
    if not canary.canaries:
        return {}
    if canary.canary_text == RANDOM:
        text: dict[str, Any] = {"text": RANDOM, "tokens": canary.tokens, "controls": canary.controls}
    else:
        path = _file(canary)
        text = {"text": path.name, "content": sha256_file(path)}
    draw = {"per_dose": canary.canaries, "repeats": list(canary.doses), "at": canary.canary_at}
    return {"canaries": {"version": VERSION, "seed": config.data.holdout_seed, **draw, **text}}


def planned(config: RunConfig) -> Registration | None:
    """The registration as far as the settings say; None without canaries.

    Raises
    ------
    UserError
        When the file of texts cannot be read.
    """
    canary = config.canary
    if not canary.canaries:
        return None
    return Registration(
        version=VERSION,
        seed=config.data.holdout_seed,
        text=RANDOM if canary.canary_text == RANDOM else _file(canary).name,
        per_dose=canary.canaries,
        repeats=canary.doses,
        controls=canary.controls,
        at=canary.canary_at,
        sha256="",
    )


def refuse_name(config: RunConfig, names: Sequence[str]) -> None:
    """Raise UserError when a data set has the name of the set of canaries."""
    if config.canary.canaries and SET in names:
        raise UserError(f"--data {SET}: is the name of the set of --canaries; give it another name: NAME@PATH")


def add(
    build: Path, config: RunConfig, set_id: int, tokenizer: Tokenizer, encode: Encode, measure: Measure | None = None
) -> dict[str, Any]:
    """Draw canaries and controls, write them to the build, and return what corpus.json says about them.

    Parameters
    ----------
    set_id : int
        Index of their data set.
    measure : callable, optional
        Measures the text metrics that the other samples have.

    Returns
    -------
    dict
        `canaries`, or nothing without canaries.

    Raises
    ------
    UserError
        When the file of texts cannot be used, or a text is longer than a window.
    """
    plan = planned(config)
    if plan is None:
        return {}
    draw = _random if plan.text == RANDOM else _from_file
    texts = draw(config, tokenizer, encode)
    texts.write(build)
    (build / SHARD).parent.mkdir(exist_ok=True)
    samples = [_sample(texts, i, set_id) for i in np.flatnonzero(~texts.control).tolist()]
    metrics = measure([texts.sequences[i] for i in range(len(samples))]) if measure else None
    write_shard(build / SHARD, Shard(samples, metrics=metrics))
    registered = replace(plan, controls=int(texts.control.sum()), sha256=texts.sha256(plan.seed))
    return {"canaries": registered.as_dict()}


def _sample(texts: Texts, number: int, set_id: int) -> Sample:
    tokens = texts.sequences[number]
    return Sample(
        tokens=tokens,
        spans=[(1, len(tokens))],
        document=document_id(f"{SET} {tokens.tolist()}"),
        sealed=False,
        set_id=set_id,
        row=int(texts.rows[number]),
        category="",
    )


def _random(config: RunConfig, tokenizer: Tokenizer, encode: Encode) -> Texts:
    canary = config.canary
    count = canary.canaries * len(canary.doses)
    vocabulary = _ordinary(tokenizer)
    texts = random_texts(config.data.holdout_seed, vocabulary, count + canary.controls, canary.tokens)
    return _arranged(canary, texts[:count], texts[count:], np.arange(1, len(texts) + 1))


def _ordinary(tokenizer: Tokenizer) -> NDArray[np.uint32]:
    """Ids of the vocabulary without special tokens, ascending."""
    return np.array(sorted({*tokenizer.backend.get_vocab().values()} - tokenizer.special_ids), dtype=np.uint32)


def _from_file(config: RunConfig, tokenizer: Tokenizer, encode: Encode) -> Texts:
    canary, path = config.canary, _file(config.canary)
    rows = _rows(path)
    order = np.random.default_rng((config.data.holdout_seed, VERSION)).permutation(len(rows))
    n_controls, count = -(-len(rows) // 2), canary.canaries * len(canary.doses)
    if n_controls < FEWEST_CONTROLS:
        raise UserError(
            f"--canary_text {path}: half of its {len(rows)} rows are controls, and with fewer than {FEWEST_CONTROLS} "
            f"no p-value is below .05; provide at least {2 * FEWEST_CONTROLS} rows"
        )
    if count > len(rows) - n_controls:
        raise UserError(
            f"--canaries {canary.canaries}: {len(canary.doses)} doses need {count} texts, but {path} has "
            f"{len(rows) - n_controls} in addition to its controls; provide {2 * count} rows, or lower it"
        )
    numbers = np.concatenate([order[n_controls : n_controls + count], order[:n_controls]])
    encoded = encode([rows[i] for i in numbers.tolist()])
    longest = config.data.seq_len or 0
    for number, tokens in zip(numbers.tolist(), encoded, strict=True):
        if not 4 <= len(tokens) <= longest:
            raise UserError(
                f"--canary_text {path}: line {number + 1} has {len(tokens)} tokens; choose texts of 4 to {longest} "
                "tokens (--seq_len)"
            )
    texts = [np.array(tokens, dtype=np.uint32) for tokens in encoded]
    return _arranged(canary, texts[:count], texts[count:], numbers + 1)


def _arranged(
    canary: CanaryConfig,
    canaries: Sequence[NDArray[np.uint32]],
    controls: Sequence[NDArray[np.uint32]],
    rows: NDArray[np.int64],
) -> Texts:
    doses = np.repeat(np.array(canary.doses, dtype=np.int64), canary.canaries)
    return Texts(
        sequences=[*canaries, *controls],
        repeats=np.concatenate([doses, np.zeros(len(controls), dtype=np.int64)]),
        control=np.arange(len(canaries) + len(controls)) >= len(canaries),
        rows=rows.astype(np.int64),
    )


def _file(canary: CanaryConfig) -> Path:
    path = Path(canary.canary_text).expanduser()
    if not path.is_file():
        raise UserError(f"--canary_text {path}: is neither random nor a file; give a .jsonl file with a text per row")
    return path


def _rows(path: Path) -> list[str]:
    """The key `text` of each line."""
    parser, texts = Parser(), dict[str, int]()
    for number, line in enumerate(io.StringIO(read_text(path)), 1):
        try:
            text = parser.decode(line).get("text")
        except (ValueError, AttributeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"--canary_text {path}: line {number}: not a JSON object ({reason})") from None
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'--canary_text {path}: line {number}: expected {{"text": "…"}} with a text')
        if text in texts:
            raise UserError(
                f"--canary_text {path}: lines {texts[text]} and {number} are equal, so one could be the control of the "
                "other; remove one"
            )
        texts[text] = number
    return list(texts)
