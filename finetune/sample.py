"""Ask a fine-tuned model: ``wellread sample RUN "Name three rivers."``, with the prompt template of its corpus."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.escapes import Own, prose

if TYPE_CHECKING:
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.models.sampling import Settings
    from wellread.run import RunDirectory

EXAMPLES = """examples:
  wellread sample runs/tiny-sample "Name three rivers."
  wellread sample runs/tiny-sample@step-100 "Name three rivers." --temperature 0.7 --seed 1
"""


def main(argv: list[str]) -> int:
    """Print what the model of a run answers; return the exit code."""
    from wellread.cli import new_parser, parse
    from wellread.models import sampling

    parser = new_parser("wellread sample", "Ask a fine-tuned model, with the prompt template of its run.", EXAMPLES)
    parser.add_argument("model", metavar="RUN[@step-N]", help="Run directory, and a checkpoint (default: the newest).")
    parser.add_argument("text", help="The instruction or question.")
    sampling.add_flags(parser, temperature=0.0)
    options = parse(parser, argv)

    text = answer(options.model, options.text, sampling.Settings.of(options))
    print(prose(text) if sys.stdout.isatty() else Own(text))
    return 0


def answer(name: str, text: str, settings: Settings) -> str:
    """Answer of the model of RUN or RUN@step-N to `text`.

    Raises
    ------
    UserError
        When there is no such run or checkpoint, or the prompt leaves no position for an answer.
    """
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.models.load import load_model
    from wellread.models.sampling import continuation
    from wellread.named import named_checkpoint
    from wellread.run import RunDirectory

    checkpoint = named_checkpoint(name)
    run = RunDirectory.open(checkpoint.path.parent.parent)
    if damage := checkpoint.damage():
        raise UserError(f"{damage}; choose another checkpoint: RUN@step-N")
    tokenizer = Tokenizer.load(checkpoint.model)
    prompt = _prompt(run, text, tokenizer)
    model: Any = load_model(checkpoint.model)
    settings = replace(settings, tokens=_new_tokens(run, model, len(prompt), settings.tokens))
    tokens = list(continuation(model, prompt, settings, ends={tokenizer.eos}))
    return tokenizer.decode(tokens).strip()


def _new_tokens(run: RunDirectory, model: Any, prompt: int, tokens: int) -> int:
    """At most `tokens` tokens after a prompt of `prompt` tokens, within the positions of the model."""
    from wellread.models.continuations import positions
    from wellread.recipes.registry import model_of_run

    limit = positions(model.config) or model_of_run(run).positions
    if prompt >= limit:
        raise UserError(f"the prompt has {prompt} tokens and the model {limit} positions; give a shorter text")
    return min(tokens, limit - prompt)


def _prompt(run: RunDirectory, text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of a prompt with `text` in it; spaces before the answer are part of the answer, as in the corpus."""
    from wellread.data.rows.templates import CHAT, FIELD

    name, template = template_of(run)
    if name != CHAT:
        before = template.partition("{response}")[0]
        prompt = FIELD.sub(lambda field: text if field[1] == "instruction" else "", before)
        return tokenizer.prompts([prompt.rstrip(" ")])[0]
    try:
        chat = tokenizer.renderer(date_of(run))([{"role": "user", "content": text}], prompt=True)
    except UserError as error:
        raise UserError(f"{run.path}: the prompt {error}") from None
    tokens = [int(token) for token in tokenizer.backend(chat, add_special_tokens=False)["input_ids"]]
    return tokens if tokens[: len(tokenizer.begins)] == tokenizer.begins else tokenizer.begins + tokens


def template_of(run: RunDirectory) -> tuple[str, str]:
    """Name and text of the prompt template of a run's first data set that has one; `none` if all are raw text."""
    from wellread.corpus.read import Corpus

    sets = Corpus.open(run.corpus).meta["settings"]["sets"]
    templates = [entry["template"] for entry in sets if len(entry.get("template") or []) > 1]
    return (templates[0][0], templates[0][1]) if templates else ("none", "{instruction}")


def date_of(run: RunDirectory) -> str:
    """The date that the chat template of a run takes for today; old corpora do not name it."""
    from wellread.config import DataConfig
    from wellread.corpus.read import Corpus

    date = Corpus.open(run.corpus).meta["settings"].get("chat", {}).get("date", DataConfig.template_date)
    return str(date)
