"""Launch a run: plan it, start its ranks, return its exit code."""

from __future__ import annotations

import wellread.starting  # isort: skip  # noqa: F401  # first: Ctrl-C during the other imports

import json
import sys
from importlib import import_module

from launch.backends.jobs import QueueError
from wellread import streams
from wellread.cli import new_parser, run_program
from wellread.errors import FAILURE, UserError
from wellread.programs import check_kind, page
from wellread.recipes.registry import RECIPES
from wellread.streams import print_error

USAGE = """usage: wellread COMMAND ...

Launch LLM training, and know exactly what every checkpoint has read.

commands:
{runs}
  run eval EVALUATION RUN  evaluate, here or as SLURM jobs; --fan_out starts one task per checkpoint
{plans}
  status [RUN]             queue and run state, step, speed, time left, last checkpoint, attempts
  logs RUN                 logs of all ranks, the first error first; --follow, --rank, --errors
  cancel RUN               save a checkpoint, then end the run
  models                   known models, and the memory that fine-tuning them needs; --json
  doctor                   check this machine, or the nodes of a cluster, before a job does

examples:
  wellread run finetune                                        tiny model, sample data
  wellread run finetune --model ~/models/pythia-70m --data dolly@databricks-dolly-15k.jsonl \\
      --ranks_per_node 2 --strategy zero2 --optim.lr 1e-5 --out runs/dolly-70m
  wellread run finetune --cluster slurm --nodes 2 --then eval --wait
  wellread plan finetune --model pythia-70m --batch_size 64 --json
  wellread run pretrain --size 15M --vocab 4096 --data tinystories --cluster slurm --nodes 2
  wellread run finetune --help                                 all flags
"""


RUN_EXAMPLES = """examples:
  wellread run finetune                                        tiny model, sample data
  wellread run finetune --model pythia-70m --data dolly --then eval --out runs/mine
  wellread run pretrain --size 15M --vocab 4096 --data tinystories
  wellread run eval membership runs/mine --fan_out
"""
PLAN_EXAMPLES = """examples:
  wellread plan finetune --model pythia-2.8b --gpu_mem 80 --ranks_per_node 8
  wellread plan finetune --model pythia-70m --batch_size 64 --json
  wellread plan pretrain --size 15M --cluster slurm --nodes 2
"""


def usage() -> str:
    """Text of ``python -m launch --help``."""
    runs = (f"  {f'run {name} [FLAGS]':24} {recipe.usage}" for name, recipe in RECIPES.items())
    text = "show what run would do, and start nothing; --json for programs"
    plans = (f"  {f'plan {name} [FLAGS]':24} {'the same' if i else text}" for i, name in enumerate(RECIPES))
    return USAGE.format(runs="\n".join(runs), plans="\n".join(plans))


MODULES = {
    "status": "launch.status",
    "logs": "launch.logs",
    "cancel": "launch.cancel",
    "doctor": "launch.doctor",
    "models": "launch.models",
}
"""Command -> module whose ``main(argv)`` runs it."""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0
    command, *arguments = argv
    if command == "node":  # not for users: the ssh backend starts it on each node
        return int(import_module("launch.backends.ssh.node").main())
    if command in MODULES:
        return int(import_module(MODULES[command]).main(arguments))
    if command not in ("run", "plan"):
        raise UserError(f"launch {command}: unknown command; use run, plan, {', '.join(MODULES)}, see wellread --help")
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_run_page() if command == "run" else _plan_page())
        return 0
    program, *flags = arguments
    check_kind(command, program, [*RECIPES, *(["eval"] if command == "run" else [])])
    try:
        return _train(command, program, flags) if program in RECIPES else _evaluate(flags)
    except QueueError as error:
        print_error(f"{error}; repeat the command when the queue answers")
        return FAILURE


def _run_page() -> str:
    kinds = {f"{name} [FLAGS]": recipe.usage for name, recipe in RECIPES.items()}
    kinds["eval EVALUATION RUN"] = "evaluate here or as SLURM jobs; --fan_out: one task per checkpoint"
    return page("run", "Train a model, or evaluate a run.", kinds, RUN_EXAMPLES)


def _plan_page() -> str:
    kinds = {f"{name} [FLAGS]": f"what wellread run {name} would do" for name in RECIPES}
    summary = "Show batches, ranks, memory and strategy of a run, and start nothing; --json for programs."
    return page("plan", summary, kinds, PLAN_EXAMPLES)


def _train(command: str, program: str, flags: list[str]) -> int:
    from launch import options

    recipe = RECIPES[program]
    description = recipe.description if command == "run" else "Show what `run` would do, and start nothing."
    examples = recipe.examples.replace("{command}", command)
    parser = new_parser(f"wellread {command} {program}", description, examples)
    recipe.add_flags(parser)
    options.add(parser)
    if command == "plan":
        output = parser.add_argument_group("output")
        output.add_argument("--json", action="store_true", help="Print one JSON object.")
    config, extra = recipe.parse(parser, flags)
    launch_options = options.LaunchOptions.of(extra)

    from launch import job, show
    from wellread.planning.decision import NothingFits

    if command == "run":
        streams.outlive_reader()
        return job.run(config, launch_options)
    plan, as_json = job.Job.resolve(config, launch_options), extra.get("json")
    try:
        text = json.dumps(show.as_dict(plan), indent=2) if as_json else show.as_text(plan)
    except NothingFits as error:
        answer = {"chosen": None, "strategies": error.strategies}
        print(json.dumps(answer, indent=2) if as_json else show.memory(error.strategies, None))
        raise
    sys.stdout.write(text + "\n")
    return 0


def _evaluate(flags: list[str]) -> int:
    from launch import evaluation, options
    from wellread.run import RunDirectory

    streams.outlive_reader()
    parsed, of_evaluation = options.evaluation_flags(flags)
    request = evaluation.Request(
        command=parsed.command,
        run=RunDirectory.open(parsed.run),
        flags=tuple(of_evaluation),
        cluster=options.cluster_of(parsed.cluster, parsed.time, parsed.partition),
        fan_out=parsed.fan_out,
        parallelism=parsed.array_parallelism,
        wait=parsed.wait,
    )
    return evaluation.run(request)


if __name__ == "__main__":
    run_program(main)
