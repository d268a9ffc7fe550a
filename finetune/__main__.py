"""Instruction fine-tuning.

wellread prepare finetune --model tiny --data sample     compile the corpus
wellread sample runs/NAME "a question"                   ask the trained model
wellread export runs/NAME --out DIR                      write the trained model to a directory

python -m finetune train runs/NAME                       train one rank; the launcher starts it
"""

from __future__ import annotations

import wellread.starting  # isort: skip  # noqa: F401  # first: Ctrl-C during the other imports

from wellread import streams
from wellread.cli import run_program
from wellread.errors import UserError

EXAMPLES = """examples:
  wellread prepare finetune --data dolly@databricks-dolly-15k.jsonl --model models/pythia-70m --seq_len 512 --show 3
  wellread prepare finetune --data sample --metrics
  wellread run finetune --model tiny      (prepares, plans and trains; see wellread --help)
"""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    command, *arguments = argv or ["--help"]
    if command == "train" and len(arguments) == 1 and not arguments[0].startswith("-"):
        from wellread.train.rank import run_rank

        run_rank(arguments[0])
    if command == "prepare":
        return _prepare(arguments)
    if command == "sample":
        from finetune.sample import main as sample

        return sample(arguments)
    if command == "export":
        from finetune.export import main as export

        return export(arguments)
    print(f"{__doc__}\n{EXAMPLES}")
    if command in ("-h", "--help"):
        return 0
    raise UserError(f"finetune {command}: unknown command; use prepare, train RUN, sample RUN or export RUN")


def _prepare(argv: list[str]) -> int:
    from wellread.cli import new_parser
    from wellread.recipes.registry import RECIPES, RESOLVED, received

    if argv == [RESOLVED]:  # from the launcher, which has resolved the settings
        from finetune.prepare import compile_corpus
        from wellread.models.load import check_files
        from wellread.models.registry import find

        streams.outlive_reader()
        config = received("finetune")
        check_files(find(config.model.name), config.model.init)  # before the data is compiled, which may take long
        compile_corpus(config)
        return 0
    recipe = RECIPES["finetune"]
    parser = new_parser("wellread prepare finetune", "Compile the corpus of a fine-tuning run.", EXAMPLES)
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="Print the first N samples of each set, token by token."
    )
    recipe.add_compile_flags(parser)
    config, extra = recipe.parse(parser, argv)

    from finetune.prepare import prepare

    if extra["show"] < 0:
        raise UserError(f"--show {extra['show']}: must be at least 0")
    prepare(config, extra["show"])
    return 0


if __name__ == "__main__":
    run_program(main)
