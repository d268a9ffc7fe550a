"""SQL queries on the record and the samples table, with DuckDB."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Any

from wellread.commands.read_batches import writing
from wellread.config.packages import installing
from wellread.errors import UserError
from wellread.record.history import History
from wellread.terminal import say, say_table

if TYPE_CHECKING:
    import duckdb

ROWS_AT_ONCE = 4096
SHOWN = 100
"""Most rows shown on a terminal; all are shown when piped."""


def show_sql(history: History, query: str, path: str | None) -> None:
    """Run a query on the views of a run; print its rows, or write them as CSV to `path`.

    They are ``record``, ``checkpoints``, ``samples`` and ``losses``. A row of ``losses`` is a reading of a sample: its
    number, from 1, its batch and its loss; skipped batches are not readings. A row of ``checkpoints`` has a step and
    the batches that it read since the previous checkpoint: first_batch … stop_batch - 1. A packed corpus has also
    ``segments``, and a corpus with text metrics ``metrics``, whose columns are in ``samples``, too.

    Raises
    ------
    UserError
        When DuckDB is not installed, or rejects the query.
    """
    connection = _connect(history)
    import duckdb

    try:
        _create_views(connection, history)
        cursor: Any = connection.execute(query)
        if cursor is None:
            raise UserError("--sql: contains no statement; write a query, e.g. select * from record")
        heads = [column[0] for column in cursor.description or []]
        if path or not sys.stdout.isatty():
            _write(cursor, heads, path or "-", "," if path else "\t")
        else:
            _show(cursor, heads)
    except duckdb.Error as error:
        raise UserError(f"--sql: {str(error).splitlines()[0]}; tables are {_tables(history)}") from None


def _tables(history: History) -> str:
    names = ["record", "losses", "checkpoints", "samples"]
    names += ["segments"] * bool(history.samples.segments) + ["metrics"] * bool(history.samples.text_metrics)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _connect(history: History) -> duckdb.DuckDBPyConnection:
    try:
        import duckdb
    except ImportError:
        raise UserError(f"--sql: DuckDB, the extra `sql`, is not installed; run: {installing('duckdb>=1.0')}") from None
    return duckdb.connect()


def _create_views(connection: duckdb.DuckDBPyConnection, history: History) -> None:
    if history.record is not None and history.record.parts:
        files = [str(history.record.directory / part["name"]) for part in history.record.parts]
        # by name, because old parts have no column `skipped`
        source = f"read_parquet([{', '.join(map(_quoted, files))}], union_by_name=true)"
        connection.execute(f"create view record as select * from {source}")
        connection.execute(_losses(connection))
    connection.execute("create table checkpoints (step bigint, first_batch bigint, stop_batch bigint)")
    for checkpoint in history.checkpoints:
        connection.execute("insert into checkpoints values (?, ?, ?)", [checkpoint.step, *checkpoint.batches])
    samples = history.samples
    for name, file in (("segments", samples.segments), ("metrics", samples.text_metrics)):
        if file is not None:
            connection.execute(f"create view {name} as select * from read_parquet({_quoted(str(file))})")
    if samples.file is not None:
        query = f"select * from read_parquet({_quoted(str(samples.file))})"
        if samples.text_metrics is not None:  # the same columns as --csv and --checkpoint know
            query = f"select * from ({query}) left join metrics using (sample_id)"
        connection.execute(f"create view samples as {query}")


def _losses(connection: duckdb.DuckDBPyConnection) -> str:
    """The query that creates the view ``losses``; records of older versions have no column `skipped`."""
    columns = {row[0] for row in connection.execute("describe record").fetchall()}
    learned = "where not coalesce(skipped, false)" if "skipped" in columns else ""
    number = "row_number() over (partition by sample_id order by batch_id, slot)"
    return f"create view losses as select sample_id, {number} as reading, batch_id, loss from record {learned}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _write(cursor: Any, heads: list[str], path: str, delimiter: str) -> None:
    with writing(path) as file:
        table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        table.writerow(heads)
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            table.writerows([_plain(value) for value in row] for row in rows)


def _show(cursor: Any, heads: list[str]) -> None:
    rows = cursor.fetchmany(SHOWN + 1)
    say_table(heads, [[_plain(value) for value in row] for row in rows[:SHOWN]])
    if len(rows) > SHOWN:
        say(f"… more than {SHOWN} rows; pipe the output or pass --csv FILE to get all")


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value
