"""What makes a run this run: its directory is begun with it, and refused when it holds something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wellread.checkpoint import list_checkpoints
from wellread.config import RunConfig, to_dict
from wellread.errors import UserError
from wellread.files import write_json
from wellread.models.directories import fingerprint
from wellread.models.spec import ModelSpec
from wellread.order import store
from wellread.order.build import Built
from wellread.order.permutation import Order
from wellread.planning.plan import Plan
from wellread.recipes.registry import recipe_of
from wellread.run import RunDirectory


def of(config: RunConfig, spec: ModelSpec, corpus: str, order: Order, plan: Plan) -> dict[str, Any]:
    """What makes a run this run: a change of any of it is refused at resume.

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
    } | recipe_of(config).identity(config)


def begin(run: RunDirectory, config: RunConfig, requested: dict[str, Any], corpus: Path, order: Built) -> bool:
    """Begin the run directory, or make sure that it belongs to this very run; True when the run is finished.

    Parameters
    ----------
    asked : dict
        The identity of what is asked for.
    corpus : Path
        The compiled corpus, which the run links to.

    Raises
    ------
    UserError
        When it holds another run, or has begun and was not to be resumed.
    """
    manifest: dict[str, Any] = run.manifest() if run.manifest_file.exists() else {"version": 1, "attempts": []}
    if any(run.checkpoints.glob("step-*")):
        refuse_other(run, requested)
        if config.save.resume == "never":
            raise UserError(f"{run.path}: has begun, and --resume never was asked for; choose another --out")
        try:
            store.open_order(run)
        except UserError:  # lost or altered
            store.keep(run, order)
    else:  # without a checkpoint nothing was read: an attempt that failed early is in nobody's way
        store.keep(run, order)
        write_json(run.manifest_file, manifest | {"identity": requested})
    link = run.path / "corpus"
    if not link.is_dir() or (link.is_symlink() and link.resolve() != corpus):
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(corpus, run.path.resolve()))
    run.write_config(config)
    last = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(run.checkpoints)}.get(requested["steps"])
    return last is not None and last.damage() is None


def refuse_other(run: RunDirectory, requested: dict[str, Any]) -> None:
    """Refuse a run directory that holds another run than the one that is asked for.

    Raises
    ------
    UserError
        Names what differs.
    """
    existing, requested = _flat(run.manifest()["identity"]), _flat(requested)
    differences = [
        f"{key} is {_short(existing.get(key))} there, {_short(requested.get(key))} asked for"
        for key in existing | requested
        if existing.get(key) != requested.get(key)
    ]
    if differences:
        raise UserError(f"{run.path}: holds another run ({'; '.join(differences)}); choose another --out")


def _flat(identity: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: object) -> str:
    """A value, or the beginning of a hash."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}…"


def refuse_foreign(run: RunDirectory) -> None:
    """Refuse a place that holds something else, before anything is written there."""
    if run.manifest_file.exists() or not run.path.exists():
        return
    if not run.path.is_dir():
        raise UserError(f"{run.path}: is a file; choose another --out")
    if unknown := [
        p.name
        for p in run.path.iterdir()
        if p.name not in ("lock", "corpus", "order.npy", "order.json") and p.name[0] != "."
    ]:
        raise UserError(f"{run.path}: holds {', '.join(sorted(unknown)[:3])} but no run; choose another --out")
