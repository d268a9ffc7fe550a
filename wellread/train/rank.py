"""The training process of one rank: ``python -m finetune train RUN`` and ``python -m pretrain train RUN``."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wellread import provenance, streams
from wellread.errors import BAD_INPUT, FAILURE, user_message
from wellread.files import open_unlinked, write_json
from wellread.processes import ATTEMPT_NUMBER, LAUNCHER, die_with, importing
from wellread.run import RunDirectory
from wellread.train import shortage

if TYPE_CHECKING:
    from wellread.models.load import Source


def run_rank(path: str) -> NoReturn:
    """Train this rank of the run at `path`, then end the process."""
    die_with_launcher()
    streams.outlive_reader()
    leave(main(path))


def main(path: str) -> int:
    """Train this rank; return its exit code."""
    run = RunDirectory.open(path)
    run.refuse_links()
    attempt, rank = int(os.environ.get(ATTEMPT_NUMBER, 1)), int(os.environ.get("RANK", 0))
    run.log.mkdir(exist_ok=True)
    log = run.log / f"attempt-{attempt:03d}-rank-{rank}.log"
    try:
        return _train(run, log, rank)
    except KeyboardInterrupt:  # before the handler of the loop exists: nothing has been trained
        return 128 + signal.SIGINT
    except BaseException as error:
        text = traceback.format_exc()
        with open_unlinked(log, "a") as file:
            file.write(text)
        users = user_message(error)
        message = users or f"{type(error).__name__}: {error}"
        code = BAD_INPUT if users else FAILURE
        note: dict[str, Any] = {"time": time.time(), "rank": rank, "error": message, "trace": text, "exit_code": code}
        if shortfall := shortage.shown_by(error, text):
            note["shortage"] = asdict(shortfall)
        write_json(log.with_suffix(".error.json"), note)
        if users and LAUNCHER in os.environ:  # the launcher prints it once for all ranks
            return BAD_INPUT
        if isinstance(error, FloatingPointError) and LAUNCHER in os.environ:  # --on_bad_loss stop: not a bug
            return FAILURE
        raise


def _train(run: RunDirectory, log: Path, rank: int) -> int:
    if rank > 0:
        _redirect(log)
    provenance.check_code_root()
    import warnings

    # Deprecations of torch inside DeepSpeed and DDP, which the user cannot fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")

    with importing():
        import transformers.modeling_utils  # noqa: F401 (AutoModel imports it later)

        from wellread.planning.plan import Plan
        from wellread.train import arithmetic, ranks
        from wellread.train.loop import train

    device = Plan.open(run.plan_file).machine.device
    arithmetic.settle(run.config().model, device)
    ranks.start(device)
    code = train(run, lambda: _source(run), log)
    ranks.stop()
    return code


def _source(run: RunDirectory) -> Source:
    """The model that training starts from."""
    from wellread.corpus.read import Corpus
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.models.load import initial
    from wellread.recipes.registry import model_of_run

    config, corpus = run.config(), Corpus.open(run.corpus)
    tokenizer = Tokenizer.load(corpus.tokenizer)
    spec, bos = model_of_run(run), tokenizer.backend.bos_token_id
    return initial(spec, config.schedule.seed, tokenizer.eos, config.lora, config.model.init, bos)


def _redirect(log: Path) -> None:
    """Redirect stdout and stderr of this rank to its log; only rank 0 prints to the terminal."""
    with open_unlinked(log, "ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def leave(code: int) -> NoReturn:
    """End this process without finalizing the interpreter.

    Finalizing sometimes aborts ("terminate called without an active exception") when a thread of torch still runs,
    and a finished run would count as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_launcher() -> None:
    """Ask the kernel to end this process when the launcher that started it dies for any reason."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        die_with(int(launcher))
