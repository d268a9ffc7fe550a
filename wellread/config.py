"""What a run is asked to do: frozen dataclasses, one field per flag.

Every field left at ``None`` has a default that depends on the model or the data;
`wellread.recipes.registry.resolve` fills it in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

from wellread.errors import UserError

Dtype = Literal["bf16", "fp32"]
Strategy = Literal[
    "auto",
    "ddp",
    "zero1",
    "zero2",
    "zero3",
    "zero2-offload",
    "zero3-partial",
    "zero3-offload",
    "zero3-nvme",
]
Switch = Literal["auto", "on", "off"]
SaveSchedule = Literal["linear", "log"]
Resume = Literal["auto", "never"]
Init = Literal["pretrained", "fresh"]
LossOn = Literal["responses", "all"]
OnBadLoss = Literal["stop", "skip"]
TRACKERS = ("tensorboard", "wandb")
Packing = Literal["stream", "story"]
LongStories = Literal["split", "cut"]

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
"""Registries and DeepSpeed files of the checkout."""
if not CONFIGS.is_dir():  # installed from a wheel, which carries them inside the package
    CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float | None = None
    """Peak learning rate (default: the model's, from configs/models.yaml; with LoRA ten times that)."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay; never on norms and biases."""
    clip: float = 1.0
    """Largest 2-norm of the gradient; 0 leaves it unclipped."""
    warmup: float = 0.03
    """Warm-up as a fraction of all steps."""
    min_lr: float = 0.1
    """Final learning rate as a fraction of the peak."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside the matrices of a model, which itself stays as it is."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: float | None = None
    """What an adapter adds is scaled by alpha / rank (default: twice the rank)."""
    dropout: float = 0.0
    """Dropout of what enters an adapter."""
    targets: str | None = None
    """Matrices with an adapter, as q_proj,v_proj, or all-linear (default: those usual in the family)."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run; a fine-tuning, if it is of no further kind."""

    program: ClassVar[str] = "finetune"
    """Which program prepares and trains it: the name of its recipe."""
    model: str = "tiny"
    """Registry name (configs/models.yaml), hub name or directory in Hugging Face layout."""
    init: Init = "pretrained"
    """pretrained, or fresh: random weights, of the model no more than its config and tokenizer."""
    freeze: str | None = None
    """Parameters that stay as they are: patterns over their names, as gpt_neox.embed_in.*,*.layers.[0-3].*"""
    load_in_4bit: bool = False
    """Keep the frozen weights of a LoRA run in 4 bits (NF4); needs GPUs and bitsandbytes."""
    data: str | None = None
    """NAME, PATH or NAME@PATH, e.g. dolly, my.jsonl, alpaca@my.json (default: sample for tiny, else dolly).
    Several make a mixture: by weight, dolly:0.7,alpaca:0.3, or by rows, dolly:5000,my.jsonl."""
    template: str | None = None
    """Of the prompts: alpaca, dolly, qa, none, chat, or a .txt file of your own (default: the set's)."""
    loss_on: LossOn = "responses"
    """responses, or all: prompts carry loss as well."""
    out: str | None = None
    """Run directory (default: runs/MODEL-DATA)."""
    corpora: str = "corpora"
    """Folder in which compiled corpora are kept and shared between runs."""
    steps: int | None = None
    """Optimizer steps; overrides epochs."""
    epochs: float | None = None
    """Passes over the trainable samples."""
    batch_size: int | None = None
    """Samples per step, over all ranks and accumulation."""
    micro_batch_size: int | None = None
    """Samples per forward pass of one rank (default: chosen by the plan)."""
    seq_len: int | None = None
    """Longest sample in tokens."""
    pack: bool = False
    """Put several samples into one sequence of seq_len tokens; none sees another. batch_size then counts sequences."""
    order: str = "shuffle"
    """shuffle, sequential, sorted:METRIC:asc, sorted:METRIC:desc, filter:METRIC>NUMBER, file:IDS.npy or
    curriculum:FILE.yaml (docs/orders.md)."""
    order_control: bool = False
    """Control arm of a sorted order, a file or a curriculum: the same readings in random order."""
    seed: int = 0
    """Fixes initial weights, order and dropout."""
    dtype: Dtype = "bf16"
    """bf16 (fp32 master weights, bf16 compute) or fp32."""
    strategy: Strategy = "auto"
    """How the model's state is spread over ranks."""
    ds_config: str | None = None
    """Your own DeepSpeed file instead of the strategy's; it sets nothing that the plan owns."""
    nvme_path: str | None = None
    """Directory on each node's NVMe disk, for strategies that offload there."""
    activation_checkpointing: Switch = "auto"
    """Compute activations again in backward instead of keeping them (auto: off)."""
    compile: bool = False
    """Compile the model's layers with torch.compile: half a minute at the start, faster steps. Under ddp alone."""
    holdout: float = 0.25
    """Fraction of the source documents that is sealed: never trained on."""
    holdout_seed: int = 0
    """Which documents are sealed; apart from the seed, so that runs of several seeds share one holdout."""
    max_bad_rows: int = 0
    """How many broken rows are passed over before compiling stops."""
    save_every: int | None = None
    """Steps between checkpoints (default: a round number that gives about eight)."""
    save_schedule: SaveSchedule = "linear"
    """linear, or log: steps 0, 1, 2, 4 ... 512, then every save_every."""
    keep_states: int = 2
    """Newest checkpoints that keep what resuming needs; the models of all are kept."""
    log_every: int = 10
    """Steps between lines of the log."""
    eval_every: int | None = None
    """Steps between measurements of the loss on sealed samples (default: at checkpoints alone)."""
    generations: int = 3
    """Sealed samples whose prompts the model continues at each checkpoint, to be looked at."""
    on_bad_loss: OnBadLoss = "stop"
    """A loss or gradient that is not finite, or a spike: stop the run, or skip the batch (read, not learned from)."""
    spike_factor: float | None = None
    """A loss above this many times the median of the last 64 batches is a spike (default: none is)."""
    tracker: str = "tensorboard"
    """Where numbers go: tensorboard (files in the run), wandb, or both with a comma between."""
    peak_tflops: float | None = None
    """TFLOP/s of one device at best, to tell which share of it is used (default: known GPUs' own)."""
    resume: Resume = "auto"
    """auto continues from the newest valid checkpoint; never refuses a run that has begun."""
    cluster: str = "local"
    """Where the ranks run."""
    nodes: int = 1
    """Machines."""
    ranks_per_node: int | Literal["auto"] = "auto"
    """Processes per machine (auto: its GPUs, or 1)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning-rate schedule."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters, trained instead of all weights."""

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers."""
        return self.tracker.split(",")

    def __post_init__(self) -> None:
        _check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """One pretraining on raw text."""

    program: ClassVar[str] = "pretrain"
    unused: ClassVar[tuple[str, ...]] = ("template", "loss_on", "pack")
    """Settings that make no sense for text without roles."""
    model: str = "stories-15m"
    """Registry name, stories-WIDTHxLAYERSxHEADS, or a directory with a SentencePiece tokenizer.model."""
    data: str | None = None
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
    save_schedule: SaveSchedule = "log"
    """log (steps 0, 1, 2, 4 ... 512, then every save_every), or linear."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.1, min_lr=0.0))
    """Optimiser and learning-rate schedule; the defaults are llama2.c's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab", "word_list", "perplexity"):
            if getattr(self, name) == "":
                raise UserError(f"--{name}: is empty; leave it out for its default")
        for name in self.unused:
            if getattr(self, name) != getattr(RunConfig, name):
                raise UserError(f"--{name} {getattr(self, name)}: is for instructions, not for stories; leave it out")
        if self.seq_len is not None and self.seq_len < 4:
            raise UserError(f"--seq_len {self.seq_len}: choose at least 4")


KINDS: tuple[type[RunConfig], ...] = (RunConfig, PretrainConfig)
"""Settings of every recipe; those with fewer fields first."""


def kind_of(values: dict[str, Any]) -> type[RunConfig]:
    """Whose settings these are, of `config.yaml`: the first kind that has all these keys, or else most of them."""
    return min(KINDS, key=lambda kind: len(values.keys() - {f.name for f in fields(kind)}))


def _check_holdout(holdout: float, max_bad_rows: int) -> None:
    if not 0 <= holdout < 1:
        raise UserError(f"--holdout {holdout}: must be at least 0 and below 1 (a fraction of the documents)")
    if max_bad_rows < 0:
        raise UserError(f"--max_bad_rows {max_bad_rows}: must be at least 0")


def _check_ranges(config: RunConfig) -> None:
    for name in ("model", "data", "template", "out", "corpora", "ds_config", "nvme_path"):
        if getattr(config, name) == "":
            raise UserError(f"--{name}: is empty; leave it out for its default")
    if config.out and not config.out.isprintable():
        raise UserError(f"--out {config.out!r}: holds a control character; choose a plain name")
    if config.seq_len == 1:
        raise UserError("--seq_len 1: a sample needs a token to predict and one before it; choose at least 2")
    for name in (
        "steps",
        "batch_size",
        "micro_batch_size",
        "seq_len",
        "save_every",
        "keep_states",
        "log_every",
        "eval_every",
        "nodes",
    ):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if config.ranks_per_node != "auto" and config.ranks_per_node < 1:
        raise UserError(f"--ranks_per_node {config.ranks_per_node}: must be at least 1, or auto")
    if unknown := sorted(set(config.trackers) - set(TRACKERS)):
        raise UserError(f"--tracker {config.tracker}: unknown: {', '.join(unknown)}; choose from {', '.join(TRACKERS)}")
    if config.peak_tflops is not None and not config.peak_tflops > 0:
        raise UserError(f"--peak_tflops {config.peak_tflops}: must be above 0")
    if config.epochs is not None and not config.epochs > 0:
        raise UserError(f"--epochs {config.epochs}: must be above 0")
    _check_holdout(config.holdout, config.max_bad_rows)
    if config.generations < 0:
        raise UserError(f"--generations {config.generations}: must be at least 0")
    if config.spike_factor is not None and not config.spike_factor > 1:
        raise UserError(f"--spike_factor {config.spike_factor}: must be above 1 (times the median loss)")
    if not 0 <= config.seed < 2**64:
        raise UserError(f"--seed {config.seed}: must be at least 0 and below 2^64")
    optim = config.optim
    if optim.lr is not None and not optim.lr > 0:
        raise UserError(f"--optim.lr {optim.lr}: must be above 0")
    for name in ("beta1", "beta2", "warmup", "min_lr"):
        value = getattr(optim, name)
        if not 0 <= value <= 1:
            raise UserError(f"--optim.{name} {value}: must lie between 0 and 1")
    for name in ("weight_decay", "clip"):
        value = getattr(optim, name)
        if not value >= 0:
            raise UserError(f"--optim.{name} {value}: must be at least 0")
    if not optim.eps > 0:
        raise UserError(f"--optim.eps {optim.eps}: must be above 0")
    _check_lora(config.lora)
    _check_frozen(config)
    if config.compile and (config.strategy not in ("auto", "ddp") or config.ds_config):
        raise UserError("--compile: is for ddp; leave it out, or --strategy and --ds_config")


def _check_frozen(config: RunConfig) -> None:
    if config.freeze is not None and not all(pattern.strip() for pattern in config.freeze.split(",")):
        raise UserError(f"--freeze {config.freeze!r}: holds an empty pattern; write them as *.embed_in.*,*.layers.0.*")
    if config.freeze is not None and config.lora.rank:
        raise UserError("--freeze: LoRA freezes all weights of the model already; leave one of both out")
    if config.load_in_4bit and not config.lora.rank:
        raise UserError("--load_in_4bit: weights of 4 bits cannot be trained; add adapters with --lora.rank")
    if config.load_in_4bit and (config.strategy not in ("auto", "ddp") or config.ds_config):
        raise UserError("--load_in_4bit: ZeRO does not divide weights of 4 bits; leave --strategy and --ds_config out")


def _check_lora(lora: LoraConfig) -> None:
    if lora.rank < 0:
        raise UserError(f"--lora.rank {lora.rank}: must be at least 1, or 0 to train all weights")
    if not lora.rank and lora != LoraConfig():
        raise UserError("--lora.rank: is missing, so the other settings of LoRA mean nothing; give one, e.g. 8")
    if lora.alpha is not None and not lora.alpha > 0:
        raise UserError(f"--lora.alpha {lora.alpha}: must be above 0")
    if not 0 <= lora.dropout < 1:
        raise UserError(f"--lora.dropout {lora.dropout}: must be at least 0 and below 1")
    if lora.targets is not None and not all(name.strip() for name in lora.targets.split(",")):
        raise UserError(f"--lora.targets {lora.targets!r}: holds an empty name; write them as q_proj,v_proj")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a dataclass, ready for YAML or JSON."""
    return asdict(config)


def from_dict(kind: type[Any], values: dict[str, Any]) -> Any:
    """Build dataclass `kind` from a nested dict, as `to_dict` made it.

    Raises
    ------
    UserError
        When a key is not a field of `kind`.
    """
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{kind.__name__}: unknown keys {', '.join(unknown)}; written by another version of wellread?")
    hints = get_type_hints(kind)
    return kind(**{k: from_dict(hints[k], v) if is_dataclass(hints[k]) else v for k, v in values.items()})
