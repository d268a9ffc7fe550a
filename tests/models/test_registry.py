"""Models by name: registry, directories, WELLREAD_MODELS, hub; and fingerprints of initial weights."""

import dataclasses
import json
from pathlib import Path

import pytest

from wellread.errors import UserError
from wellread.models import registry
from wellread.models.directories import fingerprint, local_directory
from wellread.models.published import steps_of
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.planning.parameters import parameters

NEOX = {
    "model_type": "gpt_neox", "num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8,
    "intermediate_size": 2048, "vocab_size": 50304, "max_position_embeddings": 2048,
}  # fmt: skip


def directory(path: Path, config: dict[str, object], weights: bytes = b"w" * 100) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(weights)
    return path


SIZES = ["14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]


def test_the_registry_contains_both_pythia_suites() -> None:
    v1 = [f"pythia-{size}{twin}" for size in SIZES for twin in ("", "-deduped")]
    v0 = [f"pythia-{size}{twin}-v0" for size in SIZES[2:] for twin in ("", "-deduped")]
    assert {name for name in registry.registry() if name.startswith("pythia-")} == {*v1, *v0}
    for name in (*v1, *v0):
        spec = find(name)
        assert spec.width % spec.heads == 0
        assert spec.intermediate == 4 * spec.width
        assert (spec.name, spec.hub) == (name, f"EleutherAI/{name}")
        doubled = name in [f"pythia-{size}{twin}-v0" for size in ("160m", "410m", "1.4b") for twin in ("", "-deduped")]
        assert spec.pretraining
        assert spec.pretraining.batch_size == (2048 if doubled else 1024)
        assert len(steps_of(name)) == (143 if name.endswith("-v0") else 154)


def test_published_learning_rates() -> None:
    """From the appendix of the Pythia paper, and for other models from the configurations in their repositories."""
    rates = {"pythia-70m": 1e-3, "pythia-160m": 6e-4, "pythia-410m": 3e-4, "pythia-1b": 3e-4, "pythia-1.4b": 2e-4,
             "pythia-2.8b": 1.6e-4, "pythia-6.9b": 1.2e-4, "pythia-12b": 1.2e-4, "gpt-neo-1.3b": 2e-4,
             "gpt-neox-20b": 9.7e-5, "gpt-j-6b": 1.2e-4, "llama-65b": 1.5e-4}  # fmt: skip
    for name, lr in rates.items():
        pretraining = find(name).pretraining
        assert pretraining
        assert pretraining.lr == lr


def test_fine_tuning_uses_a_tenth_of_the_published_learning_rate() -> None:
    """As docs/defaults.md says, by name and by revision."""
    rates = {"pythia-70m": 1e-4, "pythia-410m-deduped": 3e-5, "pythia-2.8b": 1.6e-5, "pythia-12b@step3000": 1.2e-5,
             "gpt-neo-125m": 6e-5, "llama-7b": 3e-5, "mpt-7b": 2e-5, "tiny": 2e-3, "stories-15m": 5e-4}  # fmt: skip
    assert {name: find(name).lr for name in rates} == rates


def test_former_names_of_models() -> None:
    assert find("pythia-13b").hub == "EleutherAI/pythia-12b"
    assert find("pythia-1.3b-deduped").name == "pythia-1.4b-deduped"
    assert find("pythia-19m@step512").revision == "step512"
    old = ["19m", "125m", "350m", "800m", "1.3b", "2.7b", "6.7b", "13b"]
    assert [find(f"pythia-{size}").name for size in old] == [f"pythia-{size}" for size in SIZES[2:]]


def test_revisions() -> None:
    spec = find("pythia-70m@step3000")
    assert (spec.name, spec.hub, spec.revision) == ("pythia-70m@step3000", "EleutherAI/pythia-70m", "step3000")
    assert find("pythia-70m@main").revision == "main"
    assert find("gpt-j-6b@float16").revision == "float16"
    with pytest.raises(
        UserError,
        match=r"pythia-70m@step3001: this step was not published; the nearest are step3000, step4000, step2000",
    ):
        find("pythia-70m@step3001")
    for name in ("tiny@step3", "pythia-70m@"):
        with pytest.raises(UserError, match=f"--model {name}: only models of the hub have revisions"):
            find(name)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UserError, match="contains only an adapter; merge it into its model first, with wellread export"
    ):
        find(str(tmp_path))


def test_a_revision_on_the_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory(tmp_path / "pythia-70m@step3000", NEOX)
    monkeypatch.setenv("WELLREAD_MODELS", str(tmp_path))
    assert find("pythia-19m@step3000").path == path
    assert find("pythia-70m").path is None


def test_parameter_counts_of_the_other_families() -> None:
    """Numbers that transformers reports for the published models."""
    counts = {"gpt-neo-125m": 125_198_592, "gpt-neo-1.3b": 1_315_575_808, "gpt-neo-2.7b": 2_651_307_520,
              "gpt-neox-20b": 20_554_567_680, "gpt-j-6b": 6_050_882_784, "llama-7b": 6_738_415_616,
              "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672,
              "mpt-7b": 6_649_286_656, "smollm2-135m": 134_515_008}  # fmt: skip
    assert {name: parameters(find(name)).total for name in counts} == counts


@pytest.mark.parametrize(
    ("name", "sizes", "multiple_of", "intermediate"),
    [
        ("stories-260k", (64, 5, 8, 4, 512, 512), 4, 172),
        ("stories-15m", (288, 6, 6, None, 32_000, 256), 32, 768),
        ("stories-42m", (512, 8, 8, None, 32_000, 1024), 32, 1376),
        ("stories-110m", (768, 12, 12, None, 32_000, 1024), 32, 2048),
    ],
)
def test_the_sizes_of_llama2c(name: str, sizes: tuple[int, ...], multiple_of: int, intermediate: int) -> None:
    """The inner width is computed as in llama2.c's model.py."""
    spec = find(name)
    assert (spec.width, spec.layers, spec.heads, spec.kv_heads, spec.vocab, spec.positions) == sizes
    assert spec.intermediate == -(-int(2 * 4 * spec.width / 3) // multiple_of) * multiple_of == intermediate
    assert (spec.family, spec.fresh, spec.tied) == ("llama", True, True)


def test_parameter_counts_are_those_of_the_paper() -> None:
    """Totals of table 1 of the Pythia paper, computed from the registry's sizes: untied embeddings, biases, norms."""
    published = {
        "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632,
        "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016,
        "pythia-12b": 11_846_072_320,
    }  # fmt: skip
    for name, count in published.items():
        spec = find(name)
        d, f = spec.width, spec.intermediate
        layer = 4 * d * d + 4 * d + 2 * d * f + d + f + 4 * d
        assert spec.layers * layer + 2 * spec.vocab * d + 2 * d == count


def test_tiny_starts_from_random_weights() -> None:
    spec = find("tiny")
    assert (spec.fresh, spec.hub, spec.path, spec.vocab, spec.positions) == (True, None, None, 2048, 512)
    assert (spec.lr, spec.batch_size, spec.epochs, spec.seq_len) == (2e-3, 16, 8, 256)


def test_a_directory(tmp_path: Path) -> None:
    path = directory(tmp_path / "mine", NEOX)
    spec = find(str(path))
    assert spec == ModelSpec(
        name="mine", family="gpt_neox", layers=6, width=512, heads=8, intermediate=2048, vocab=50304, positions=2048,
        path=path,
    )  # fmt: skip
    assert local_directory(spec, weights=True) == path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (NEOX, (6, 512, 8, 2048, 50304, 2048)),
        (
            {"model_type": "gptj", "n_layer": 28, "n_embd": 4096, "n_head": 16, "n_inner": None, "vocab_size": 50400,
             "n_positions": 2048},
            (28, 4096, 16, 16384, 50400, 2048),
        ),
        (
            {"model_type": "gpt_neo", "num_layers": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": None,
             "vocab_size": 50257, "max_position_embeddings": 2048},
            (12, 768, 12, 3072, 50257, 2048),
        ),
        (
            {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
             "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 4096},
            (32, 4096, 32, 11008, 32000, 4096),
        ),
        (
            {"model_type": "mpt", "n_layers": 32, "d_model": 4096, "n_heads": 32, "vocab_size": 50432,
             "max_seq_len": 2048},
            (32, 4096, 32, 16384, 50432, 2048),
        ),
    ],
)  # fmt: skip
def test_names_of_sizes_in_each_family(config: dict[str, object], expected: tuple[int, ...], tmp_path: Path) -> None:
    spec = find(str(directory(tmp_path / "m", config)))
    assert (spec.layers, spec.width, spec.heads, spec.intermediate, spec.vocab, spec.positions) == expected


def test_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory(tmp_path / "b" / "pythia-70m", NEOX)
    directory(tmp_path / "b" / "other", NEOX)
    monkeypatch.setenv("WELLREAD_MODELS", f"{tmp_path / 'a'}::{tmp_path / 'b'}")
    assert find("pythia-70m").path == path
    assert find("other").name == "other"
    assert find("pythia-160m").path is None  # not in the directories, so from the registry


def test_training_defaults_of_a_known_name_survive_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory(tmp_path / "tiny", NEOX)
    monkeypatch.setenv("WELLREAD_MODELS", str(tmp_path))
    spec = find("tiny")
    assert (spec.path, spec.lr, spec.batch_size, spec.fresh) == (tmp_path / "tiny", 2e-3, 16, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "--model tinny: not a directory or a known model; did you mean tiny?"),
        ("pythia-70", "--model pythia-70: not a directory or a known model; did you mean pythia-70m?"),
        ("./lost", "--model ./lost: not a directory or a known model; the nearest are "),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        find(name)
    assert str(refused.value).startswith(message)


def test_the_hub_out_of_reach() -> None:
    with pytest.raises(UserError) as refused:
        find("someone/something")
    message = str(refused.value)
    assert message.startswith("--model someone/something: could not be downloaded from the hub (")
    assert message.endswith("); put it into a directory of $WELLREAD_MODELS or pass its directory")
    assert "\n" not in message
    with pytest.raises(UserError, match=r"--model EleutherAI/pythia-70m: could not be downloaded from the hub \("):
        local_directory(find("pythia-70m"), weights=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--model DIR: has no config.json; a model directory needs Hugging Face layout"),
        (
            "{",
            "DIR/config.json: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        ("{}", "DIR/config.json: has no model_type; pass the config.json of a language model"),
        (
            '{"model_type": "bert"}',
            "DIR/config.json: has none of num_hidden_layers, n_layer, num_layers, n_layers; bert is not supported",
        ),
    ],
)
def test_directories_without_a_model(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.mkdir()
    if content is not None:
        (path / "config.json").write_text(content)
    with pytest.raises(UserError) as refused:
        find(str(path))
    assert str(refused.value) == message.replace("DIR", str(path))


def test_fingerprints_of_weights(tmp_path: Path) -> None:
    """Any change of a small file, the config or the size changes the fingerprint; the name of the folder does not."""
    weights = bytes(range(256)) * 4096 * 3  # 3 MiB
    base = fingerprint(find(str(directory(tmp_path / "a", NEOX, weights))))
    assert base.startswith("weights:")
    assert fingerprint(find(str(directory(tmp_path / "b", NEOX, weights)))) == base
    assert fingerprint(find(str(directory(tmp_path / "c", NEOX | {"rotary_pct": 0.5}, weights)))) != base
    for i, place in enumerate((0, 1 << 20, (1 << 20) + 1, (2 << 20) - 1, len(weights) // 2, len(weights) - 1)):
        changed = bytearray(weights)
        changed[place] ^= 1
        assert fingerprint(find(str(directory(tmp_path / f"d{i}", NEOX, bytes(changed))))) != base, place
    assert fingerprint(find(str(directory(tmp_path / "e", NEOX, weights + b"\0")))) != base


def test_fingerprints_of_fresh_models() -> None:
    """The fingerprint depends on the sizes, not on learning rate or name."""
    assert fingerprint(find("tiny")) == "fresh:f075e05e88b3b7cc1d601ace1bcb6c17"
    spec = find("tiny")
    for name in ("layers", "width", "heads", "intermediate", "vocab", "positions"):
        assert fingerprint(dataclasses.replace(spec, **{name: getattr(spec, name) * 2})) != fingerprint(spec)
    stories = find("stories-260k")
    changed = [dataclasses.replace(stories, **change) for change in ({"kv_heads": 8}, {"tied": False})]
    assert len({fingerprint(spec) for spec in (stories, *changed)}) == 3
    assert fingerprint(dataclasses.replace(spec, lr=1.0, name="x")) == fingerprint(spec)
