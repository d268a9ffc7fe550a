"""What was published of models: configs/models.yaml, and the checkpoints of whole pretraining runs in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wellread.config import CONFIGS
from wellread.errors import UserError


@dataclass(frozen=True)
class PublishedStep:
    """One published checkpoint of a pretraining run."""

    revision: str
    """Branch of the hub repository; in suite v0 its number is not always the step's."""
    step: int
    """Batches read, counted in the run's own batches."""
    batch_size: int
    """Samples of one batch, 2,049 tokens each."""

    @property
    def samples(self) -> int:
        """Samples read: rows 0 … samples - 1 of Pythia's pre-shuffled Pile."""
        return self.step * self.batch_size


def models_file() -> dict[str, dict[str, Any]]:
    """Everything that configs/models.yaml says: models by name, their aliases, and the published suites."""
    import yaml

    content: dict[str, dict[str, Any]] = yaml.load((CONFIGS / "models.yaml").read_text(), Loader=_yaml_loader())
    return content


def _yaml_loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def steps_of(name: str) -> list[PublishedStep]:
    """Published checkpoints of a registry model, whichever variant; none where it is of no suite."""
    suite, plain = "v0" if name.endswith("-v0") else "v1", name.removesuffix("-v0").removesuffix("-deduped")
    return published_steps(plain, suite) if plain in models_file()["published"][suite]["models"] else []


def published_steps(model: str, suite: str = "v1") -> list[PublishedStep]:
    """Published checkpoints of a model of the Pythia suite, in the order of training.

    Parameters
    ----------
    model : str
        Registry name without variant, e.g. pythia-160m; its -deduped twin has the same steps.
    suite : str
        v1: today's hub models; v0: the first release (hub names end in -v0).

    Raises
    ------
    UserError
        When the suite is unknown or the model is not in it.
    """
    suites = models_file()["published"]
    if suite not in suites:
        raise UserError(f"suite {suite}: unknown; known: {', '.join(sorted(suites))}")
    found = suites[suite]
    if model not in found["models"]:
        others = sorted(name for name, other in suites.items() if model in other["models"])
        known = f"not in suite {suite}; it is in {', '.join(others)}" if others else "no steps were published"
        raise UserError(f"{model}: {known}")
    # Where batches were of twice the size, the revision's number is twice the step: it stands for the same samples.
    fold = 2 if model in found["doubled"] else 1
    numbers = [*found["early"], *range(found["every"], found["last"] + 1, found["every"])]
    return [PublishedStep(f"step{number}", number // fold, fold * found["batch_size"]) for number in numbers]
