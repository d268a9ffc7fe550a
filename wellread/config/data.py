"""What a run reads, and how samples are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wellread.config import check
from wellread.errors import UserError

LossOn = Literal["responses", "all"]
Packing = Literal["stream", "story"]
LongStories = Literal["split", "cut"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data of a fine-tuning, and what every corpus has."""

    name: str | None = None
    """NAME, PATH or NAME@PATH, e.g. dolly, my.jsonl, alpaca@my.json (default: sample for tiny, else dolly).
    Several make a mixture: by weight, dolly:0.7,alpaca:0.3, or by rows, dolly:5000,my.jsonl."""
    template: str | None = None
    """Of the prompts: alpaca, dolly, qa, none, chat, or a .txt file of your own (default: the set's)."""
    loss_on: LossOn = "responses"
    """responses, or all: prompts carry loss as well."""
    corpora: str = "corpora"
    """Folder in which compiled corpora are kept and shared between runs."""
    seq_len: int | None = None
    """Longest sample in tokens."""
    pack: bool = False
    """Put several samples into one sequence of seq_len tokens; none sees another. batch_size then counts sequences."""
    holdout: float = 0.25
    """Fraction of the source documents that is sealed: never trained on."""
    holdout_seed: int = 0
    """Which documents are sealed; apart from the seed, so that runs of several seeds share one holdout."""
    max_bad_rows: int = 0
    """How many broken rows are passed over before compiling stops."""

    def __post_init__(self) -> None:
        check.not_empty(self, name="data", template="template", corpora="corpora")
        if self.seq_len == 1:
            raise UserError("--seq_len 1: a sample needs a token to predict and one before it; choose at least 2")
        check.at_least_one(self, "seq_len")
        if not 0 <= self.holdout < 1:
            raise UserError(f"--holdout {self.holdout}: must be at least 0 and below 1 (a fraction of the documents)")
        if self.max_bad_rows < 0:
            raise UserError(f"--max_bad_rows {self.max_bad_rows}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class TextConfig(DataConfig):
    """Data of a pretraining."""

    unused: ClassVar[tuple[str, ...]] = ("template", "loss_on", "pack")
    """Settings that make no sense for text without roles."""
    name: str | None = None
    """stories (made up here, stories:N for N of them), tinystories, NAME@PATH, or a file or folder of text
    (default: stories)."""
    vocab: str | None = None
    """Pieces of a vocabulary trained on the stories (512 to 32000), llama2, or a SentencePiece .model file (default:
    4096, or the vocabulary of a model that has been trained)."""
    packing: Packing = "stream"
    """stream (stories one after the other, cut into windows) or story (one a sample)."""
    long_stories: LongStories = "split"
    """With packing story, a story longer than seq_len is split into several samples, or cut."""
    metrics: bool = False
    """Measure each sample: length, variety, readability, sentiment."""
    word_list: str | None = None
    """File of words, one a line, whose rate becomes a metric; implies metrics."""
    perplexity: str | None = None
    """Model in Hugging Face layout whose perplexity becomes a metric; implies metrics."""
    holdout: float = 0.1
    """Fraction of the stories that is sealed: never trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check.not_empty(self, vocab="vocab", word_list="word_list", perplexity="perplexity")
        for name in self.unused:
            if getattr(self, name) != getattr(DataConfig, name):
                raise UserError(f"--{name} {getattr(self, name)}: is for instructions, not for stories; leave it out")
        if self.seq_len is not None and self.seq_len < 4:
            raise UserError(f"--seq_len {self.seq_len}: choose at least 4")
