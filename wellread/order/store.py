"""The order of a run: built once from settings and corpus, stored in the run directory, and opened only from there."""

from __future__ import annotations

from wellread.errors import UserError
from wellread.files import with_checksum, write_array, write_json
from wellread.order import metrics
from wellread.order.build import Built
from wellread.order.permutation import ListedOrder, Order
from wellread.order.select import open_ids
from wellread.run import RunDirectory


def keep(run: RunDirectory, built: Built) -> None:
    """Write the files that opening the order needs to the run directory; only listed orders need files."""
    if isinstance(built.order, ListedOrder):
        write_array(run.order_file, built.order.ids)
    if built.notes:
        write_json(run.order_notes, with_checksum(built.notes))


def open_order(run: RunDirectory) -> Order:
    """The order of a started run, from its identity and its order.npy.

    Raises
    ------
    UserError
        When order.npy is missing or does not match the hash in the identity.
    """
    identity = run.manifest()["identity"]["order"]
    plain = {key: identity[key] for key in ("seed", "n", "batch_size")}
    if "ids" not in identity:
        try:
            return Order(kind=identity["kind"], **plain)
        except UserError as error:
            raise UserError(f"{run.manifest_file}: damaged ({error}); restore it from a copy") from None
    ids = open_ids(run.order_file, str(run.path))
    if metrics.digest(ids) != identity["ids"]:
        raise UserError(
            f"{run.order_file}: altered since the run began; repeat the launch command, which writes it again"
        )
    origin = {"listed": identity["kind"], "by": identity["by"], "source": identity["source"]}
    return ListedOrder(kind=identity["pass"], ids=ids, ids_sha256=identity["ids"], **origin, **plain)
