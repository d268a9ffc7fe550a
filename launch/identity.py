"""The identity of a run: the settings that define what is learned. A run directory never changes its identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wellread.checkpoint import list_checkpoints
from wellread.config import RunConfig, to_dict
from wellread.errors import UserError
from wellread.files import with_checksum, write_json
from wellread.models.directories import fingerprint
from wellread.models.spec import ModelSpec
from wellread.order import store
from wellread.order.build import Built
from wellread.order.permutation import Order
from wellread.planning.plan import Plan
from wellread.recipes.registry import recipe_of
from wellread.run import RunDirectory

HASHES = ("model", "corpus", "order.ids", "order.canaries", "order.inserted")
"""Values that a user does not set; an error lists them last."""
NAMES = {
    "order.n": "trainable samples",
    "order.ids": "sample ids of the order",
    "corpus": "hash of the corpus (--data and its settings)",
    "model": "hash of the model (--model)",
    "order.canaries": "registered draw of canaries (--canaries)",
    "order.inserted": "places of canaries",
}
"""Key of an identity -> what an error calls it."""
CONSEQUENCES = {
    "corpus": {"order.n", "seq_len"},
    "order.n": {"seq_len"},
    "order.batch_size": {"batch_size"},
    "order.seed": {"seed"},
    "order.inserted": {"seed", "steps", "batch_size", "order.canaries"},
    "order.ids": {"order.n", "order.kind", "order.seed", "order.source", "order.by"},
}
"""Key of an identity -> keys that explain a difference in it; then an error lists only those."""


def of(config: RunConfig, spec: ModelSpec, corpus: str, order: Order, plan: Plan) -> dict[str, Any]:
    """Return the identity of a run; a resume with another identity is refused.

    Parameters
    ----------
    corpus : str
        Hash of the corpus.
    """
    return {
        "model": fingerprint(spec, config.model.init),
        "corpus": corpus,
        "order": order.identity(),
        "batch_size": plan.batch_size,
        "seq_len": plan.seq_len,
        "seed": config.schedule.seed,
        "steps": plan.steps,
        "dtype": plan.dtype,
        "optim": to_dict(config.optim),
        **{flag: True for flag in ("tf32", "float8") if getattr(config.model, flag)},  # not in runs of older versions
    } | recipe_of(config).identity(config)


def begin(run: RunDirectory, config: RunConfig, requested: dict[str, Any], corpus: Path, order: Built) -> bool:
    """Create the run directory, or check that an existing one contains the same run; return True when it is finished.

    Parameters
    ----------
    requested : dict
        The identity of the run to start.
    corpus : Path
        The compiled corpus; the run directory gets a link to it.

    Raises
    ------
    UserError
        When the directory contains another run, or a started run and ``--resume never`` is set.
    """
    manifest: dict[str, Any] = run.manifest() if run.manifest_file.exists() else {"version": 1, "attempts": []}
    if any(run.checkpoints.glob("step-*")):
        refuse_other(run, requested)
        if config.save.resume == "never":
            raise UserError(f"{run.path}: already started, and --resume is never; choose another --out")
        try:
            store.open_order(run)
        except UserError:  # lost or altered
            store.keep(run, order)
    else:  # without a checkpoint nothing was read: an attempt that failed early may be overwritten
        store.keep(run, order)
        write_json(run.manifest_file, with_checksum(manifest | {"identity": requested}))
    link = run.path / "corpus"
    if not link.is_dir() or (link.is_symlink() and link.resolve() != corpus):
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(corpus, run.path.resolve()))
    last = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(run.checkpoints)}.get(requested["steps"])
    is_finished = last is not None and last.damage() is None
    if not is_finished or not run.config_file.is_file():
        run.write_config(config)
    return is_finished


def refuse_other(run: RunDirectory, requested: dict[str, Any]) -> None:
    """Refuse a run directory that contains another run than the requested one.

    Raises
    ------
    UserError
        Lists the differences.
    """
    existing, requested = _flat(run.manifest()["identity"]), _flat(requested)
    different = {key for key in existing | requested if existing.get(key) != requested.get(key)}
    if not different:
        return
    hidden = {key for key, causes in CONSEQUENCES.items() if different & causes}
    keys = [key for key in existing | requested if key in different - hidden]
    keys.sort(key=lambda key: key in HASHES)
    texts = [
        f"{NAMES.get(key, f'{key} is')} {_short(existing.get(key), key)}, requested {_short(requested.get(key), key)}"
        for key in keys
    ]
    raise UserError(f"{run.path}: contains another run ({'; '.join(texts)}); choose another --out")


def _flat(identity: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: object, key: str) -> str:
    """Shorten long values, e.g. hashes."""
    text = f"{value:,}" if key == "order.n" and isinstance(value, int) else str(value)
    return text if len(text) <= 40 else f"{text[:20]}…"


def refuse_foreign(run: RunDirectory) -> None:
    """Refuse an output path that contains something other than a run, before anything is written there."""
    if run.manifest_file.exists() or not run.path.exists():
        return
    if not run.path.is_dir():
        raise UserError(f"{run.path}: is a file; choose another --out")
    if unknown := [
        p.name
        for p in run.path.iterdir()
        if p.name not in ("lock", "corpus", "order.npy", "order.json") and p.name[0] != "."
    ]:
        raise UserError(f"{run.path}: contains {', '.join(sorted(unknown)[:3])} but no run; choose another --out")
