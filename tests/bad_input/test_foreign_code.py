"""Whatever a model, a tokenizer or an adapter contains, no command executes it: a marker file stays absent."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.outcomes import outcome
from support.programs import Program
from support.whole_runs import OLD

from wellread.config import LoraConfig
from wellread.corpus.tokenizer import copy_files
from wellread.errors import BAD_INPUT
from wellread.files import sha256_file, with_checksum, write_json
from wellread.models.adapter import CONFIG
from wellread.models.load import initial
from wellread.models.registry import find
from wellread.text_io import FOREIGN_CODE

MODEL = OLD / "finetune" / "model"
STORIES = OLD / "pretrain" / "run" / "checkpoints" / "step-00000010" / "model"
Make = Callable[[Path, Path], None]
"""Turns the copy of a model's directory into a hostile one that would create the marker."""


def set_in(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def code(folder: Path, marker: Path, *names: str) -> None:
    """Write modules that create the marker when they are imported."""
    for name in names:
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")


def pickled(path: Path, marker: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"w": Malicious()}, path)


AUTO = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer"), "evil.Evil")
ELSEWHERE = {name: f"someone/code--{value}" for name, value in AUTO.items()}
TEMPLATE = (
    "{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"
    "{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}"
)


def remote_type(folder: Path, marker: Path) -> None:
    code(folder, marker, "evil")
    set_in(folder / "config.json", model_type="evil", auto_map=AUTO, trust_remote_code=True)


def remote_map(folder: Path, marker: Path) -> None:
    code(folder, marker, "evil", "custom_generate/generate")
    set_in(folder / "config.json", auto_map=AUTO, trust_remote_code=True)
    set_in(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)


def remote_repository(folder: Path, marker: Path) -> None:
    code(folder, marker, "evil")
    set_in(folder / "config.json", auto_map=ELSEWHERE, trust_remote_code=True)


def kernel(folder: Path, marker: Path) -> None:
    set_in(folder / "config.json", attn_implementation="someone/kernel")


def downloaded_kernel(folder: Path, marker: Path) -> None:
    set_in(folder / "config.json", attn_implementation="flash_attention_2")


def unknown_kernel(folder: Path, marker: Path) -> None:
    set_in(folder / "config.json", experts_implementation="sonicmoe")


def pickle_only(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model.bin", marker)


def pickle_indexed(folder: Path, marker: Path) -> None:
    names = load_file(folder / "model.safetensors")
    pickle_only(folder, marker)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_renamed(folder: Path, marker: Path) -> None:
    pickled(folder / "model.safetensors", marker)


def pickle_next_to_it(folder: Path, marker: Path) -> None:
    pickled(folder / "pytorch_model.bin", marker)


def unused_code(folder: Path, marker: Path) -> None:
    pickled(folder / "pytorch_model.bin", marker)
    code(folder, marker, "evil", "custom_generate/generate")


def tokenizer_class(folder: Path, marker: Path) -> None:
    code(folder, marker, "evil")
    set_in(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil"] * 2})


def tokenizer_only_code(folder: Path, marker: Path) -> None:
    tokenizer_class(folder, marker)
    (folder / "tokenizer.json").unlink()


def tokenizer_template(folder: Path, marker: Path) -> None:
    set_in(folder / "tokenizer_config.json", chat_template=TEMPLATE.format(marker=marker))
    (folder / "chat_template.jinja").write_text(TEMPLATE.format(marker=marker))


LOADS = ("perplexity", "sample", "export", "sample a run", "membership")
"""Commands that need the weights of the model."""
PREPARES = ("prepare", "prepare a chat")
PICKLE = "pytorch_model.bin: can execute code when it is loaded"
OF_PICKLES = dict.fromkeys(LOADS, PICKLE) | dict.fromkeys(
    ("sample a run", "export a run", "membership"), "files: lists no weights in model/"
)
HOSTILE: dict[str, tuple[Make, dict[str, str]]] = {
    "code, unknown type": (remote_type, dict.fromkeys(LOADS, FOREIGN_CODE)),
    "code, known type": (remote_map, {}),
    "code of another repository": (remote_repository, {}),
    "kernel": (kernel, dict.fromkeys(LOADS, f"config.json: names someone/kernel, {FOREIGN_CODE}; remove")),
    "kernel that would be downloaded": (
        downloaded_kernel,
        dict.fromkeys(LOADS, "config.json: flash_attention_2 needs a GPU and the package flash-attn, one of which is"),
    ),
    "unknown kernel": (
        unknown_kernel,
        dict.fromkeys(LOADS, "config.json: experts_implementation sonicmoe: unknown; choose grouped_mm, batched_mm,"),
    ),
    "pickle": (pickle_only, OF_PICKLES),
    "pickle in the index": (pickle_indexed, OF_PICKLES),
    "pickle with another name": (pickle_renamed, dict.fromkeys(LOADS, "the model cannot be loaded (Error while deser")),
    "pickle next to weights": (pickle_next_to_it, {}),
    "tokenizer": (tokenizer_class, dict.fromkeys(PREPARES, f"no usable tokenizer ({FOREIGN_CODE})")),
    "tokenizer without tokenizer.json": (
        tokenizer_only_code, dict.fromkeys((*PREPARES, "sample", "sample a run"), "no usable tokenizer ("),
    ),
    "template": (tokenizer_template, {"prepare a chat": "row 1: its chat is rejected by the chat template: access to"}),
}  # fmt: skip
"""How a directory is made hostile, and what the commands that refuse it say; all others work."""
SMALL = ["--data", "DATA", "--seq_len", "64", "--corpora", "OUT/corpora"]
COMMANDS: dict[str, list[str]] = {
    "plan": ["plan", "finetune", "--model", "MODEL", *SMALL],
    "prepare": ["prepare", "finetune", "--model", "MODEL", *SMALL],
    "prepare a chat": ["prepare", "finetune", "--model", "MODEL", *SMALL, "--template", "chat"],
    "perplexity": ["prepare", "pretrain", "--perplexity", "MODEL", "--vocab", "VOCABULARY", "--data", "stories:20",
                   "--seq_len", "64", "--corpora", "OUT/corpora"],
    "sample": ["sample", "MODEL", "once", "--tokens", "2"],
    "export": ["export", "MODEL", "--format", "hf", "--out", "OUT/exported"],
    "sample a run": ["sample", "RUN", "once", "--tokens", "2"],
    "export a run": ["export", "RUN", "--out", "OUT/exported"],
    "membership": ["membership", "RUN", "--steps", "10", "--bootstrap", "100"],
    "import": ["import", "MODEL", "--out", "OUT/imported"],
}  # fmt: skip
NO_PICKLES = "contains no pickled weights"
MORE_THAN_WEIGHTS = "pytorch_model.bin: contains more than weights, so it is not loaded ("


def run_with(model: Path, out: Path) -> Path:
    """A run whose newest checkpoint is the model in a directory, with a manifest that agrees."""
    shutil.copytree(OLD / "finetune" / "run", out)
    newest = max(out.glob("checkpoints/step-*"))
    shutil.rmtree(newest / "model")
    shutil.copytree(model, newest / "model")
    manifest = json.loads((newest / "checkpoint.json").read_text())
    files = {name: file for name, file in manifest["files"].items() if not name.startswith("model/")}
    for path in (path for path in (newest / "model").rglob("*") if path.is_file()):
        files[str(path.relative_to(newest))] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(newest / "checkpoint.json", with_checksum(manifest | {"files": files}))
    return out


def table(kinds: Iterable[str], commands: Iterable[str]) -> Iterator[Any]:
    """All pairs; those off a diagonal are long: each kind and each command is tested without them, too."""
    names = list(commands)
    for i, kind in enumerate(kinds):
        for j, command in enumerate(names):
            yield pytest.param(kind, command, marks=[pytest.mark.long] * ((i - j) % len(names) != 0))


def hostile(make: Make, before: Path, folder: Path) -> Path:
    shutil.copytree(before, folder / "model")
    make(folder / "model", folder / "marker")
    assert not (folder / "marker").exists()
    return folder / "model"


def filled(argv: list[str], folder: Path, model: Path) -> list[str]:
    """The arguments of a command with their paths."""
    places = {"MODEL": model, "RUN": folder / "run", "DATA": OLD / "finetune" / "data.jsonl", "OUT": folder}
    places["VOCABULARY"] = STORIES / "tokenizer.model"
    return [re.sub("|".join(places), lambda name: str(places[name.group()]), word) for word in argv]


@pytest.mark.parametrize(("kind", "command"), table(HOSTILE, COMMANDS))
def test_a_foreign_model_executes_nothing(
    kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, refused = HOSTILE[kind]
    model = hostile(make, STORIES if command == "perplexity" else MODEL, tmp_path)
    if "RUN" in COMMANDS[command]:
        run_with(model, tmp_path / "run")
    code, message = outcome(filled(COMMANDS[command], tmp_path, model))
    expected = refused.get(command, "")
    if command == "import":
        expected = MORE_THAN_WEIGHTS if (model / "pytorch_model.bin").exists() else NO_PICKLES
    assert (code, expected in message) == (BAD_INPUT if expected else 0, True), message
    assert "\n" not in message
    assert not (tmp_path / "marker").exists()


# --- adapters


def megatron(adapter: Path, marker: Path) -> None:
    """peft imports the module that `megatron_core` names."""
    set_in(adapter / CONFIG, megatron_config={"x": 1}, megatron_core="megatron.core.evil")


def unknown_setting(adapter: Path, marker: Path) -> None:
    set_in(adapter / CONFIG, custom_class="evil.Evil")


def other_kind(adapter: Path, marker: Path) -> None:
    set_in(adapter / CONFIG, peft_type="IA3")


def start_of_pissa(adapter: Path, marker: Path) -> None:
    set_in(adapter / CONFIG, init_lora_weights="pissa_niter_4")


def pattern(adapter: Path, marker: Path) -> None:
    set_in(adapter / CONFIG, target_modules=".*query_key_value")


def pickled_adapter(adapter: Path, marker: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    pickled(adapter / "adapter_model.bin", marker)


def renamed_adapter(adapter: Path, marker: Path) -> None:
    pickled(adapter / "adapter_model.safetensors", marker)


def auto_mapping(adapter: Path, marker: Path) -> None:
    set_in(adapter / CONFIG, auto_mapping={"base_model_class": "Evil", "parent_library": "evil"})


def of_the_hub(make: Make) -> Make:
    """The adapter names a repository of the hub, whose model is hostile."""

    def change(adapter: Path, marker: Path) -> None:
        set_in(adapter / CONFIG, base_model_name_or_path="someone/code")
        repository = marker.parent / "hub/models--someone--code"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("0" * 40)
        shutil.copytree(MODEL, repository / "snapshots" / ("0" * 40))
        make(repository / "snapshots" / ("0" * 40), marker)

    return change


def remote_map_of_adapter(adapter: Path, marker: Path) -> None:
    code(adapter, marker, "evil")
    (adapter / "config.json").write_text(
        json.dumps(json.loads((MODEL / "config.json").read_text()) | {"auto_map": AUTO})
    )


def alone(adapter: Path, marker: Path) -> None:
    set_in(adapter / CONFIG, base_model_name_or_path="someone/other")


ADAPTERS: dict[str, tuple[Make, str]] = {
    "megatron": (megatron, "adapter_config.json: megatron_config {'x': 1}: only plain LoRA is supported"),
    "unknown setting": (unknown_setting, "adapter_config.json: custom_class evil.Evil: only plain LoRA"),
    "other kind": (other_kind, "adapter_config.json: peft_type IA3: only plain LoRA"),
    "initial weights": (start_of_pissa, "init_lora_weights pissa_niter_4: only plain LoRA"),
    "pattern": (pattern, "target_modules .*query_key_value: only plain LoRA"),
    "pickle": (pickled_adapter, "files: lists no weights in model/"),
    "pickle with another name": (renamed_adapter, "adapter_model.safetensors: the adapter cannot be loaded ("),
    "library": (auto_mapping, ""),
    "of the hub": (of_the_hub(unused_code), ""),
    "of the hub, unknown type": (of_the_hub(remote_type), FOREIGN_CODE),
    "of the hub, kernel": (of_the_hub(kernel), f"names someone/kernel, {FOREIGN_CODE}"),
    "of the hub, pickle": (of_the_hub(pickle_only), PICKLE),
    "of the hub, not here": (alone, "--model someone/other: could not be downloaded from the hub ("),
    "with a model": (remote_map_of_adapter, "contains a model and an adapter; remove config.json or adapter_config"),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as a run saves it, with the tokenizer."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    source = initial(find(str(MODEL)), 0, 0, LoraConfig(rank=4, alpha=8.0))
    model = source.on_meta()
    read = source.reader(model)
    source.write(model, folder, ((name, read(name)) for name in source.saved_names(model)))
    copy_files(MODEL, folder)
    return folder


OF_ADAPTERS = {
    "sample": ["sample", "RUN", "once", "--tokens", "2"],
    "export": ["export", "RUN", "--merged", "--out", "OUT/exported"],
    "membership": COMMANDS["membership"],
}


@pytest.mark.parametrize(("kind", "command"), table(ADAPTERS, OF_ADAPTERS))
def test_an_foreign_adapter_executes_nothing(
    kind: str, command: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, refused = ADAPTERS[kind]
    run_with(hostile(make, adapter, tmp_path), tmp_path / "run")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, message = outcome(filled(OF_ADAPTERS[command], tmp_path, MODEL))
    assert (code, refused in message) == (BAD_INPUT if refused else 0, True), message
    assert "\n" not in message
    assert not (tmp_path / "marker").exists()


# --- training


def everything(folder: Path, marker: Path) -> None:
    for make in (remote_map, pickle_next_to_it, tokenizer_template):
        make(folder, marker)


STARTED: dict[str, tuple[Make, str]] = {
    "code, unknown type": (remote_type, FOREIGN_CODE),
    "kernel": (kernel, f"names someone/kernel, {FOREIGN_CODE}"),
    "pickle in the index": (pickle_indexed, PICKLE),
    "tokenizer": (tokenizer_class, f"no usable tokenizer ({FOREIGN_CODE})"),
    "all that is not needed": (everything, ""),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", STARTED)
def test_training_executes_nothing(kind: str, tmp_path: Path, program: Program) -> None:
    make, refused = STARTED[kind]
    model = hostile(make, MODEL, tmp_path)
    few = ["--steps", "1", "--batch_size", "1", "--snapshot", "off", "--strategy", "ddp", "--ranks_per_node", "1"]
    flags = filled([*SMALL, *few, "--out", "OUT/trained", "--then", "eval"], tmp_path, model)
    result = program("wellread", "run", "finetune", "--model", model, *flags)
    assert (result.returncode, refused in result.stderr) == (BAD_INPUT if refused else 0, True), result.stderr
    assert result.stderr.count("\n") == 1 or not refused
    assert not list(tmp_path.glob("corpora/*/corpus.json")) or not refused
    assert not (tmp_path / "marker").exists()
