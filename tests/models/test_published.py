"""Steps of Pythia's published checkpoints."""

import pytest

from wellread.errors import UserError
from wellread.models.published import published_steps


def test_published_steps_of_the_current_suite() -> None:
    steps = published_steps("pythia-160m", "v1")
    assert len(steps) == 154
    assert [s.step for s in steps[:12]] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert steps[-1].revision == "step143000"
    assert {s.batch_size for s in steps} == {1024}
    assert steps[-1].samples == 143_000 * 1024
    assert steps == published_steps("pythia-12b", "v1") == published_steps("pythia-14m", "v1")


@pytest.mark.parametrize("model", ["pythia-160m", "pythia-410m", "pythia-1.4b"])
def test_first_release_doubles_the_step_numbers_of_three_models(model: str) -> None:
    steps = published_steps(model, "v0")
    assert len(steps) == 143
    assert (steps[0].revision, steps[0].step, steps[0].batch_size) == ("step1000", 500, 2048)
    assert (steps[-1].revision, steps[-1].step, steps[-1].samples) == ("step143000", 71_500, 143_000 * 1024)
    assert [s.samples for s in steps] == [s.samples for s in published_steps(model, "v1")[11:]]


@pytest.mark.parametrize("model", ["pythia-70m", "pythia-1b", "pythia-2.8b", "pythia-6.9b", "pythia-12b"])
def test_first_release_of_the_other_models(model: str) -> None:
    steps = published_steps(model, "v0")
    assert len(steps) == 143
    assert (steps[0].revision, steps[0].step, steps[0].batch_size) == ("step1000", 1000, 1024)


def test_unknown_models_and_suites() -> None:
    with pytest.raises(UserError, match="tiny: no steps were published"):
        published_steps("tiny", "v1")
    with pytest.raises(UserError, match="pythia-14m: not in suite v0; it is in v1"):
        published_steps("pythia-14m", "v0")
    with pytest.raises(UserError, match="suite v2: unknown; known: v0, v1"):
        published_steps("pythia-70m", "v2")
