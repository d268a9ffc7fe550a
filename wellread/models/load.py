"""Loading models: with random weights from a spec, or from a directory in Hugging Face layout."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.models import adapter as adapters
from wellread.models import tensors
from wellread.models.adapter import Adapter
from wellread.models.configs import GENERATION
from wellread.models.directories import local_directory, named_directory, unused_files
from wellread.models.families import FAMILIES, FRESH_FAMILIES, Fresh
from wellread.models.pretrained import configuration_in, model_in, one_line
from wellread.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import Dtype, Init, LoraConfig


@dataclass(frozen=True)
class Source:
    """A model that is not in memory; engines read the tensors that they need, one at a time."""

    config: Any
    """Its transformers configuration."""
    in_memory: Callable[[], nn.Module]
    """Creates the complete model in memory: fp32, on the CPU."""
    directory: Path | None = None
    """Directory with its files; None for a fresh model."""
    adapter: Adapter | None = None
    """Adapter that is trained instead of the weights."""

    @classmethod
    def of(cls, directory: Path) -> Source:
        """Open the model in a directory; for a directory of an adapter, the base model with the adapter.

        Raises
        ------
        UserError
            When the model cannot be loaded.
        """
        import torch

        if adapters.is_adapter(directory):
            adapter = Adapter.of(directory)
            base = named_directory(adapter.settings.base_model_name_or_path, adapter.settings.revision)
            return replace(cls.of(base), adapter=adapter)
        source = cls(configuration_in(directory), lambda: model_in(directory, torch.float32), directory)
        return source._as_transformers_ties()

    def _as_transformers_ties(self) -> Source:
        """Untie a head whose values in the files are not those of the embedding, although the configuration ties them.

        transformers does so when it loads the files. The configuration that is saved with the model says so too.
        """
        assert self.directory
        name = tensors.separate(self.on_meta(), self.directory) if self.config.tie_word_embeddings else None
        if name is None:
            return self
        config = copy.deepcopy(self.config)
        config.tie_word_embeddings = False
        untied = replace(self, config=config)
        if tensors.separate(untied.on_meta(), self.directory):
            raise UserError(
                f"{self.directory}: its files contain another {name} than the tensor that its config.json ties it to; "
                "use the config.json of these weights"
            )
        return untied

    def on_meta(self) -> nn.Module:
        """The model without weights (parameters on the meta device, buffers real), in evaluation mode."""
        import torch
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM, GenerationConfig

        with one_line(self.directory) if self.directory else nullcontext():
            with init_empty_weights(include_buffers=False):
                model: Any = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32, trust_remote_code=False)
            model.tie_weights()  # moving to the meta device has untied weights
        if self.directory and (file := self.directory / GENERATION).is_file():
            with one_line(file):
                model.generation_config = GenerationConfig.from_pretrained(self.directory)
        if self.adapter:
            self.adapter.inject(model)
        empty: nn.Module = model.eval()
        return empty

    def in_4bit(self, device: torch.device, dtype: Dtype) -> nn.Module:
        """The model on a device, with 4-bit matrices and the adapter in fp32 (Dettmers et al. 2023, QLoRA).

        Source: https://arxiv.org/abs/2305.14314, section 3: NF4 with double quantization.
        """
        import torch
        from transformers import BitsAndBytesConfig

        assert self.adapter
        assert self.directory
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
        )
        tensors.refuse_other_types(self.base.on_meta(), self.directory)
        model = model_in(self.directory, torch.float32, quantization_config=quantized, device_map={"": device})
        self.adapter.inject(model)
        values = self.adapter.tensors(model, self.directory)
        for name, value in values.items():
            module, _, key = name.rpartition(".")
            model.get_submodule(module).register_parameter(key, torch.nn.Parameter(value.to(device)))
        return model

    @property
    def base(self) -> Source:
        """The model without its adapter."""
        return replace(self, adapter=None)

    def reader(self, model: nn.Module) -> tensors.Reader:
        """Return a function that reads single tensors of `model`, which `on_meta` has created, by their names in it."""
        if self.adapter:
            added = self.adapter.tensors(model, self.directory)
            read_base = self.base.reader(self.base.on_meta())
            in_base = {name: adapters.of_model(name) for name in tensors.saved_tensors(model) if name not in added}
            return lambda name: added[name] if name in added else read_base(in_base[name])
        read = tensors.reader(model, self.directory) if self.directory else None
        if read:
            return read
        values = tensors.saved_tensors(self.in_memory())
        return lambda name: values[name].detach()

    def merged(self) -> tuple[nn.Module, tensors.Reader]:
        """The model without weights, and a function that reads its weights with the adapter merged into them."""
        model = self.base.on_meta()
        read = self.base.reader(model)
        if self.adapter is None:
            return model, read
        adapter, added = self.adapter, self.adapter.tensors(self.on_meta(), self.directory)
        return model, lambda name: adapter.merge(model, name, read(name), added)

    def saved_names(self, model: nn.Module) -> list[str]:
        """Names in `model` of the tensors that are saved after training: all, or only those of the adapter."""
        return adapters.names(model) if self.adapter else list(tensors.saved_sizes(model))

    def write(self, model: nn.Module, directory: Path, values: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write a model created by `on_meta`, or only its adapter.

        Parameters
        ----------
        values
            Name and fp32 value of all `saved_names`, in that order.
        """
        if self.adapter:
            self.adapter.write(directory, values, self.directory)
        else:
            tensors.write_model(model, directory, values)


def initial(
    spec: ModelSpec,
    seed: int,
    eos: int,
    lora: LoraConfig | None = None,
    init: Init = "pretrained",
    bos: int | None = None,
) -> Source:
    """Return the model that training starts from.

    Parameters
    ----------
    seed : int
        Seed for the weights of a fresh model or a fresh adapter.
    eos : int
        EOS token id of the tokenizer, stored in the configuration of a fresh model.
    lora : LoraConfig, optional
        If its rank is not 0, an adapter is trained instead of the weights.
    init : str
        fresh: ignore pretrained weights and start from random ones.
    bos : int, optional
        BOS token id of the tokenizer (default: `eos`, one token for both).

    Raises
    ------
    UserError
        When the model could not be downloaded, or random weights are not supported for its family.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not spec.fresh and init == "pretrained":
        source = Source.of(local_directory(spec, weights=True))
        return replace(source, adapter=Adapter.fresh(lora, spec, seed)) if lora and lora.rank else source
    if spec.fresh:
        config = _fresh(spec).configuration(spec, eos if bos is None else bos, eos)
    else:
        config = configuration_in(local_directory(spec, weights=False))

    def build() -> nn.Module:
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        if spec.fresh and (adjust := _fresh(spec).adjust):
            adjust(model)
        return model

    return Source(config, build)


def check_files(spec: ModelSpec, init: Init) -> None:
    """Check the files of a pretrained model in a directory; reads no weights, except those of a separate head.

    Raises
    ------
    UserError
        When the model cannot be loaded from them.
    """
    if spec.path is not None and init == "pretrained":
        source = Source.of(local_directory(spec, weights=True))
        if source.directory and not source.adapter:
            tensors.reader(source.on_meta(), source.directory)
            for path in unused_files(source.directory):
                print(f"{path}: is not used; the weights are read from other files", file=sys.stderr, flush=True)


def _fresh(spec: ModelSpec) -> Fresh:
    fresh = FAMILIES[spec.family].fresh if spec.family in FAMILIES else None
    if fresh is None:
        raise UserError(
            f"--model {spec.name}: no random weights for family {spec.family}; choose {' or '.join(FRESH_FAMILIES)}"
        )
    return fresh


def load_model(directory: str | Path, dtype: Dtype = "fp32") -> nn.Module:
    """Load a saved model in evaluation mode, on the CPU; an adapter is merged into the weights of its base model.

    Raises
    ------
    UserError
        When the model in `directory` cannot be loaded.
    """
    import torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model, read = Source.of(Path(directory)).merged()  # as training reads it
    for name, empty in tensors.saved_tensors(model).items():
        if isinstance(empty, torch.nn.Parameter):
            set_parameter(model, empty, torch.nn.Parameter(read(name).to(kind)))
        else:
            empty.copy_(read(name))
    return model.to(kind).eval()


def set_parameter(model: nn.Module, before: nn.Parameter, after: nn.Parameter) -> None:
    """Replace a parameter in all modules that share it."""
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter is before:
                module.register_parameter(key, after)


def check_4bit() -> None:
    """Check whether 4-bit weights are possible on this rank.

    Raises
    ------
    UserError
        When bitsandbytes or a GPU is missing.
    """
    import torch

    from wellread.config import packages

    if not torch.cuda.is_available():
        raise UserError("--load_in_4bit: needs a GPU, but this rank has none; remove the flag")
    packages.require("bitsandbytes", "--load_in_4bit")


def export(source: Source, directory: Path) -> None:
    """Write a model in Hugging Face layout, with its adapter merged; only one shard is in memory at a time."""
    model, read = source.merged()
    tensors.write_model(model, directory, ((name, read(name)) for name in tensors.saved_sizes(model)))


SHARE_FOR_WEIGHTS = 0.8
"""Fraction of a device's free memory; the rest is for activations and offloaded layers while they run."""


@contextmanager
def loaded(
    directory: Path, device: str | None = None, max_memory: dict[int | str, int] | None = None
) -> Iterator[tuple[nn.Module, str]]:
    """Load a saved model in fp32 and evaluation mode; yield it and the device of its inputs.

    A model that is larger than the GPU is offloaded by accelerate: to host memory, and if this is also too small, to
    disk. Each layer is copied to the GPU when it runs. The losses are the same.

    Parameters
    ----------
    device : str, optional
        cpu, cuda or cuda:N (default: CUDA if there is a GPU, otherwise the CPU).
    max_memory : dict, optional
        Maximum bytes of weights per GPU number and for "cpu" (default: a fraction of the free memory).
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    limits = max_memory or _memory_limits(torch.device(device))
    first = next(iter(limits))
    if 4 * _n_weights(directory) <= limits[first]:
        yield load_model(directory).to(device), device
        return
    with tempfile.TemporaryDirectory(prefix="wellread-offload-") as folder:
        settings = {"device_map": "auto", "max_memory": limits, "offload_folder": folder}
        if adapters.is_adapter(directory):
            export(Source.of(directory), Path(folder) / "merged")
            directory = Path(folder) / "merged"
        tensors.refuse_other_types(Source.of(directory).on_meta(), directory)
        yield model_in(directory, torch.float32, **settings).eval(), device


def _memory_limits(device: torch.device) -> dict[int | str, int]:
    """Maximum bytes of weights per device; `device` is the first key."""
    import psutil
    import torch

    limits: dict[int | str, int] = {}
    if device.type == "cuda":
        limits[device.index or 0] = int(SHARE_FOR_WEIGHTS * torch.cuda.mem_get_info(device)[0])
    limits["cpu"] = int(SHARE_FOR_WEIGHTS * psutil.virtual_memory().available)
    return limits


def _n_weights(directory: Path) -> int:
    """Number of weights of a saved model."""
    model = Source.of(directory).on_meta()
    return sum(parameter.numel() for parameter in model.parameters())
