"""The recipes by name, and what is asked of the recipe that a run's settings belong to."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from wellread.config import RunConfig, from_dict, to_dict
from wellread.errors import UserError
from wellread.recipes.base import Recipe, Samples
from wellread.recipes.finetune import Finetune
from wellread.recipes.pretrain import Pretrain

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec
    from wellread.run import RunDirectory

C = TypeVar("C", bound=RunConfig)

RECIPES: dict[str, Recipe[Any]] = {recipe.name: recipe for recipe in (Finetune(), Pretrain())}
RESOLVED = "--resolved"
"""The one argument of ``python -m NAME prepare`` when resolved settings come as JSON on its standard input."""


def recipe_of(config: RunConfig) -> Recipe[Any]:
    """The recipe that settings belong to."""
    return RECIPES[config.program]


def resolve(config: C, spec: ModelSpec) -> C:
    """Fill in every default that depends on the model (see `Recipe.resolve`)."""
    resolved: C = recipe_of(config).resolve(config, spec)
    return resolved


def samples_of(config: RunConfig, spec: ModelSpec) -> Samples:
    """What a run of resolved settings reads (see `Recipe.samples`)."""
    return recipe_of(config).samples(config, spec)


def model_of_run(run: RunDirectory) -> ModelSpec:
    """The model of a run that has begun."""
    from wellread.models.registry import find

    config = run.config()
    return recipe_of(config).model(config, find(config.model.name), run.corpus)


def handed_over(config: RunConfig) -> str:
    """Resolved settings as `received` reads them in another process."""
    return json.dumps(to_dict(config))


def received(name: str) -> Any:
    """Resolved settings of the recipe `name`, from standard input.

    Raises
    ------
    UserError
        When there are none.
    """
    try:
        values = json.load(sys.stdin)
    except ValueError as error:
        raise UserError(f"{RESOLVED}: standard input holds no settings ({error}); launch gives them") from None
    return from_dict(RECIPES[name].config, values)
