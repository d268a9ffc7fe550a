"""Values of single items at a checkpoint, from which saturation is judged: any evaluation may offer them."""

from __future__ import annotations

from dataclasses import dataclass

from eval.separation import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Items:
    """A metric of the same items at every checkpoint; its mean over the items is the metric's value."""

    metric: str
    """Name with its group, e.g. `greedy/words`."""
    ids: Ints
    """Id of each item, int64[n], the same at every checkpoint."""
    documents: Ints
    """Document of each item, int64[n]."""
    values: Floats
    """float64[n], finite."""
    sizes: Floats | None = None
    """Of a ratio, the size of each item, such as its bytes, float64[n]: a value is then what the item has / mean size.
    None: the metric is a mean of single values."""
    flags: str = ""
    """How they were measured, as flags: the same at every checkpoint, or the values cannot be compared."""
    form: str | None = None
    """Form of curve that may be fitted, of `eval.saturation.fits.FORMS`; None: no fit."""
