"""The order of a run: built once from settings and corpus, stored in the run directory, and opened only from there."""

from __future__ import annotations

from typing import Any

import numpy as np

from wellread.corpus.canaries import TAG
from wellread.errors import UserError
from wellread.files import read_json, with_checksum, write_array, write_json
from wellread.order import metrics
from wellread.order.build import Built
from wellread.order.inserted import InsertedOrder, digest, plain
from wellread.order.permutation import ListedOrder, Order
from wellread.order.select import open_ids
from wellread.run import RunDirectory

NOTES = {"inserted": [{"tag": str, "sample_id": int, "batch_id": int, "slot": int}]}
"""Shape of order.json, as far as it is needed."""


def keep(run: RunDirectory, built: Built) -> None:
    """Write the files that opening the order needs to the run directory; only listed orders need files."""
    order = plain(built.order)
    if isinstance(order, ListedOrder):
        write_array(run.order_file, order.ids)
    if built.notes:
        write_json(run.order_notes, with_checksum(built.notes))


def open_order(run: RunDirectory) -> Order:
    """The order of a started run, from its identity, its order.npy, and with canaries its order.json.

    Raises
    ------
    UserError
        When order.npy or order.json is missing or does not match its hash in the identity.
    """
    identity = run.manifest()["identity"]["order"]
    order = _without_canaries(run, identity)
    if "inserted" not in identity:
        return order
    try:
        notes = read_json(run.order_notes, NOTES)["inserted"]
    except FileNotFoundError:
        raise UserError(f"{run.order_notes}: is missing; repeat the launch command, which writes it again") from None
    places = [
        (each["batch_id"] * order.batch_size + each["slot"], each["sample_id"])
        for each in notes
        if each["tag"].startswith(TAG)
    ]
    table = np.array(places, dtype=np.int64).reshape(-1, 2)
    if digest(table[:, 0], table[:, 1]) != identity["inserted"]:
        raise UserError(
            f"{run.order_notes}: altered since the run began; repeat the launch command, which writes it again"
        )
    return InsertedOrder.over(order, table[:, 0].copy(), table[:, 1].copy(), identity["canaries"])


def _without_canaries(run: RunDirectory, identity: dict[str, Any]) -> Order:
    """The order of which canaries displace samples."""
    fields = {key: identity[key] for key in ("seed", "n", "batch_size")}
    if "ids" not in identity:
        try:
            return Order(kind=identity["kind"], **fields)
        except UserError as error:
            raise UserError(f"{run.manifest_file}: damaged ({error}); restore it from a copy") from None
    ids = open_ids(run.order_file, str(run.path))
    if metrics.digest(ids) != identity["ids"]:
        raise UserError(
            f"{run.order_file}: altered since the run began; repeat the launch command, which writes it again"
        )
    origin = {"listed": identity["kind"], "by": identity["by"], "source": identity["source"]}
    return ListedOrder(kind=identity["pass"], ids=ids, ids_sha256=identity["ids"], **origin, **fields)
