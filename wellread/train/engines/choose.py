"""The engines by name, and making the one that a plan chose."""

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
"""`Plan.engine` -> where its class is; only the chosen one is imported."""


def make_engine(source: Source, config: RunConfig, plan: Plan) -> Engine:
    """Build the engine that the plan chose, and the model in it. Collective."""
    module, name = ENGINES[plan.engine].split(":")
    engine: Engine = getattr(import_module(module), name)(source, config, plan)
    return engine
