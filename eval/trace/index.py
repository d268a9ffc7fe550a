"""Write the index of a corpus or a Megatron data set: ``wellread index RUN``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from wellread.cli import parse, plain_parser

if TYPE_CHECKING:
    from wellread.corpus.read import Corpus
    from wellread.data.sources.megatron import Megatron

DESCRIPTION = "Index the tokens of a corpus, so that texts are searched and traced without a scan."
EXAMPLES = """examples:
  {prog} runs/tiny-sample
  {prog} PILE/document              a Megatron data set; each part of its .bin gets an index"""


def main(argv: list[str], prog: str = "wellread index") -> int:
    """Write the indexes that are missing or cannot be used; return the exit code."""
    parser = plain_parser(prog, DESCRIPTION, EXAMPLES.format(prog=prog))
    parser.add_argument("run", help="Run directory, corpus, or prefix of a Megatron data set.")
    options = parse(parser, argv)

    from wellread.corpus import suffixes
    from wellread.record.index import problems, token_files
    from wellread.terminal import say

    reader = open_reader(options.run)
    files, dtype = token_files(reader)
    reasons = problems(reader, again=True)
    for file in files:
        n_tokens = file.stat().st_size // dtype.itemsize
        if file in reasons:
            suffixes.build(file, dtype)
            reason = "" if reasons[file] == suffixes.MISSING else f"; the previous one was unusable: {reasons[file]}"
            size = n_tokens * suffixes.BYTES
            say(f"wrote {suffixes.index_file(file)}: {n_tokens:,} tokens, {size:,} bytes{reason}")
        else:
            say(f"{suffixes.index_file(file)}: valid, {n_tokens:,} tokens")
    return 0


def open_reader(name: str) -> Corpus | Megatron:
    """The tokens that a user names.

    Raises
    ------
    UserError
        When it is neither a run nor a corpus nor a Megatron data set, or damaged.
    """
    from wellread.corpus.read import Corpus
    from wellread.data.sources.megatron import Megatron
    from wellread.record.opened import Run

    if (Path(name) / "corpus.json").is_file():
        return Corpus.open(name)
    prefix = re.sub(r"(-\d{5}-of-\d{5})?\.(bin|idx)$", "", name)
    return Megatron.open(name) if Path(f"{prefix}.idx").is_file() else Run.open(name).corpus
