"""LoRA adapters: created by peft, saved in its layout, loaded, and merged into the weights of the base model."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.models.directories import fingerprint_directory
from wellread.models.families import FAMILIES
from wellread.models.spec import ModelSpec
from wellread.shapes import LONGEST_VALUE, mismatch
from wellread.text_io import Parser, read_text

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL = "all-linear"
"""Value of ``--lora.targets`` for all matrices of the layers."""
BASE = "base"
"""Key in the metadata of an adapter's file: the fingerprint of the base model with which it was trained."""
PREFIX, MARK = "base_model.model.", ".lora_"
BASE_CONFIG = "config.json"
"""File of a complete model."""
SHAPE: dict[str, Any] = {
    "peft_type": str, "base_model_name_or_path": str, "revision": (str, None), "r": int, "lora_alpha": float,
    "lora_dropout": float, "target_modules": ([str], str), "exclude_modules": ([str], None), "fan_in_fan_out": bool,
    "init_lora_weights": (bool, str), "layers_to_transform": ([int], int, None), "layers_pattern": ([str], str, None),
    "task_type": (str, None), "inference_mode": bool, "peft_version": str, "auto_mapping": (dict, None),
}  # fmt: skip
"""Settings of plain LoRA; with any other value than its default, another setting of peft is refused."""
STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Initial weights of adapters that leave the base model as it is; those of other methods change its weights, too."""


def targets(lora: LoraConfig, spec: ModelSpec) -> tuple[str, ...]:
    """Names of the matrices that get an adapter; empty for all matrices of the layers.

    Raises
    ------
    UserError
        When none are named and the model's family has no default.
    """
    if lora.targets == ALL:
        return ()
    if lora.targets:
        return tuple(name.strip() for name in lora.targets.split(","))
    if spec.family not in FAMILIES:
        raise UserError(f"--lora.targets: no default for {spec.family}; name matrices, or {ALL}")
    return FAMILIES[spec.family].lora


@dataclass(frozen=True)
class Adapter:
    """The adapter of a model: its configuration, and the source of its weights."""

    settings: Any
    """Its peft.LoraConfig."""
    seed: int = 0
    """Seed of the initial weights."""
    directory: Path | None = None
    """Directory with its weights; None for initial weights."""

    @classmethod
    def fresh(cls, lora: LoraConfig, spec: ModelSpec, seed: int) -> Adapter:
        """Create an adapter with peft's initial weights, which do not change the outputs of the model."""
        from peft import LoraConfig

        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared as int by peft, but accepts float
            lora_dropout=lora.dropout,
            target_modules=list(targets(lora, spec)) or ALL,
            fan_in_fan_out=spec.family in FAMILIES and FAMILIES[spec.family].transposed,
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(spec.path or spec.hub),
            revision=spec.revision,
        )
        return cls(settings, seed)

    @classmethod
    def of(cls, directory: Path) -> Adapter:
        """Open the adapter in a directory.

        Raises
        ------
        UserError
            When there is none, or it uses options other than plain LoRA.
        """
        from peft import LoraConfig

        if (directory / BASE_CONFIG).is_file():
            raise UserError(f"{directory}: contains a model and an adapter; remove {BASE_CONFIG} or {CONFIG}")
        values = _plain(directory / CONFIG)
        try:
            settings = LoraConfig(**values)
        except (ValueError, TypeError, KeyError, ImportError) as error:
            raise UserError(f"{directory / CONFIG}: not a peft adapter ({str(error).splitlines()[0]})") from None
        return cls(settings, directory=directory)

    def inject(self, model: nn.Module) -> None:
        """Add the adapter, without weights, to a model on the meta device, and freeze all other parameters.

        Raises
        ------
        UserError
            When a target matches no matrix, or also something that an adapter cannot be merged into.
        """
        import peft

        if self.settings.target_modules == ALL:
            names = _matrices(model)
        else:
            names = sorted(self.settings.target_modules)
            self._check_targets(model, names)
        settings = replace(self.settings, target_modules=names, inference_mode=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set")  # corrected for each module, as `merge` does
            peft.inject_adapter_in_model(settings, model, low_cpu_mem_usage=True)

    def _check_targets(self, model: nn.Module, names: list[str]) -> None:
        """Raise an error for a name that matches no matrix, or other modules too; it lists the names of matrices."""
        from peft.tuners.tuners_utils import check_target_module_exists

        matrices, modules = _matrices(model), [name for name, _ in model.named_modules()]
        choices = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in matrices))
        possible = {*matrices, *_separate_head(model)}
        for target in names:
            where = f"{self.directory / CONFIG}: target" if self.directory else "--lora.targets"
            settings = replace(self.settings, target_modules=[target])
            matched = [name for name in modules if check_target_module_exists(settings, name)]
            if not matched:
                raise UserError(f"{where} {target}: matches no matrix of the model; choose {choices}")
            if other := [name for name in matched if name not in possible]:
                raise UserError(
                    f"{where} {target}: {other[0]} is not a matrix with weights of its own; choose {choices}"
                )

    def tensors(self, model: nn.Module, base: Path | None) -> dict[str, torch.Tensor]:
        """All tensors of the adapter in fp32, by their name in `model`.

        Parameters
        ----------
        model : transformers model with the adapter injected
        base : Path
            Directory of the base model.

        Raises
        ------
        UserError
            When it is the adapter of another base model.
        """
        if self.directory is None:
            return _initial(model, self.seed)
        from safetensors import SafetensorError, safe_open

        path = self.directory / WEIGHTS
        try:
            with safe_open(path, "pt") as file:
                fingerprint = (file.metadata() or {}).get(BASE)
                loaded = {_in_module(key): file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: the adapter cannot be loaded ({error})") from None
        expected = {name: p.shape for name, p in model.named_parameters() if MARK in name}
        if fingerprint and base and fingerprint != fingerprint_directory(base):
            raise UserError(f"{path}: was trained with another base model than {base}: the weights differ")
        if {name: tensor.shape for name, tensor in loaded.items()} != expected:
            raise UserError(f"{path}: was trained with another base model than {base}: the matrices differ")
        return loaded

    def merge(self, model: nn.Module, name: str, value: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """A parameter of `model` plus its adapter, (alpha / rank) B A (Hu et al. 2021, section 4.1).

        Whether the matrix is stored transposed is decided by its module. So peft does when it injects an adapter: it
        corrects a `fan_in_fan_out` that is wrong for the module.
        """
        from transformers.pytorch_utils import Conv1D

        stem = name.removesuffix(".weight")
        low = tensors.get(f"{stem}.lora_A.default.weight")
        if low is None or not name.endswith(".weight"):
            return value
        scale: float = self.settings.lora_alpha / self.settings.r
        delta = scale * (tensors[f"{stem}.lora_B.default.weight"] @ low)
        return value + (delta.T if isinstance(model.get_submodule(stem), Conv1D) else delta)

    def write(self, directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], base: Path | None) -> None:
        """Write the adapter as peft's `save_pretrained` does.

        Parameters
        ----------
        tensors
            Name in the module and fp32 value of all its tensors (`names`).
        base : Path
            Directory of the base model.
        """
        from safetensors.torch import save_file

        from wellread.models.tensors import open_to_readers

        directory.mkdir(parents=True, exist_ok=True)
        values = self.settings.to_dict() | {"inference_mode": True}
        values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
        (directory / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        stored = {_in_file(name): value.contiguous() for name, value in tensors}
        metadata = {"format": "pt"} | ({BASE: fingerprint_directory(base)} if base else {})
        save_file(stored, directory / WEIGHTS, metadata=metadata)
        open_to_readers(directory / WEIGHTS)


def _plain(path: Path) -> dict[str, Any]:
    """Settings of a plain LoRA adapter in its file, checked before peft sees them: it executes what some of them name.

    Raises
    ------
    UserError
        When it is not an adapter, or a setting that plain LoRA does not have is not at its default.
    """
    from peft import LoraConfig

    try:
        values = Parser().decode(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error).partition(';')[0]})") from None
    if problem := mismatch(values, SHAPE, ""):
        raise UserError(f"{path}: not a peft adapter ({problem})")
    if missing := [key for key in ("peft_type", "base_model_name_or_path", "r", "target_modules") if key not in values]:
        raise UserError(f"{path}: not a peft adapter ({missing[0]} is missing)")
    usual = asdict(LoraConfig())
    unusual = [key for key, value in values.items() if key not in SHAPE and value and value != usual.get(key)]
    unusual += ["peft_type"] * (values["peft_type"] != "LORA")
    unusual += ["init_lora_weights"] * (values.get("init_lora_weights", True) not in STARTS)
    unusual += ["target_modules"] * (isinstance(values["target_modules"], str) and values["target_modules"] != ALL)
    if unusual:
        text = str(values[unusual[0]])[:LONGEST_VALUE]
        raise UserError(
            f"{path}: {unusual[0]} {text}: only plain LoRA is supported; merge it with peft and pass the result"
        )
    return {key: value for key, value in values.items() if key in SHAPE and key != "auto_mapping"}


def is_adapter(directory: Path) -> bool:
    """Whether a directory contains an adapter instead of a complete model."""
    return (directory / CONFIG).is_file()


def names(model: nn.Module) -> list[str]:
    """Names of the adapter's parameters in a model."""
    return [name for name, _ in model.named_parameters() if MARK in name]


def of_model(name: str) -> str:
    """Convert the name of a parameter in a model with adapter to its name in the base model."""
    return name.replace(".base_layer.", ".")


def _matrices(model: Any) -> list[str]:
    """Names of all matrices of the layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]


def _separate_head(model: Any) -> list[str]:
    """Name of the output embedding if it is not tied: an adapter of a tied one would change the input as well."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embedding.weight:
        return []
    return [name for name, module in model.named_modules() if module is head]


def _initial(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Initial weights as in peft: A uniform, B zero (`LoraLayer.reset_lora_parameters`)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, parameter in model.named_parameters():
        if MARK in name:
            values[name] = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(values[name], a=math.sqrt(5), generator=generator)
    return values


def _in_file(name: str) -> str:
    return PREFIX + name.replace(".default.", ".")


def _in_module(key: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(".weight") + ".default.weight"
