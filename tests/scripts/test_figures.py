"""Figures of the documents: drawn from the tables of a run."""

from pathlib import Path
from typing import Any

import pytest

from scripts.figures import main
from wellread.errors import UserError
from wellread.plots.forgetting import forgetting_by_step
from wellread.results import Result, write

ABOUT: dict[str, Any] = {"run": "r", "model": "m", "tokens": 1, "n": 5, "ci_low": -0.1, "ci_high": 0.4}


def test_a_figure_of_each_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, docs = tmp_path / "run", tmp_path / "docs"
    (run / "eval").mkdir(parents=True)
    docs.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(
        UserError, match=r"no results to draw; run wellread membership .* or wellread forgetting .* first"
    ):
        main([str(run)])
    groups = [(step, group) for step in (0, 8) for group in ("read", "unread")]
    results = [
        Result(**ABOUT, task="forgetting", metric="difference", group=group, step=step, value=step / 50)
        for step, group in groups
    ]
    write(run / "eval" / "forgetting.parquet", results)
    assert main([str(run), str(docs)]) == 0
    assert capsys.readouterr().out == f"{docs / 'forgetting.png'}\n"
    assert [path.name for path in docs.iterdir()] == ["forgetting.png"]
    assert (docs / "forgetting.png").read_bytes() == forgetting_by_step(results).png()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert (main(["--help"]), main([])) == (0, 2)
    assert capsys.readouterr().out.count("python -m scripts.figures RUN [DIR]") == 2
