"""The folder of the files of settings that are part of wellread."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
"""Registries and DeepSpeed files of the checkout."""
if not CONFIGS.is_dir():  # installed from a wheel, in which the folder is inside the package
    CONFIGS = Path(__file__).resolve().parent.parent / "configs"
