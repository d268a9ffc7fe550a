"""Losses per sample from one forward pass, with logits only for target tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from wellread.corpus.padding import padded
from wellread.errors import UserError
from wellread.models.configs import rope_limit
from wellread.models.families import FAMILIES
from wellread.models.limits import LOGITS_AT_ONCE

if TYPE_CHECKING:
    import torch
    from torch import nn


TokenLosses = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Losses of tokens from logits, (tokens, vocabulary), and labels."""


def sample_losses(
    model: nn.Module,
    tokens: torch.Tensor,
    targets: torch.Tensor,
    segments: torch.Tensor | None = None,
    count: int | None = None,
    *,
    of_tokens: TokenLosses | None = None,
) -> torch.Tensor:
    """Sum of negative log-likelihoods over the target tokens of each sample, in nats.

    Padding is on the right, where a causal model does not attend to it. So without segments no attention mask is needed
    and the fastest attention is used. Logits are computed only at positions that predict a target token.

    Parameters
    ----------
    model : transformers causal language model
    tokens : (batch, length) int64, padded on the right
    targets : (batch, length) bool, True for target tokens; never for the first token of a segment
    segments : (batch, length) int64, optional
        Number of the segment of each token; padding has a separate number. Segments do not attend to each other.
    count : int, optional
        Number of target tokens. Without it, the host waits until a GPU has counted them.
    of_tokens : callable, optional
        Computes losses of tokens (default: `wellread.models.token_loss.token_losses`).

    Returns
    -------
    (batch,) float32
    """
    import torch
    import torch.nn.functional as F

    from wellread.models.token_loss import token_losses

    inputs, scored, isolating = _inputs(model, tokens, targets, segments)
    places = torch.nonzero(scored) if count is None else torch.nonzero_static(scored, size=count)
    labels = _labels(tokens, places)
    logits = _logits(model, inputs, places, isolating, padding=True)
    # Rows of padding have no effect: their losses are left out, so their gradients are 0.
    losses = (of_tokens or token_losses)(logits, F.pad(labels, (0, len(logits) - len(labels))))[: len(labels)]
    return torch.zeros(len(tokens), dtype=losses.dtype, device=losses.device).index_add(0, places[:, 0], losses)


def target_logits(
    model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor, segments: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits and labels of the target tokens, in order of rows, for a few tokens at a time.

    Arguments are those of `sample_losses`. Where the head can be applied by itself, at most `LOGITS_AT_ONCE` logits
    exist at a time; for other families, those of the complete forward pass.

    Yields
    ------
    logits : (part, vocabulary), floating point
    labels : (part,) int64
    """
    import torch

    inputs, scored, isolating = _inputs(model, tokens, targets, segments)
    places = torch.nonzero(scored)
    labels = _labels(tokens, places)
    hidden, head = _before_head(model, inputs, places, isolating)
    vocabulary = cast(Any, model).config.get_text_config().vocab_size
    step = max(1, LOGITS_AT_ONCE["cpu" if hidden.is_cpu else "cuda"] // vocabulary)
    for start in range(0, len(labels), step):
        yield head(hidden[start : start + step]), labels[start : start + step]


def _inputs(
    model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor, segments: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Tokens that the model reads, where it predicts a target token, and arguments that isolate segments."""
    import torch.nn.functional as F

    limit = rope_limit(vars(model.config))
    if limit is not None and tokens.shape[1] > limit:
        raise UserError(
            f"samples of {tokens.shape[1]:,} tokens: this model uses other rotary factors for all samples of a batch "
            f"with one longer than {limit:,} tokens, so losses depend on the batch; choose samples of at most {limit:,}"
        )
    if segments is None:
        return tokens[:, :-1], targets[:, 1:], {}
    # full length: on a GPU, each layer would copy a mask with unaligned rows
    return tokens, F.pad(targets[:, 1:], (0, 1)), isolation(model, segments)


def _labels(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The token after each place, (places,)."""
    rows, columns = places.unbind(1)
    return tokens[rows, columns + 1]


def next_logits(model: nn.Module, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Logits of the token after each position where `last` is True, in order of rows.

    Parameters
    ----------
    tokens : (batch, length) int64, padded on the right
    last : (batch, length) bool

    Returns
    -------
    (positions, vocabulary)
    """
    import torch

    return _logits(model, tokens, torch.nonzero(last), {}, padding=False)


def isolation(model: nn.Module, segments: torch.Tensor) -> dict[str, torch.Tensor]:
    """Arguments of forward that isolate segments from each other: attention mask and positions.

    An additive mask is correct for all attention implementations. Eager attention adds it, but would treat a boolean
    mask as numbers. Fused attention also adds it. MPT masks all entries that are not 0; its ALiBi depends only on
    distances. The mask has the dtype of the scores, so that layers do not copy it.

    Parameters
    ----------
    segments : (batch, length) int64

    Returns
    -------
    dict
        ``attention_mask``, (batch, 1, length, length), 0 where a token attends to another, elsewhere the lowest number;
        ``position_ids``, (batch, length) int64, from 0 in each segment.
    """
    import torch

    device, length = segments.device.type, segments.shape[1]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else next(model.parameters()).dtype
    places = torch.arange(length, device=segments.device)
    begins = segments != segments.roll(1, dims=1)
    begins[:, 0] = True
    positions = places - torch.where(begins, places, 0).cummax(dim=1).values
    visible = (segments[:, :, None] == segments[:, None, :]) & (places[:, None] >= places)
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )
    return {"attention_mask": mask[:, None], "position_ids": positions}


def _logits(
    model: nn.Module, inputs: torch.Tensor, places: torch.Tensor, isolating: dict[str, torch.Tensor], *, padding: bool
) -> torch.Tensor:
    """Logits at some places, (places, vocabulary): they predict the next tokens.

    With `padding`, rows without meaning may follow on a CPU: the number of scored tokens is different in every batch,
    and few shapes keep memory constant (`wellread.corpus.padding`).

    Parameters
    ----------
    places : (places, 2) int64, row and column
    """
    import torch.nn.functional as F

    hidden, head = _before_head(model, inputs, places, isolating)
    if padding and hidden.is_cpu and head is not _identity:
        hidden = F.pad(hidden, (0, 0, 0, padded(len(hidden), inputs.numel()) - len(hidden)))
    return head(hidden)


def _before_head(
    model: nn.Module, inputs: torch.Tensor, places: torch.Tensor, isolating: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """What the head computes logits from at some places, (places, width), and the head.

    For a family whose head is not a plain matrix: the logits, and the identity.
    """
    causal_lm, at = cast(Any, model), tuple(places.unbind(1))
    family = FAMILIES.get(causal_lm.config.model_type)
    if family is None or not family.plain_head:
        return causal_lm(input_ids=inputs, use_cache=False, **isolating).logits[at], _identity
    hidden = causal_lm.base_model(input_ids=inputs, use_cache=False, **isolating).last_hidden_state[at]
    return hidden, causal_lm.get_output_embeddings()


def _identity(logits: torch.Tensor) -> torch.Tensor:
    return logits
