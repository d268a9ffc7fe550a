"""Runs and models whose texts have no marks."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_evaluations import make_run

from eval.__main__ import main
from wellread.errors import UserError


def test_a_run_without_marks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="its corpus has no marks; train with --marks"):
        main(["marks", str(run.path)])
    with pytest.raises(UserError, match="has no marks; compile it with --marks"):
        main(["marks", "--model", "pythia-70m", "--corpus", str(run.corpus)])
