"""Instruction fine-tuning.

python -m finetune prepare --model tiny --data sample       compile the corpus
python -m finetune train runs/NAME                          train one rank; the launcher starts it
python -m finetune export runs/NAME --out DIR               take the trained model out of a run
"""

from __future__ import annotations

from wellread.cli import run_program
from wellread.errors import UserError

EXAMPLES = """examples:
  python -m finetune prepare --data dolly@databricks-dolly-15k.jsonl --model models/pythia-70m --seq_len 512 --show 3
  python -m launch run finetune --model tiny      (prepares, plans and trains; see python -m launch --help)
"""


def main(argv: list[str]) -> int:
    """Run one subcommand; return its exit code."""
    command, *rest = argv or ["--help"]
    if command == "train" and len(rest) == 1 and not rest[0].startswith("-"):
        from wellread.train.rank import run_rank

        run_rank(rest[0])
    if command == "prepare":
        return _prepare(rest)
    if command == "export":
        from finetune.export import main as export

        return export(rest)
    print(f"{__doc__}\n{EXAMPLES}")
    if command in ("-h", "--help"):
        return 0
    raise UserError(f"finetune {command}: unknown command; use prepare, train RUN or export RUN")


def _prepare(argv: list[str]) -> int:
    from wellread.cli import new_parser
    from wellread.recipes.registry import RECIPES, RESOLVED, received

    if argv == [RESOLVED]:  # of launch, which has resolved the settings
        from finetune.prepare import compile_corpus

        compile_corpus(received("finetune"))
        return 0
    recipe = RECIPES["finetune"]
    parser = new_parser("python -m finetune prepare", "Compile the corpus of a fine-tuning run.", EXAMPLES)
    recipe.add_flags(parser)
    parser.add_argument("--show", type=int, default=0, help="Print the first samples of each set, token by token.")
    config, others = recipe.parse(parser, argv)

    from finetune.prepare import prepare

    if others["show"] < 0:
        raise UserError(f"--show {others['show']}: must be at least 0")
    prepare(config, others["show"])
    return 0


if __name__ == "__main__":
    run_program(main)
