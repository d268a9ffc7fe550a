"""The recipes by name, and functions that use the recipe of given settings."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from wellread.config import RunConfig, from_dict, to_dict
from wellread.errors import UserError
from wellread.recipes.base import Recipe, Samples, default_out
from wellread.recipes.finetune import Finetune
from wellread.recipes.pretrain import Pretrain

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec
    from wellread.run import RunDirectory

C = TypeVar("C", bound=RunConfig)

RECIPES: dict[str, Recipe[Any]] = {recipe.name: recipe for recipe in (Finetune(), Pretrain())}
RESOLVED = "--resolved"
"""The only argument of ``python -m NAME prepare`` if it reads resolved settings from standard input, as JSON."""


def recipe_of(config: RunConfig) -> Recipe[Any]:
    """The recipe of these settings."""
    return RECIPES[config.program]


def resolve(config: C, spec: ModelSpec) -> C:
    """Fill in all defaults that depend on the model (see `Recipe.resolve`)."""
    resolved: C = recipe_of(config).resolve(config, spec)
    return resolved


def samples_of(config: RunConfig, spec: ModelSpec) -> Samples:
    """The samples of a run with resolved settings (see `Recipe.samples`)."""
    return recipe_of(config).samples(config, spec)


def model_of_run(run: RunDirectory) -> ModelSpec:
    """The model of a run whose corpus is compiled."""
    from wellread.models.registry import find

    config = run.config()
    return recipe_of(config).model(config, find(config.model.name), run.corpus)


def default_run(program: str, model: str, data: str) -> str:
    """The directory of a run without ``--out``; the Makefile calls it. Empty `data` is the default data set."""
    from wellread.models.registry import find

    spec = find(model)
    return default_out(spec, data or RECIPES[program].usual_data(spec))


def handed_over(config: RunConfig) -> str:
    """Resolved settings in the form that `received` reads in another process."""
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
        raise UserError(
            f"{RESOLVED}: standard input contains no settings ({error}); only the launcher uses this flag"
        ) from None
    return from_dict(RECIPES[name].config, values)
