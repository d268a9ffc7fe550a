"""What a run reads, and how it becomes samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from wellread.config import check
from wellread.config.flat import unit
from wellread.errors import UserError

LossOn = Literal["responses", "all"]
Packing = Literal["stream", "story"]
LongStories = Literal["split", "cut"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data sets, templates, holdout."""

    name: str | None = None
    """Data set: NAME, PATH or NAME@PATH, e.g. dolly, my.jsonl, alpaca@my.json. Several are a mixture: by weight,
    dolly:0.7,alpaca:0.3, or by rows, dolly:5000,my.jsonl (default: sample for tiny, otherwise dolly)."""
    template: str | None = None
    """Prompt template: alpaca, dolly, qa, none, chat, or your .txt file (default: that of the data set)."""
    template_date: str = "2024-07-26"
    """Date that chat templates take for today, so that a corpus does not depend on the day it is
    compiled."""
    loss_on: LossOn = "responses"
    """Tokens with loss: responses, or all (prompts too)."""
    corpora: str = "corpora"
    """Folder of compiled corpora; runs share them."""
    influence: str | None = None
    """Parquet file with columns sample_id and score, from another program: becomes the metric influence
    (default: no file)."""
    seq_len: int | None = None
    """Maximum tokens per sample (default: that of the model in configs/models.yaml)."""
    pack: bool = False
    """Pack several isolated samples into one sequence of seq_len tokens; batch_size then counts sequences."""
    holdout: float = field(default=0.25, metadata=unit("of the documents"))
    """Fraction of the source documents that is sealed: never trained on."""
    holdout_seed: int = 0
    """Seed that chooses the sealed documents; separate from --seed, so that runs with different seeds share one
    holdout."""
    metrics: bool = False
    """Measure length, variety, readability and sentiment of each sample."""
    max_bad_rows: int = field(default=0, metadata=unit("rows"))
    """Number of malformed rows to skip; one more stops compiling."""
    marks: str | None = None
    """YAML file of pairs of ways to write one thing, e.g. configs/marks/spelling.yaml: at each place a coin picks one
    (docs/evaluation.md; default: no marks)."""
    marks_seed: int = 0
    """Key of the coins of --marks."""
    marks_share: float = field(default=1.0, metadata=unit("of the documents"))
    """Fraction of the documents that have marks; --holdout_seed draws them."""
    max_document: int = field(default=256, metadata=unit("MiB"))
    """Maximum size of a document or a row, also of a decompressed one; a longer one stops compiling."""

    def __post_init__(self) -> None:
        check.not_empty(self, name="data", template="template", corpora="corpora", influence="influence", marks="marks")
        check.date(self, "template_date")
        if self.seq_len == 1:
            raise UserError("--seq_len 1: a sample needs at least 2 tokens, because the first one is not predicted")
        check.at_least_one(self, "seq_len", "max_document")
        if not 0 <= self.holdout < 1:
            raise UserError(f"--holdout {self.holdout}: must be at least 0 and below 1 (a fraction of the documents)")
        if self.marks is not None and self.pack:
            raise UserError("--marks: places are in samples that are not packed; leave out --pack")
        if not 0 < self.marks_share <= 1:
            raise UserError(
                f"--marks_share {self.marks_share}: must be above 0 and at most 1 (a fraction of documents)"
            )
        if self.marks is None and self.marks_share != DataConfig.marks_share:
            raise UserError(f"--marks_share {self.marks_share}: is a setting of --marks; leave it out, or add --marks")
        if self.max_bad_rows < 0:
            raise UserError(f"--max_bad_rows {self.max_bad_rows}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class TextConfig(DataConfig):
    """Documents, vocabulary, windows, holdout."""

    unused: ClassVar[tuple[str, ...]] = ("template", "template_date", "loss_on", "pack")
    """Settings that have no meaning for text without prompts."""
    name: str | None = None
    """Data set: stories (synthetic; stories:N for N of them), tinystories, NAME@PATH, or a file or folder of text
    (default: stories)."""
    vocab: str | None = None
    """Vocabulary: its size, to train one on the stories (512 to 32000), llama2, or a SentencePiece .model file
    (default: 4096; with pretrained weights that of the model)."""
    packing: Packing = "stream"
    """stream (stories are concatenated and cut into windows) or story (one story per sample)."""
    long_stories: LongStories = "split"
    """With --packing story: a story longer than seq_len is split into several samples, or cut."""
    word_list: str | None = None
    """File of words, one per line; how frequent they are becomes a metric; implies --metrics (default: no file)."""
    perplexity: str | None = None
    """Model in Hugging Face layout; its perplexity becomes a metric; implies --metrics (default: no model)."""
    holdout: float = field(default=0.1, metadata=unit("of the stories"))
    """Fraction of the stories that is sealed: never trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check.not_empty(self, vocab="vocab", word_list="word_list", perplexity="perplexity")
        for name in self.unused:
            if getattr(self, name) != getattr(DataConfig, name):
                raise UserError(
                    f"--{name} {getattr(self, name)}: is a setting for instructions, not for stories; leave it out"
                )
        if self.seq_len is not None and self.seq_len < 4:
            raise UserError(f"--seq_len {self.seq_len}: choose at least 4")
