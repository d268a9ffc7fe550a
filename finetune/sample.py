"""Ask a fine-tuned model: ``wellread sample RUN "Name three rivers."``, with the prompt template of its corpus."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError

if TYPE_CHECKING:
    import torch

    from wellread.corpus.tokenizer import Tokenizer
    from wellread.models.generate import NextLogits
    from wellread.run import RunDirectory

EXAMPLES = """examples:
  wellread sample runs/tiny-sample "Name three rivers."
  wellread sample runs/tiny-sample@step-100 "Name three rivers." --temperature 0.7 --seed 1
"""


@dataclass(frozen=True)
class Settings:
    """How the next token is chosen, and how many there are."""

    temperature: float = 0.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_p: float = 0.9
    """Tokens are drawn from the most likely ones with this total probability."""
    seed: int = 0
    tokens: int = 200
    """Maximum number of tokens to write."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"--temperature {self.temperature}: must be at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p {self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be at least 0 and below 2^63")
        if self.tokens < 1:
            raise UserError(f"--tokens {self.tokens}: must be at least 1")


def main(argv: list[str]) -> int:
    """Print what the model of a run answers; return the exit code."""
    from wellread.cli import new_parser, parse

    parser = new_parser("wellread sample", "Ask a fine-tuned model, with the prompt template of its run.", EXAMPLES)
    parser.add_argument("model", metavar="RUN[@step-N]", help="Run directory, and a checkpoint (default: the newest).")
    parser.add_argument("text", help="The instruction or question.")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token each time.")
    parser.add_argument(
        "--top_p", type=float, default=0.9, help="Draw from the most likely tokens with this total probability."
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same text.")
    parser.add_argument("--tokens", type=int, default=200, help="Maximum number of tokens to write.")
    options = parse(parser, argv)

    from wellread.terminal import visible

    settings = Settings(options.temperature, options.top_p, options.seed, options.tokens)
    text = answer(options.model, options.text, settings)
    print(visible(text) if sys.stdout.isatty() else text)
    return 0


def answer(name: str, text: str, settings: Settings) -> str:
    """Answer of the model of RUN or RUN@step-N to `text`.

    Raises
    ------
    UserError
        When there is no such run or checkpoint, or the prompt leaves no position for an answer.
    """
    from wellread.checkpoint import named_checkpoint
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.models import generate, loss
    from wellread.models.load import load_model
    from wellread.run import RunDirectory

    checkpoint = named_checkpoint(name)
    run = RunDirectory.open(checkpoint.path.parent.parent)
    tokenizer = Tokenizer.load(checkpoint.model)
    prompt = _prompt(run, text, tokenizer)
    model: Any = load_model(checkpoint.model)
    longest = _longest(run, model, len(prompt), settings.tokens)

    def next_logits(tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return loss.next_logits(model, tokens, last)

    (tokens,) = generate.greedy(
        next_logits if settings.temperature == 0 else random_logits(next_logits, settings),
        [prompt],
        new_tokens=settings.tokens,
        longest=longest,
        end=tokenizer.eos,
    )
    return tokenizer.decode([token for token in tokens if token != tokenizer.eos]).strip()


def _longest(run: RunDirectory, model: Any, prompt: int, tokens: int) -> int:
    """Tokens of prompt and answer together, within the model's positions."""
    from wellread.recipes.registry import model_of_run

    positions = int(getattr(model.config, "max_position_embeddings", 0) or model_of_run(run).positions)
    if prompt >= positions:
        raise UserError(f"the prompt has {prompt} tokens and the model {positions} positions; give a shorter text")
    return min(prompt + tokens, positions)


def _prompt(run: RunDirectory, text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of a prompt with `text` in it; spaces before the answer are part of the answer, as in the corpus."""
    from wellread.data.rows.templates import CHAT, FIELD

    name, template = template_of(run)
    if name != CHAT:
        before = template.partition("{response}")[0]
        prompt = FIELD.sub(lambda field: text if field[1] == "instruction" else "", before)
        return tokenizer.prompts([prompt.rstrip(" ")])[0]
    messages = [{"role": "user", "content": text}]
    chat = tokenizer.backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = [int(token) for token in tokenizer.backend(chat, add_special_tokens=False)["input_ids"]]
    return tokens if tokens[: len(tokenizer.begins)] == tokenizer.begins else tokenizer.begins + tokens


def template_of(run: RunDirectory) -> tuple[str, str]:
    """Name and text of the prompt template of a run's first data set that has one; `none` if all are raw text."""
    from wellread.corpus.read import Corpus

    sets = Corpus.open(run.corpus).meta["settings"]["sets"]
    templates = [entry["template"] for entry in sets if len(entry.get("template") or []) > 1]
    return (templates[0][0], templates[0][1]) if templates else ("none", "{instruction}")


def random_logits(next_logits: NextLogits, settings: Settings) -> NextLogits:
    """Logits whose largest one is a draw from the distribution: Gumbel noise is added to them.

    Source: Maddison et al. 2014, https://arxiv.org/abs/1411.0030. Tokens outside `top_p` (Holtzman et al. 2019,
    https://arxiv.org/abs/1904.09751, section 3.1) are excluded before.
    """
    import torch

    generator = torch.Generator().manual_seed(settings.seed)

    def noisy(tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        logits = next_logits(tokens, last).float() / settings.temperature
        probabilities, order = logits.softmax(-1).sort(descending=True)
        excluded = (probabilities.cumsum(-1) - probabilities) >= settings.top_p
        logits = logits.masked_fill(excluded.gather(-1, order.argsort(-1)), -torch.inf)
        uniform = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
        return logits - (-uniform.log()).log()

    return noisy
