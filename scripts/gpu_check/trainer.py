"""Hugging Face's Trainer on the rows of a trial: the same weights, batches, dtype, optimizer and learning rate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.gpu_check.synthetic import Trial, make_run, model_of
from scripts.gpu_check.trial import memory, reset_memory, synchronize
from scripts.gpu_check.weights import RandomSource
from wellread.corpus.read import Corpus
from wellread.order.store import open_order
from wellread.planning.plan import Plan
from wellread.units import GIB

if TYPE_CHECKING:
    from wellread.config import RunConfig
    from wellread.run import RunDirectory

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_trainer(trial: Trial, folder: Path, phase: Callable[[str], None]) -> dict[str, Any]:
    """Train the batches of a trial in their order with the Trainer; return the keys of its row.

    The losses must be those of the row of wellread with the same settings, up to the rounding of bf16: the check
    compares them. If the micro-batch does not fit, it is halved.
    """
    import torch

    phase("plan")
    run = make_run(trial, folder)
    plan, micro = Plan.open(run.plan_file), 0
    while True:
        micro = micro // 2 if micro else plan.micro_batch_size
        reset_memory()
        phase(f"training with {micro} samples per forward pass")
        try:
            return _trained(trial, run, plan, micro, folder)
        except torch.OutOfMemoryError:
            if micro == 1:
                raise


def _trained(trial: Trial, run: RunDirectory, plan: Plan, micro: int, folder: Path) -> dict[str, Any]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    config, accumulation = run.config(), plan.batch_size // micro
    model = model_on_device(run, config)
    losses: list[Any] = []
    ends: list[float] = []

    class Ordered(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **more: Any) -> Any:
            loss = super().training_step(*arguments, **more)
            losses.append(loss.detach())
            return loss

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step in (trial.warm, trial.warm + trial.steps):
                synchronize()
                ends.append(time.perf_counter())

    with one_process():
        arguments = TrainingArguments(**_arguments(config, plan, micro, folder, trial))
        arguments._n_gpu = min(1, arguments.n_gpu)  # otherwise it would use all GPUs of the machine
        Ordered(model=model, args=arguments, train_dataset=rows(run, plan), callbacks=[Clock()]).train()
    seconds = (ends[-1] - ends[0]) / trial.steps
    # Each micro-batch's loss is already divided by the targets of the whole step.
    steps = torch.stack(losses).float().cpu().numpy().reshape(-1, accumulation).sum(1).tolist()
    used = memory()
    return {
        "trained": True,
        "tokens_per_second": plan.batch_size * plan.seq_len / seconds,
        "gib_measured": used["process"] / GIB if used else None,
        "micro_batch": f"{accumulation} x {micro} x {plan.seq_len}",
        "seconds_per_step": seconds,
        "losses": steps,
        "first_loss": steps[0],
        "last_loss": steps[-1],
    }


@contextmanager
def one_process() -> Iterator[None]:
    """Hide the variables of a launcher: with them, the Trainer would keep a second copy of the gradients for DDP."""
    before = {name: os.environ.pop(name) for name in LAUNCHERS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def model_on_device(run: RunDirectory, config: RunConfig) -> Any:
    """The model of the trial with its random weights in fp32."""
    import torch

    from wellread.train import ranks
    from wellread.train.engines.weights import Weights, fill

    source = RandomSource.of_spec(model_of(run), config.lora)
    model = source.on_meta()
    fill(model, Weights(source, model), torch.float32, ranks.device())
    return model.to(ranks.device()).train()


def rows(run: RunDirectory, plan: Plan) -> list[dict[str, Any]]:
    """The samples in the order in which the run reads them, with label -100 for tokens without loss."""
    corpus, order = Corpus.open(run.corpus), open_order(run)
    listed = []
    for step in range(plan.steps):
        for sample in order.batch(step).tolist():
            tokens = corpus.tokens(sample).astype(np.int64)
            labels = np.where(corpus.targets(sample), tokens, -100)
            listed.append({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    return listed


def _arguments(config: RunConfig, plan: Plan, micro: int, folder: Path, trial: Trial) -> dict[str, Any]:
    """Arguments of the Trainer; all others have its defaults."""
    optim = config.optim
    return {
        "output_dir": str(folder / "trainer"),
        "use_cpu": plan.machine.device == "cpu",
        "bf16": plan.dtype == "bf16",
        "max_steps": trial.warm + trial.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": plan.batch_size // micro,
        "optim": "adamw_torch_fused",
        "learning_rate": optim.lr,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "adam_epsilon": optim.eps,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.clip,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": plan.machine.device == "cuda",
    }
