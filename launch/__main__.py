"""Launch a run: plan it, start its ranks, return its exit code."""

from __future__ import annotations

import json
import sys

from wellread.cli import add_dataclass, new_parser, parse_dataclass, run_program

USAGE = """usage: python -m launch COMMAND ...

Launch LLM training, and know exactly what every checkpoint has read.

commands:
  run finetune [FLAGS]     prepare the corpus, train, return the job's exit code; again: continue
  plan finetune [FLAGS]    print what run would do, and start nothing; --json for machines

examples:
  python -m launch run finetune                                        tiny model, sample data
  python -m launch run finetune --model ~/models/pythia-70m --data dolly@databricks-dolly-15k.jsonl \\
      --ranks_per_node 2 --strategy zero2 --optim.lr 1e-5 --out runs/dolly-70m
  python -m launch plan finetune --model pythia-70m --batch_size 64 --json
  python -m launch run finetune --help                                 all flags
"""

EXAMPLES = """examples:
  python -m launch {command} finetune --model tiny --data sample
  python -m launch {command} finetune --data my.jsonl --steps 200 --save_schedule log --out runs/mine
  python -m launch {command} finetune --config run.yaml --optim.lr 1e-5       YAML first, then flags
"""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, *rest = argv
    if command not in ("run", "plan"):
        raise ValueError(f"launch {command}: unknown command; use run or plan, see python -m launch --help")
    if not rest or rest[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    program, *flags = rest
    if program != "finetune":
        raise ValueError(f"launch {command} {program}: unknown program; use finetune")
    return _finetune(command, flags)


def _finetune(command: str, flags: list[str]) -> int:
    from wellread.config import RunConfig

    description = {"run": "Fine-tune a model.", "plan": "Print what `run` would do, and start nothing."}[command]
    parser = new_parser(f"python -m launch {command} finetune", description, EXAMPLES.replace("{command}", command))
    add_dataclass(parser, RunConfig)
    if command == "plan":
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    config, others = parse_dataclass(parser, RunConfig, flags)

    from launch import job, show

    if command == "run":
        return job.run(config)
    plan = job.Job.resolve(config)
    text = json.dumps(show.as_dict(plan), indent=2) if others.get("json") else show.as_text(plan)
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
