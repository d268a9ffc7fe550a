"""LoRA adapters beside a model's matrices: made by peft, saved in its layout, read, and merged into the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.models.directories import fingerprint_directory
from wellread.models.families import FAMILIES
from wellread.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL = "all-linear"
"""Instead of names of matrices: all of the layers'."""
BASE = "base"
"""Key in the metadata of an adapter's file: the fingerprint of the weights that it was trained beside."""
PREFIX, MARK = "base_model.model.", ".lora_"


def targets(lora: LoraConfig, spec: ModelSpec) -> tuple[str, ...]:
    """Names of the matrices with an adapter; none: all of the layers'.

    Raises
    ------
    UserError
        When none are named and none are usual in the model's family.
    """
    if lora.targets == ALL:
        return ()
    if lora.targets:
        return tuple(name.strip() for name in lora.targets.split(","))
    if spec.family not in FAMILIES:
        raise UserError(f"--lora.targets: none are usual for {spec.family}; name matrices, or {ALL}")
    return FAMILIES[spec.family].lora


@dataclass(frozen=True)
class Adapter:
    """The adapter of a model: its shape, and where its weights come from."""

    settings: Any
    """Its peft.LoraConfig."""
    seed: int = 0
    """Fixes the initial weights."""
    directory: Path | None = None
    """Where its weights are; None: initial ones."""

    @classmethod
    def fresh(cls, lora: LoraConfig, spec: ModelSpec, seed: int) -> Adapter:
        """An adapter that is not trained yet: as peft makes it, the model's outputs are still those of its weights."""
        from peft import LoraConfig

        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft says int, and takes any
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
        """The adapter that a directory holds.

        Raises
        ------
        UserError
            When it is none that is made here.
        """
        from peft import LoraConfig, PeftConfig

        try:
            settings = PeftConfig.from_pretrained(str(directory))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{directory / CONFIG}: no adapter of peft's ({str(error).splitlines()[0]})") from None
        plain = isinstance(settings, LoraConfig) and settings.bias == "none" and not settings.modules_to_save
        if not plain or settings.use_dora or settings.use_rslora or settings.rank_pattern or settings.alpha_pattern:
            raise UserError(
                f"{directory / CONFIG}: only plain LoRA is supported; merge it with peft and pass the result"
            )
        return cls(settings, directory=directory)

    def inject(self, model: nn.Module) -> None:
        """Put the adapter, without weights, beside the matrices of a model on the meta device, and freeze the rest.

        Raises
        ------
        UserError
            When a target matches no matrix; lists those there are.
        """
        from dataclasses import replace

        import peft

        there = _matrices(model)
        wanted = sorted(there if self.settings.target_modules == ALL else self.settings.target_modules)
        modules = [name for name, _ in model.named_modules()]
        for target in wanted:
            if not any(name == target or name.endswith(f".{target}") for name in modules):
                raise UserError(f"--lora.targets {target}: matches no matrix of the model; choose {', '.join(there)}")
        settings = replace(self.settings, target_modules=wanted, inference_mode=False)
        peft.inject_adapter_in_model(settings, model, low_cpu_mem_usage=True)

    def tensors(self, model: nn.Module, base: Path | None) -> dict[str, torch.Tensor]:
        """Every tensor of the adapter by its name in `model`, in fp32.

        Parameters
        ----------
        model : transformers model with the adapter injected
        base : Path
            Directory of the weights that it stands beside.

        Raises
        ------
        UserError
            When it is the adapter of another model.
        """
        if self.directory is None:
            return _initial(model, self.seed)
        from safetensors import SafetensorError, safe_open

        path = self.directory / WEIGHTS
        try:
            with safe_open(path, "pt") as file:
                trained_beside = (file.metadata() or {}).get(BASE)
                found = {_in_module(key): file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: the adapter cannot be loaded ({error})") from None
        expected = {name: p.shape for name, p in model.named_parameters() if MARK in name}
        if trained_beside and base and trained_beside != fingerprint_directory(base):
            raise UserError(f"{path}: is the adapter of another base model than {base}, whose weights differ")
        if {name: tensor.shape for name, tensor in found.items()} != expected:
            raise UserError(f"{path}: is the adapter of another base model than {base}, whose matrices differ")
        return found

    def merge(self, name: str, value: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """A parameter of the model with what its adapter adds, (alpha / rank) B A (Hu et al. 2021, section 4.1)."""
        stem = name.removesuffix(".weight")
        low = tensors.get(f"{stem}.lora_A.default.weight")
        if low is None or not name.endswith(".weight"):
            return value
        scale: float = self.settings.lora_alpha / self.settings.r
        delta = scale * (tensors[f"{stem}.lora_B.default.weight"] @ low)
        return value + (delta.T if self.settings.fan_in_fan_out else delta)

    def write(self, directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], base: Path | None) -> None:
        """Write the adapter as peft's `save_pretrained` does.

        Parameters
        ----------
        tensors
            Name in the module and fp32 value of all of its tensors (`names`).
        base : Path
            Directory of the weights that it stands beside.
        """
        from safetensors.torch import save_file

        from wellread.models.tensors import open_to_readers

        directory.mkdir(parents=True, exist_ok=True)
        values = self.settings.to_dict() | {"inference_mode": True}
        values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
        (directory / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        held = {_in_file(name): value.contiguous() for name, value in tensors}
        metadata = {"format": "pt"} | ({BASE: fingerprint_directory(base)} if base else {})
        save_file(held, directory / WEIGHTS, metadata=metadata)
        open_to_readers(directory / WEIGHTS)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter instead of a whole model."""
    return (directory / CONFIG).is_file()


def names(model: nn.Module) -> list[str]:
    """Names of the adapter's parameters in a model."""
    return [name for name, _ in model.named_parameters() if MARK in name]


def of_model(name: str) -> str:
    """What the model without adapter calls a parameter of the model with one."""
    return name.replace(".base_layer.", ".")


def _matrices(model: Any) -> list[str]:
    """Last parts of the names of all matrices of the layers: what targets can be."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = (name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    return list(dict.fromkeys(name.rpartition(".")[2] for name in found))


def _initial(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights before training as peft draws them: A uniform, B zero (`LoraLayer.reset_lora_parameters`)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, parameter in model.named_parameters():
        if MARK in name:
            found[name] = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(found[name], a=math.sqrt(5), generator=generator)
    return found


def _in_file(name: str) -> str:
    return PREFIX + name.replace(".default.", ".")


def _in_module(key: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(".weight") + ".default.weight"
