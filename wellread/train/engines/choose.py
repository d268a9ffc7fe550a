"""Create the engine that a plan chose."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wellread.config import RunConfig
    from wellread.models.load import Source
    from wellread.planning.plan import Plan
    from wellread.train.engines.base import Engine

ENGINES = {
    "torch": "wellread.train.engines.torch_engine:TorchEngine",
    "deepspeed": "wellread.train.engines.deepspeed_engine:DeepSpeedEngine",
}
"""`Plan.engine` -> module and class; only the chosen one is imported."""


def make_engine(source: Source, config: RunConfig, plan: Plan) -> Engine:
    """Create the engine that the plan chose, with its model. Collective."""
    module, name = ENGINES[plan.engine].split(":")
    engine: Engine = getattr(import_module(module), name)(source, config, plan)
    return engine
