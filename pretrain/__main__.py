"""Pretraining on raw text, and what its models are used for: samples, exports."""

from __future__ import annotations

import wellread.starting  # isort: skip  # noqa: F401  # first: Ctrl-C during the other imports

from wellread import streams
from wellread.cli import new_parser, parse, run_program
from wellread.errors import UserError

USAGE = """usage: wellread COMMAND ...

Pretrain small Llama models, and exchange them with llama2.c.

commands:
  prepare pretrain              compile the corpus: stories, vocabulary, windows, metrics
  sample MODEL [TEXT]           continue a text; MODEL is RUN, RUN@step-N or a model directory
  export MODEL                  write a model for llama2.c's programs, or as a Hugging Face directory
  import FILE.bin FILE.model    turn a checkpoint of llama2.c into a Hugging Face directory
  import DIR                    convert pytorch_model.bin of a model directory to safetensors

python -m pretrain train RUN    train one rank; the launcher starts it

examples:
  wellread prepare pretrain                                     synthetic stories: needs no hub
  wellread prepare pretrain --data tinystories --vocab 4096 --seq_len 256 --metrics
  wellread sample runs/stories "Once upon a time" --temperature 0
  wellread export runs/stories@step-1000 --format llama2c-v0 --out stories.bin
  wellread import stories260K.bin tok512.model --out models/stories260K
"""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, *arguments = argv
    if command == "train" and len(arguments) == 1 and not arguments[0].startswith("-"):
        from wellread.train.rank import run_rank

        run_rank(arguments[0])
    commands = {"prepare": _prepare, "sample": _sample, "export": _export, "import": _import}
    if command not in commands:
        raise UserError(f"pretrain {command}: unknown command; use {', '.join(commands)} or train RUN")
    return commands[command](arguments)


def _prepare(argv: list[str]) -> int:
    from wellread.recipes.registry import RECIPES, RESOLVED, received

    if argv == [RESOLVED]:  # from the launcher, which has resolved the settings
        from pretrain.prepare import compile_corpus
        from wellread.models.load import check_files
        from wellread.models.registry import find

        streams.outlive_reader()
        config = received("pretrain")
        check_files(find(config.model.name), config.model.init)  # before the data is compiled, which may take long
        compile_corpus(config)
        return 0
    recipe = RECIPES["pretrain"]
    parser = new_parser(
        "wellread prepare pretrain",
        "Compile the corpus of a pretraining.",
        "example:\n  wellread prepare pretrain --data tinystories --vocab 4096 --metrics",
    )
    recipe.add_compile_flags(parser)
    config, _ = recipe.parse(parser, argv)

    from pretrain.prepare import prepare

    prepare(config)
    return 0


MODEL = "RUN (its newest checkpoint), RUN@step-N, or a model directory in Hugging Face layout."


def _sample(argv: list[str]) -> int:
    from wellread.models import sampling

    parser = new_parser(
        "wellread sample",
        "Continue a text with a model, up to the end of a story.",
        'example:\n  wellread sample runs/stories "Once upon a time" --temperature 0 --tokens 200',
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument("text", nargs="?", default="", help="Beginning of the text (default: empty).")
    sampling.add_flags(parser, temperature=1.0)
    options = parse(parser, argv)

    from pretrain.sample import sample
    from wellread.named import model_directory

    sample(model_directory(options.model), options.text, sampling.Settings.of(options))
    return 0


def _export(argv: list[str]) -> int:
    parser = new_parser(
        "wellread export",
        "Write a model for llama2.c's programs, or for Hugging Face's.",
        "example:\n  wellread export runs/stories --format llama2c-v0 --out stories.bin",
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--format", required=True, help="llama2c-v0, llama2c-v1, llama2c-int8 or hf.")
    parser.add_argument("--out", required=True, help="File to write; with hf a directory.")
    options = parse(parser, argv)

    from pathlib import Path

    from pretrain.export import export
    from wellread.named import model_directory

    export(model_directory(options.model), options.format, Path(options.out))
    return 0


def _import(argv: list[str]) -> int:
    parser = new_parser(
        "wellread import",
        "Turn a checkpoint of llama2.c, or a directory with pickled weights, into a model directory with safetensors.",
        "examples:\n  wellread import stories260K.bin tok512.model --out models/stories260K\n"
        "  wellread import models/old --out models/new        pytorch_model.bin; nothing in it is executed",
    )
    parser.add_argument("checkpoint", help="llama2.c's .bin file (v0, v1 or int8), or a model directory.")
    parser.add_argument("tokenizer", nargs="?", help="Tokenizer of the .bin file, a SentencePiece model.")
    parser.add_argument("--out", required=True, help="Directory to write.")
    options = parse(parser, argv)

    from pathlib import Path

    from pretrain.import_llama2c import import_directory, import_llama2c

    if Path(options.checkpoint).is_dir():
        if options.tokenizer:
            raise UserError(f"import {options.tokenizer}: a model directory has its own tokenizer; leave it out")
        import_directory(Path(options.checkpoint), Path(options.out))
        return 0
    if not options.tokenizer:
        raise UserError(
            f"import {options.checkpoint}: needs a tokenizer for a .bin file of llama2.c, e.g. tok512.model"
        )
    import_llama2c(Path(options.checkpoint), Path(options.tokenizer), Path(options.out))
    return 0


if __name__ == "__main__":
    run_program(main)
