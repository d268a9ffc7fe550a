"""Pretraining on raw text, and what comes of it: samples, exports."""

from __future__ import annotations

from wellread.cli import new_parser, parse, run_program
from wellread.errors import UserError

USAGE = """usage: python -m pretrain COMMAND ...

Pretrain small Llama models, and exchange them with llama2.c.

commands:
  prepare                   compile the corpus: stories, vocabulary, windows, metrics
  train RUN                 train one rank; the launcher starts it
  sample MODEL [TEXT]       text that a model writes; MODEL is RUN, RUN@step-N or a model directory
  export MODEL              a model as llama2.c's programs read it, or as a Hugging Face directory
  import FILE.bin FILE.model    a checkpoint of llama2.c as a Hugging Face directory

examples:
  python -m pretrain prepare                                     stories made up here: needs no hub
  python -m pretrain prepare --data tinystories --vocab 4096 --seq_len 256 --metrics
  python -m pretrain sample runs/stories "Once upon a time" --temperature 0
  python -m pretrain export runs/stories@step-1000 --format llama2c-v0 --out stories.bin
  python -m pretrain import stories260K.bin tok512.model --out models/stories260K
"""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, *rest = argv
    if command == "train" and len(rest) == 1 and not rest[0].startswith("-"):
        from wellread.train.rank import run_rank

        run_rank(rest[0])
    commands = {"prepare": _prepare, "sample": _sample, "export": _export, "import": _import}
    if command not in commands:
        raise UserError(f"pretrain {command}: unknown command; use {', '.join(commands)} or train RUN")
    return commands[command](rest)


def _prepare(argv: list[str]) -> int:
    from wellread.recipes.registry import RECIPES, RESOLVED, received

    if argv == [RESOLVED]:  # of launch, which has resolved the settings
        from pretrain.prepare import compile_corpus

        compile_corpus(received("pretrain"))
        return 0
    recipe = RECIPES["pretrain"]
    parser = new_parser(
        "python -m pretrain prepare",
        "Compile the corpus of a pretraining.",
        "example:\n  python -m pretrain prepare --data tinystories --vocab 4096 --metrics",
    )
    recipe.add_flags(parser)
    config, _ = recipe.parse(parser, argv)

    from pretrain.prepare import prepare

    prepare(config)
    return 0


MODEL = "RUN (its newest checkpoint), RUN@step-N, or a model directory in Hugging Face layout."


def _sample(argv: list[str]) -> int:
    parser = new_parser(
        "python -m pretrain sample",
        "Write text with a model, up to its end of a story.",
        'example:\n  python -m pretrain sample runs/stories "Once upon a time" --temperature 0 --tokens 200',
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument("text", nargs="?", default="", help="What the text begins with (default: nothing).")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most likely token each time.")
    parser.add_argument("--top_p", type=float, default=0.9, help="Draw from the likeliest tokens of this probability.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same text.")
    parser.add_argument("--tokens", type=int, default=200, help="Most tokens to write.")
    options = parse(parser, argv)

    from pretrain.sample import Settings, sample
    from wellread.checkpoint import model_directory

    settings = Settings(options.temperature, options.top_p, options.seed, options.tokens)
    sample(model_directory(options.model), options.text, settings)
    return 0


def _export(argv: list[str]) -> int:
    parser = new_parser(
        "python -m pretrain export",
        "Write a model for llama2.c's programs, or for Hugging Face's.",
        "example:\n  python -m pretrain export runs/stories --format llama2c-v0 --out stories.bin",
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--format", required=True, help="llama2c-v0, llama2c-v1, llama2c-int8 or hf.")
    parser.add_argument("--out", required=True, help="File to write; with hf a directory.")
    options = parse(parser, argv)

    from pathlib import Path

    from pretrain.export import export
    from wellread.checkpoint import model_directory

    export(model_directory(options.model), options.format, Path(options.out))
    return 0


def _import(argv: list[str]) -> int:
    parser = new_parser(
        "python -m pretrain import",
        "Turn a checkpoint of llama2.c into a model directory in Hugging Face layout.",
        "example:\n  python -m pretrain import stories260K.bin tok512.model --out models/stories260K",
    )
    parser.add_argument("checkpoint", help="The .bin file: v0, v1 or int8.")
    parser.add_argument("tokenizer", help="Its SentencePiece model.")
    parser.add_argument("--out", required=True, help="Directory to write.")
    options = parse(parser, argv)

    from pathlib import Path

    from pretrain.import_llama2c import import_llama2c

    import_llama2c(Path(options.checkpoint), Path(options.tokenizer), Path(options.out))
    return 0


if __name__ == "__main__":
    run_program(main)
