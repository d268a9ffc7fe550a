"""Speed of pretraining on a CPU, compared with llama2.c's own model.

    python -m bench.cpu LLAMA2C [--repeats 3] [--minutes 13] [--json FILE]

LLAMA2C is a checkout of llama2.c, of which `model.py` is loaded: its model, loss and optimizer. Both sides train the
15M size with a vocabulary of 4,096 from the same weights on the same batches, 32 windows of 256 tokens a step, in
micro-batches of 8, on two cores. llama2.c's training loop is written here as in its train.py, in fp32, with bf16
autocast and with torch.compile (train.py itself has no autocast on a CPU). wellread runs as its command, with record
and digests. First, both train 50 steps: losses that differ end the bench. Then they are measured in turns:

as shipped          neither side gets variables for threads or memory, except the number of threads
same environment    llama2.c gets the variables that wellread sets for its ranks; one process each

The last line is one JSON object. Exit code 1 if wellread is slower than llama2.c's model with bf16 and torch.compile
(where torch cannot compile: than the fastest of the others).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.work import WARM
from bench.pretrain import Work, settings
from bench.trainer import ROOT, call, run_command, versions, wellread
from launch import environment
from launch.cluster import ClusterFile
from wellread.checkpoint import list_checkpoints
from wellread.corpus.read import Corpus
from wellread.order.store import open_order
from wellread.planning.plan import Plan
from wellread.planning.rate import planned_rate
from wellread.record.reader import Record
from wellread.run import RunDirectory

GOAL, GOAL_OF_EQUALS = 1.3, 1.15
"""Goals of the two tables: as shipped, and in the same environment."""
THREADS = 2
CHECKED_STEPS, CHECKED_BATCH, CHECKED_RATE = 50, 8, 1e-4
"""Steps, samples per step and learning rate of the comparison of losses. At the learning rate of a run, 5e-4, rounding
moves the loss of these steps by up to 0.07, in either direction; at 1e-4 by 0.0002."""
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-3, "bf16 compiled": 2e-3}
"""Largest difference of the mean loss of the last ten of the checked steps, in nats."""
SECONDS = 10.0
"""Seconds that a measurement takes, about."""
TUNED = ("OMP_", "GOMP_", "KMP_", "MALLOC_", "ONEDNN_", "LD_PRELOAD", "TORCHINDUCTOR_")
"""Beginnings of the names of variables that change the speed."""
SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"),
    *("asimd", "sve", "sve2", "bf16"),
)
"""Instruction sets that matter for matrix products, by their names in /proc/cpuinfo."""


# --- the processor ---------------------------------------------------------------------------------------------------


def processor() -> tuple[str, list[str]]:
    """Name of the processor, and those of its instruction sets that matter."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = values.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in values:  # one name may be that of several processors
        name += f" (family {values['cpu family']}, model {values.get('model', '?')})"
    flags = set(values.get("flags", values.get("Features", "")).split())
    return name, [each for each in SETS if each in flags]


def untuned(ranks: int = 1) -> dict[str, str]:
    """The environment without variables that change the speed, with the number of threads of each rank."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(TUNED)}
    return plain | {
        "OMP_NUM_THREADS": str(max(1, threads() // ranks)),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }


def of_ranks() -> dict[str, str]:
    """Variables for threads and memory that wellread sets for a rank on a CPU."""
    values = environment.variables(ClusterFile(kind="local"), "cpu", threads())
    return {name: value for name, value in values.items() if name.startswith(TUNED)}


def threads() -> int:
    """Number of threads of each side."""
    return min(THREADS, len(os.sched_getaffinity(0)))


# --- llama2.c --------------------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """A process that trains llama2.c's model; it waits between the measurements."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, checkout: Path, run: RunDirectory, variables: dict[str, str]) -> Peer:
        """Start the process; its batches and initial weights are those of `run`."""
        command = [sys.executable, "-m", "bench.cpu", "peer", str(checkout), str(run.path)]
        log = open(run.path.parent / "peer.log", "a")  # noqa: SIM115 - of the process
        with log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=untuned() | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip
        return cls(process)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Train some steps (`Trainer.train`)."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama2.c's process ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(checkout: Path, run: Path) -> None:
    """Answer requests, one JSON object per line."""
    output, sys.stdout = sys.stdout, sys.stderr  # llama2.c prints
    trainers: dict[str, Trainer] = {}
    for line in sys.stdin:
        request = json.loads(line)
        variant = request.pop("variant")
        try:
            if variant not in trainers:
                trainers[variant] = Trainer(checkout, RunDirectory.open(run), variant)
            answer = trainers[variant].train(**request)
        except Exception as error:  # torch.compile raises many kinds where it cannot compile
            if "compiled" not in variant:
                raise
            answer = {"error": next(iter(str(error).strip().splitlines()), repr(error))}
        print(json.dumps(answer), file=output, flush=True)


@dataclass
class Trainer:
    """llama2.c's model, trained as in its train.py."""

    checkout: Path
    run: RunDirectory
    variant: str
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        self._model = llama2c_model(self.checkout, list_checkpoints(self.run.checkpoints)[0].model)
        self._forward: Any = torch.compile(self._model) if "compiled" in self.variant else self._model
        optim = self.run.config().optim
        self._optimizer = self._model.configure_optimizers(
            optim.weight_decay, optim.lr, (optim.beta1, optim.beta2), "cpu"
        )

    def train(self, *, batch_size: int, micro_batch: int, steps: int, seconds: float) -> dict[str, Any]:
        """Train `steps` steps, or more until `seconds` have passed since the warm-up.

        Returns
        -------
        dict
            ``ended``, the time after each step; ``tokens``, per step; ``losses``, mean loss of each step.
        """
        import torch

        config, plan = self.run.config(), Plan.open(self.run.plan_file)
        batches, ended, tokens, losses = windows(self.run, batch_size), list[float](), list[int](), list[float]()
        bf16 = "bf16" in self.variant
        while len(ended) < steps or ended[-1] - ended[WARM - 1] < seconds:
            number = len(self.losses) + len(losses)
            lr = planned_rate(number, plan, config.optim)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            batch, loss_of_step = torch.from_numpy(next(batches)), 0.0
            tokens.append(int((batch >= 0).sum()))
            for part in torch.split(batch, micro_batch):
                with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                    self._forward(part[:, :-1].clamp(min=0), part[:, 1:].contiguous())
                    loss = self._model.last_loss * (len(part) / batch_size)
                loss.backward()
                loss_of_step += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), config.optim.clip)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(loss_of_step)
            ended.append(time.perf_counter())
        self.losses += losses
        return {"ended": ended, "tokens": tokens, "losses": losses}


def windows(run: RunDirectory, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Batches in the order of a run, again and again: (batch_size, length), padded with -1."""
    corpus, order, plan = Corpus.open(run.corpus), open_order(run), Plan.open(run.plan_file)
    ids = np.concatenate([order.batch(step) for step in range(plan.steps)])
    every = np.full((len(ids), plan.seq_len), -1, dtype=np.int64)
    for row, sample_id in enumerate(ids.tolist()):
        tokens = corpus.tokens(sample_id)
        every[row, : len(tokens)] = tokens
    while True:
        for end in range(batch_size, len(every) + 1, batch_size):
            yield every[end - batch_size : end]


def llama2c_model(checkout: Path, directory: Path) -> Any:
    """llama2.c's model with the weights of a model directory."""
    import torch

    from wellread.models.llama2c.writer import ATTENTION, INNER, NORMS, weights

    module = importlib.util.spec_from_file_location("llama2c_model", checkout / "model.py")
    assert module
    assert module.loader
    code = importlib.util.module_from_spec(module)
    sys.modules[module.name] = code
    module.loader.exec_module(code)
    saved = weights(directory)
    config = saved.config
    model = code.Transformer(
        code.ModelArgs(
            dim=config.hidden_size, n_layers=config.num_hidden_layers, n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads, vocab_size=config.vocab_size, hidden_dim=config.intermediate_size,
            norm_eps=config.rms_norm_eps, max_seq_len=config.max_position_embeddings, dropout=0.0,
        )
    )  # fmt: skip
    names = {
        NORMS[0]: "attention_norm", NORMS[1]: "ffn_norm",
        **dict(zip(ATTENTION, ("attention.wq", "attention.wk", "attention.wv", "attention.wo"), strict=True)),
        **dict(zip(INNER, ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"), strict=True)),
    }  # fmt: skip
    values = {
        "tok_embeddings.weight": saved.embedding(),
        "norm.weight": saved.norm(),
        "output.weight": saved.embedding(),
    }
    for name, other in names.items():
        for layer, value in enumerate(saved.layers(name)):
            values[f"layers.{layer}.{other}.weight"] = value
    model.load_state_dict({name: value.to(torch.float32) for name, value in values.items()})
    return model.train()


# --- losses ----------------------------------------------------------------------------------------------------------


def check(work: Work, checkout: Path, folder: Path) -> RunDirectory:
    """Train both sides from equal weights on equal batches, and compare their losses; returns wellread's run in bf16.

    Raises
    ------
    SystemExit
        When they differ.
    """
    losses: dict[str, NDArray[np.float64]] = {}
    for dtype in ("fp32", "bf16"):
        small = {
            "steps": CHECKED_STEPS,
            "batch_size": CHECKED_BATCH,
            "dtype": dtype,
            "ranks_per_node": 1,
            "holdout": 0.0,
            "optim.lr": CHECKED_RATE,
        }
        out = folder / f"checked-{dtype}"
        call(run_command(settings(work, folder, **small, out=out), "pretrain"), variables=untuned())
        rows = Record.open(RunDirectory.open(out).record).table(["loss", "n_targets"])
        means, counts = (rows[name].to_numpy().reshape(-1, CHECKED_BATCH) for name in ("loss", "n_targets"))
        losses[dtype] = (means * counts).sum(1) / counts.sum(1)
    run = RunDirectory.open(folder / "checked-bf16")
    peer = Peer.start(checkout, run, {})
    for variant, most in TOLERANCE.items():
        answer = peer.ask(
            variant=variant, batch_size=CHECKED_BATCH, micro_batch=CHECKED_BATCH, steps=CHECKED_STEPS, seconds=0
        )
        if "error" in answer:
            print(f"{variant}: not compared, llama2.c's model cannot be compiled here: {answer['error']}")
            continue
        loss, peer_loss = losses[variant.split()[0]][-10:].mean(), float(np.mean(answer["losses"][-10:]))
        print(f"{variant}: loss of the last 10 of {CHECKED_STEPS} steps: wellread {loss:.5f}, llama2.c {peer_loss:.5f}")
        if not abs(loss - peer_loss) <= most:
            sys.exit(f"{variant}: the losses differ by {loss - peer_loss:.2g}, more than {most}; nothing was measured")
    peer.close()
    return run


# --- speed -----------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """Both tables: name of a row -> tokens per second in each round."""

    work: Work
    checkout: Path
    folder: Path
    run: RunDirectory
    shipped: dict[str, list[float]] = field(default_factory=dict)
    equal: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Row that could not be measured -> why."""

    def measure(self, repeats: int, until: float) -> None:
        """Measure all rows in turns, at most until a time, but at least once."""
        shipped, equal = Peer.start(self.checkout, self.run, {}), Peer.start(self.checkout, self.run, of_ranks())
        for number in range(repeats):
            began = time.monotonic()
            self._turn(self.shipped, shipped, tuple(TOLERANCE), {"wellread": {}} | self._two_ranks())
            self._turn(self.equal, equal, tuple(TOLERANCE)[1:], {"wellread": {"ranks_per_node": 1}})
            took = time.monotonic() - began
            print(f"round {number + 1} of {repeats}: {took:.0f} s", flush=True)
            if time.monotonic() + took > until and number + 1 < repeats:
                print("no further round: --minutes are over")
                break
        shipped.close()
        equal.close()

    def _two_ranks(self) -> dict[str, dict[str, Any]]:
        return {"wellread, two ranks": {"ranks_per_node": 2}} if threads() > 1 else {}

    def _turn(
        self, rates: dict[str, list[float]], peer: Peer, variants: tuple[str, ...], runs: dict[str, dict[str, Any]]
    ) -> None:
        for variant in variants:
            name = f"llama2.c, {variant}"
            answer = peer.ask(
                variant=variant, batch_size=self.work.batch_size, micro_batch=CHECKED_BATCH, steps=WARM + 2,
                seconds=SECONDS,
            )  # fmt: skip
            if "error" in answer:
                self.missing[name] = answer["error"]
                continue
            took = answer["ended"][-1] - answer["ended"][WARM - 1]
            rates.setdefault(name, []).append(sum(answer["tokens"][WARM:]) / took)
        expected = max(rates[f"llama2.c, {variant}"][-1] for variant in variants if f"llama2.c, {variant}" in rates)
        steps = WARM + max(3, round(SECONDS * expected / self.work.batch_size / self.work.seq_len))
        for name, overrides in runs.items():
            run = settings(self.work, self.folder, steps=steps, holdout=0.0, **overrides)
            variables = untuned(overrides.get("ranks_per_node", 1))
            rates.setdefault(name, []).append(wellread(run, 1, "pretrain", variables))

    def ratio(self, rates: dict[str, list[float]], name: str) -> list[float]:
        """Ratio of a row to llama2.c's in each round."""
        return [a / b for a, b in zip(rates[name], rates[self.compared(rates)], strict=True)]

    def compared(self, rates: dict[str, list[float]]) -> str:
        """The row of llama2.c that counts: bf16 and compiled, or the fastest where it cannot be compiled."""
        compiled = "llama2.c, bf16 compiled"
        peers = [name for name in rates if name.startswith("llama2.c")]
        return compiled if compiled in rates else max(peers, key=lambda name: statistics.median(rates[name]))

    def print(self) -> None:
        """Print both tables."""
        for title, rates, goal in (
            ("as shipped", self.shipped, GOAL),
            ("same environment", self.equal, GOAL_OF_EQUALS),
        ):
            print(f"\n{title:<28}{'tokens/s':>10}{'ratio':>8}   (goal: {goal:g} times {self.compared(rates)})")
            for name, values in rates.items():
                each = self.ratio(rates, name)
                print(
                    f"{name:<28}{statistics.median(values):>10,.0f}{statistics.median(each):>8.2f}"
                    f"   ({min(each):.2f} to {max(each):.2f})"
                )
        for name, why in self.missing.items():
            print(f"{name}: not measured: {why}")

    def result(self) -> dict[str, Any]:
        """The last line of the output."""
        name, isa = processor()
        ratio = float(statistics.median(self.ratio(self.shipped, "wellread")))
        return {
            "wellread": round(statistics.median(self.shipped["wellread"])),
            "llama2c": round(statistics.median(self.shipped[self.compared(self.shipped)])),
            "ratio": round(ratio, 3),
            "same_environment": round(float(statistics.median(self.ratio(self.equal, "wellread"))), 3),
            "processor": name,
            "isa": isa,
            "goal": GOAL,
            "reached": bool(ratio >= GOAL),
        }


def main() -> None:
    """Run the benchmark, or llama2.c's process."""
    if sys.argv[1:2] == ["peer"]:
        serve(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        bench()


def bench() -> None:
    """Print the tables and the result."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("llama2c", type=Path, help="checkout of llama2.c, with model.py")
    parser.add_argument("--repeats", type=int, default=3, help="most rounds")
    parser.add_argument("--minutes", type=float, default=13, help="no round starts that would end later")
    parser.add_argument("--json", type=Path, help="write all rounds to this file")
    options = parser.parse_args()
    if not (options.llama2c / "model.py").is_file():
        parser.error(f"{options.llama2c / 'model.py'}: not found; give a checkout of github.com/karpathy/llama2.c")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    work = Work("15M", 4096, 32, 256, 2000)
    with tempfile.TemporaryDirectory(prefix="wellread-cpu-") as name:
        folder = Path(name)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        print(versions())
        print(f"{', '.join((processor()[0], *processor()[1]))}; {threads()} threads")
        print(
            f"wellread: {' '.join(map(str, run_command(settings(work, folder, holdout=0.0), 'pretrain')))}", flush=True
        )
        run = check(work, options.llama2c.resolve(), folder)
        measured = Bench(work, options.llama2c.resolve(), folder, run)
        measured.measure(options.repeats, began + 60 * options.minutes)
        measured.print()
    result = measured.result()
    if options.json:
        rounds = {"as shipped": measured.shipped, "same environment": measured.equal, "missing": measured.missing}
        options.json.write_text(json.dumps({"result": result, "work": asdict(work), "rounds": rounds}, indent=1))
    print(json.dumps(result))
    sys.exit(result["ratio"] < 1)


if __name__ == "__main__":
    main()
