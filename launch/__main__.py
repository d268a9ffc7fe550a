"""Launch a run: plan it, start its ranks, return its exit code."""

from __future__ import annotations

import json
import sys
from importlib import import_module

from wellread.cli import finetune_flags, new_parser, pretrain_flags, run_program
from wellread.errors import UserError

USAGE = """usage: python -m launch COMMAND ...

Launch LLM training, and know exactly what every checkpoint has read.

commands:
  run finetune [FLAGS]     prepare the corpus, train, return the job's exit code; again: continue
  run pretrain [FLAGS]     the same for a small Llama on stories, from nothing
  run eval COMMAND RUN     evaluate, here or as SLURM jobs; --fan_out takes one task per checkpoint
  plan finetune [FLAGS]    print what run would do, and start nothing; --json for machines
  plan pretrain [FLAGS]    the same for a pretraining
  status [RUN]             queue and run state, step, rate, time left, last checkpoint, attempts
  logs RUN                 logs of all ranks in one, the first error first; --follow, --rank, --errors
  cancel RUN               ask for a save, then end it
  models                   known models, and the memory that fine-tuning them needs; --json
  doctor                   check this machine, or a cluster's nodes, before a job does

examples:
  python -m launch run finetune                                        tiny model, sample data
  python -m launch run finetune --model ~/models/pythia-70m --data dolly@databricks-dolly-15k.jsonl \\
      --ranks_per_node 2 --strategy zero2 --optim.lr 1e-5 --out runs/dolly-70m
  python -m launch run finetune --cluster slurm --nodes 2 --then eval --wait
  python -m launch plan finetune --model pythia-70m --batch_size 64 --json
  python -m launch run pretrain --size 15M --vocab 4096 --data tinystories --cluster slurm --nodes 2
  python -m launch run finetune --help                                 all flags
"""

FINETUNE_EXAMPLES = """examples:
  python -m launch {command} finetune --model tiny --data sample
  python -m launch {command} finetune --data my.jsonl --steps 200 --save_schedule log --out runs/mine
  python -m launch {command} finetune --cluster my-cluster.yaml --nodes 2 --time 8:00:00
  python -m launch {command} finetune --config run.yaml --optim.lr 1e-5       YAML first, then flags
"""

PRETRAIN_EXAMPLES = """examples:
  python -m launch {command} pretrain                                          15M, on stories made up here
  python -m launch {command} pretrain --size 260K --data tinystories --vocab 512 --steps 2000
  python -m launch {command} pretrain --size 128x4x4 --data stories.txt --order sorted:flesch_kincaid:asc --metrics
  python -m launch {command} pretrain --config run.yaml --cluster slurm --nodes 2
"""

OTHERS = {
    "status": "launch.status",
    "logs": "launch.logs",
    "cancel": "launch.cancel",
    "doctor": "launch.doctor",
    "models": "launch.models",
}
"""Command -> module whose ``main(argv)`` it is."""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, *rest = argv
    if command == "node":  # not for people: the ssh backend starts it on each node
        return int(import_module("launch.backends.ssh.node").main())
    if command in OTHERS:
        return int(import_module(OTHERS[command]).main(rest))
    if command not in ("run", "plan"):
        raise UserError(
            f"launch {command}: unknown command; use run, plan, {', '.join(OTHERS)}, see python -m launch --help"
        )
    if not rest or rest[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    program, *flags = rest
    if program in ("finetune", "pretrain"):
        return _train(command, program, flags)
    if program == "eval" and command == "run":
        return _evaluate(flags)
    known = "finetune, pretrain or eval" if command == "run" else "finetune or pretrain"
    raise UserError(f"launch {command} {program}: unknown program; use {known}")


def _train(command: str, program: str, flags: list[str]) -> int:
    from launch import options

    description = "Print what `run` would do, and start nothing."
    if command == "run":
        description = {"finetune": "Fine-tune a model.", "pretrain": "Pretrain a small Llama on stories."}[program]
    examples = {"finetune": FINETUNE_EXAMPLES, "pretrain": PRETRAIN_EXAMPLES}[program].replace("{command}", command)
    parser = new_parser(f"python -m launch {command} {program}", description, examples)
    parse_run = {"finetune": finetune_flags, "pretrain": pretrain_flags}[program](parser)
    options.add(parser)
    if command == "plan":
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    config, others = parse_run(flags)
    chosen = options.LaunchOptions.of(others)

    from launch import job, show
    from wellread.planning.plan import NothingFits

    if command == "run":
        return job.run(config, chosen)
    plan, as_json = job.Job.resolve(config, chosen), others.get("json")
    try:
        text = json.dumps(show.as_dict(plan), indent=2) if as_json else show.as_text(plan)
    except NothingFits as error:
        nothing = {"chosen": None, "strategies": error.strategies}
        print(json.dumps(nothing, indent=2) if as_json else show.memory(error.strategies, None))
        raise
    sys.stdout.write(text + "\n")
    return 0


def _evaluate(flags: list[str]) -> int:
    from launch import evaluation, options
    from wellread.run import RunDirectory

    parsed, rest = options.evaluation_flags(flags)
    request = evaluation.Request(
        command=parsed.command,
        run=RunDirectory.open(parsed.run),
        rest=tuple(rest),
        cluster=options.cluster_of(parsed.cluster, parsed.time, parsed.partition),
        fan_out=parsed.fan_out,
        parallelism=parsed.array_parallelism,
        wait=parsed.wait,
    )
    return evaluation.run(request)


if __name__ == "__main__":
    run_program(main)
