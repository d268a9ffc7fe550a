"""Published models (configs/models.yaml), and the published checkpoints of their pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wellread.config import CONFIGS
from wellread.errors import UserError


@dataclass(frozen=True)
class PublishedStep:
    """One published checkpoint of a pretraining run."""

    revision: str
    """Branch of the hub repository; in suite v0 its number is not always the step."""
    step: int
    """Number of batches read."""
    batch_size: int
    """Samples per batch, each with 2,049 tokens."""

    @property
    def samples(self) -> int:
        """Number of samples read: sequences 0 … samples - 1 of Pythia's pre-shuffled Pile."""
        return self.step * self.batch_size


def models_file() -> dict[str, dict[str, Any]]:
    """Content of configs/models.yaml: models by name, their aliases, and the published suites."""
    import yaml

    content: dict[str, dict[str, Any]] = yaml.load(
        (CONFIGS / "models.yaml").read_text(encoding="utf-8"), Loader=_yaml_loader()
    )
    return content


def _yaml_loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def steps_of(name: str) -> list[PublishedStep]:
    """Published checkpoints of a registry model of any variant; empty if it does not belong to a suite."""
    suite, plain = "v0" if name.endswith("-v0") else "v1", name.removesuffix("-v0").removesuffix("-deduped")
    return published_steps(plain, suite) if plain in models_file()["published"][suite]["models"] else []


def published_steps(model: str, suite: str = "v1") -> list[PublishedStep]:
    """Published checkpoints of a model of the Pythia suite, in the order of training.

    Parameters
    ----------
    model : str
        Registry name without variant, e.g. pythia-160m; its -deduped variant has the same steps.
    suite : str
        v1: the current hub models; v0: the first release (hub names end in -v0).

    Raises
    ------
    UserError
        When the suite is unknown or the model is not in it.
    """
    suites = models_file()["published"]
    if suite not in suites:
        raise UserError(f"suite {suite}: unknown; known: {', '.join(sorted(suites))}")
    entry = suites[suite]
    if model not in entry["models"]:
        with_model = sorted(name for name, other in suites.items() if model in other["models"])
        reason = f"not in suite {suite}; it is in {', '.join(with_model)}" if with_model else "no steps were published"
        raise UserError(f"{model}: {reason}")
    # For models with doubled batches, the number of a revision is twice the step, so it refers to the same samples.
    fold = 2 if model in entry["doubled"] else 1
    numbers = [*entry["early"], *range(entry["every"], entry["last"] + 1, entry["every"])]
    return [PublishedStep(f"step{number}", number // fold, fold * entry["batch_size"]) for number in numbers]
