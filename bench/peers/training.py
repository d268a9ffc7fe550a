"""One epoch with Hugging Face's Trainer or a trainer derived from it, in the process of a peer."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import losses
from bench.peers.work import Work
from wellread.config import CONFIGS, RunConfig
from wellread.models.registry import find

STEPS = "peer.json"
"""File to which rank 0 writes the end and the tokens of each step."""


@dataclass(frozen=True)
class Epoch:
    """What the process of a peer trains."""

    work: Work
    folder: Path
    """Folder of the model, the rows and what the process writes."""
    packed: bool = False
    compared: bool = False
    """Whether losses are kept and no weight changes, or else the speed is measured."""

    @classmethod
    def of(cls, words: list[str]) -> Epoch:
        """The epoch that the words of a command describe."""
        work, folder, *flags = words
        return cls(Work(**json.loads(work)), Path(folder), packed="packed" in flags, compared="compared" in flags)


def train(trainer: type[Any], epoch: Epoch, model: Any, settings: Any, **options: Any) -> None:
    """Train with a `trainer`; rank 0 writes each step's end and tokens, with `compared` all ranks write losses."""
    import torch
    import torch.distributed as dist
    from transformers import TrainerCallback

    steps: list[tuple[float, int]] = []
    tokens = 0

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal tokens
            steps.append((time.time(), tokens))
            tokens = 0

    class Counting(trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal tokens
            mask = inputs.get("attention_mask")  # rows without padding have none
            tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().training_step(model, inputs, *arguments, **options)

    training = Counting(model=model, args=settings, callbacks=[Ends()], **options)
    scores: losses.Losses = {}
    if epoch.compared:
        losses.keep(model, scores)
    training.train()
    if epoch.compared:
        losses.write(scores, epoch.folder / f"losses-{settings.process_index}.json")
    counts = torch.tensor([count for _, count in steps])
    if epoch.work.ranks > 1:
        dist.all_reduce(counts)
    if settings.process_index == 0:
        summed = [(ended, count) for (ended, _), count in zip(steps, counts.tolist(), strict=True)]
        (epoch.folder / STEPS).write_text(json.dumps(summed))


def training_arguments(epoch: Epoch) -> dict[str, Any]:
    """Arguments of the Trainer; all others have its defaults."""
    work = epoch.work
    deepspeed = json.loads((CONFIGS / f"ds/{work.strategy}.json").read_text()) if work.strategy != "ddp" else None
    if deepspeed:
        automatic = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
        deepspeed |= dict.fromkeys((*automatic, "gradient_clipping"), "auto") | {"bf16": {"enabled": "auto"}}
    config = RunConfig().optim
    return {
        "output_dir": str(epoch.folder / "peer"),
        "use_cpu": True,
        "bf16": True,
        "deepspeed": deepspeed,
        "ddp_find_unused_parameters": False,
        "num_train_epochs": 1,
        "per_device_train_batch_size": work.micro_batch_size,
        "gradient_accumulation_steps": work.batch_size // work.micro_batch_size // work.ranks,
        "train_sampling_strategy": "group_by_length",
        "dataloader_num_workers": 1,
        "optim": "adamw_torch_fused",
        "learning_rate": losses.RATE if epoch.compared else find(work.model).lr,
        "adam_beta1": config.beta1,
        "adam_beta2": config.beta2,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
