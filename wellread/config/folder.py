"""Where the files of settings lie that come with wellread."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
"""Registries and DeepSpeed files of the checkout."""
if not CONFIGS.is_dir():  # installed from a wheel, which carries them inside the package
    CONFIGS = Path(__file__).resolve().parent.parent / "configs"
