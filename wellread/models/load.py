"""Loading models: fresh from a spec, or from a directory in Hugging Face layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.models.registry import ModelSpec, local_directory

if TYPE_CHECKING:
    from torch import nn

    from wellread.config import Dtype


def load_initial(spec: ModelSpec, seed: int, eos: int) -> nn.Module:
    """Return the model that training starts from, in fp32, on the CPU.

    Parameters
    ----------
    seed : int
        Fixes the weights of a fresh model.
    eos : int
        End-of-sequence id of the tokenizer, written into a fresh model's configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if spec.fresh:
        _hide_bars()
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(_fresh_config(spec, eos), dtype=torch.float32)
        return model
    return _from_pretrained(local_directory(spec, weights=True), torch.float32)


def load_model(directory: str | Path, dtype: Dtype = "fp32") -> nn.Module:
    """Return a saved model in evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        When `directory` holds no model that can be loaded.
    """
    import torch

    return _from_pretrained(Path(directory), torch.bfloat16 if dtype == "bf16" else torch.float32).eval()


def _from_pretrained(directory: Path, dtype: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    _hide_bars()
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{directory}: the model cannot be loaded ({reason})") from None
    return model


def _hide_bars() -> None:
    """Transformers' own bars: one per load or save between our own lines helps nobody."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _fresh_config(spec: ModelSpec, eos: int) -> Any:
    from transformers import GPTNeoXConfig

    if spec.family != "gpt_neox":
        raise ValueError(f"--model {spec.name}: a fresh {spec.family} is not supported; only gpt_neox is")
    return GPTNeoXConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.intermediate,
        max_position_embeddings=spec.positions,
        bos_token_id=eos,
        eos_token_id=eos,
    )
