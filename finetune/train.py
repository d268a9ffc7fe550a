"""Train one rank of a fine-tuning run: ``python -m finetune train RUN``, started by the launcher."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

from wellread.runs import RunDirectory, write_json


def main(path: str) -> int:
    """Train this rank; return its exit code."""
    run = RunDirectory.open(path)
    attempt, rank = int(os.environ.get("WELLREAD_ATTEMPT", 1)), int(os.environ.get("RANK", 0))
    run.log.mkdir(exist_ok=True)
    log = run.log / f"attempt-{attempt:03d}-rank-{rank}.log"
    try:
        return _train(run, log, rank)
    except BaseException as error:
        from wellread.cli import bad_input

        text = traceback.format_exc()
        with open(log, "a") as file:
            file.write(text)
        message = bad_input(error) or f"{type(error).__name__}: {error}"
        write_json(log.with_suffix(".error.json"), {"time": time.time(), "rank": rank, "error": message, "trace": text})
        raise


def _train(run: RunDirectory, log: Path, rank: int) -> int:
    if rank > 0:
        _redirect(log)
    import warnings

    # torch's own deprecations inside DeepSpeed and DDP: nothing that the user of a run can mend
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    from transformers.utils import logging as transformers_logging

    from wellread.data.tokenizer import Tokenizer
    from wellread.models.load import load_initial
    from wellread.models.registry import find
    from wellread.train import ranks
    from wellread.train.loop import train

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    ranks.start()
    config = run.config()
    eos = Tokenizer.load(run.corpus / "tokenizer").eos
    code = train(run, lambda: load_initial(find(config.model), config.seed, eos), log)
    ranks.stop()
    return code


def _redirect(log: Path) -> None:
    """Send this rank's output to its log; the terminal belongs to rank 0."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())


def die_with_launcher() -> None:
    """Ask the kernel to end this process when the launcher that started it dies, whatever kills it."""
    launcher = os.environ.get("WELLREAD_LAUNCHER")
    if launcher is None or not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != int(launcher):  # it died before the request was made
        sys.exit(1)
