"""Ranks on one node: what listens, who can open their store, and what they exchange."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launch.backends import one_node
from wellread.processes import STORE

RANK = """
import json, os, sys, psutil
from wellread.train import ranks
ranks.start("cpu")
value = {"rank": ranks.rank(), "loss": [0.1, float("inf"), None], "text": "\\x00\\ud800\\u00e9" * 300 * ranks.rank()}
gathered = ranks.gather_objects(value)
assert len(gathered) == ranks.world_size() and gathered[ranks.rank()] == value, gathered
assert [one["rank"] for one in gathered] == list(range(ranks.world_size()))
me = psutil.Process()
listening = [c.laddr.ip for p in (me, me.parent()) for c in p.net_connections() if c.status == "LISTEN"]
with open(os.path.join(sys.argv[1], str(ranks.rank())), "w") as file:
    json.dump([listening, os.environ.get("WELLREAD_STORE")], file)
ranks.stop()
os._exit(0)
"""
LAUNCHER = """
import sys
from pathlib import Path
from launch.backends import elastic
folder, text, ranks = sys.argv[1:]
sys.exit(elastic.start(["-c", text, folder], int(ranks), {}, Path.cwd()))
"""


def test_only_this_user_can_open_the_store_and_nothing_stays() -> None:
    with one_node.environment():
        folder = Path(os.environ[STORE]).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "store").write_bytes(b"as torch does")
    assert STORE not in os.environ
    assert not folder.exists()


MEETING = """
import os, signal, sys
from launch.backends import one_node
with one_node.environment():
    os.kill(os.getpid(), int(sys.argv[1]))
"""


def test_what_a_killed_launcher_has_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{one_node.PREFIX}new").mkdir()  # its launcher has not locked it yet
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / one_node.LOCK).touch()
    (tmp_path / f"{one_node.PREFIX}link").symlink_to("elsewhere")
    before = {path.name for path in tmp_path.iterdir()}
    with one_node.environment():
        living = Path(os.environ[STORE]).parent
        launcher = [sys.executable, "-c", MEETING]
        elsewhere = os.environ | {"TMPDIR": str(tmp_path)}
        subprocess.run([*launcher, str(int(signal.SIGKILL))], env=elsewhere, check=False)
        (killed,) = {path.name for path in tmp_path.iterdir()} - before - {living.name}
        subprocess.run([*launcher, "0"], env=elsewhere, check=True)
        assert living.exists()
        assert not (tmp_path / killed).exists()
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "elsewhere" / one_node.LOCK).exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_local_run_listens_on_the_loopback_address_only(number: int, tmp_path: Path) -> None:
    launched(tmp_path, RANK, number)
    for rank in range(number):
        listening, store = json.loads((tmp_path / str(rank)).read_text())
        assert set(listening) == {"127.0.0.1"}
        assert Path(store).is_relative_to(tmp_path / "temporary")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_a_failed_run_leaves_no_temporary_files(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        launched(tmp_path, "raise SystemExit(3)", 1)
    assert not list((tmp_path / "temporary").iterdir())


def launched(folder: Path, text: str, number: int) -> None:
    """Start ranks that run this text, with a folder of their own for temporary files; wait for them."""
    (folder / "temporary").mkdir()
    variables = os.environ | {"TMPDIR": str(folder / "temporary")}
    subprocess.run([sys.executable, "-c", LAUNCHER, str(folder), text, str(number)], check=True, env=variables)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_ranks_of_one_node_without_the_launcher_too(number: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"},
        )
        for rank in range(number)
    ]
    assert [process.wait() for process in processes] == [0] * number
    for rank in range(number):
        listening, store = json.loads((tmp_path / str(rank)).read_text())
        assert set(listening) == {"127.0.0.1"}
        assert store is None


def test_nothing_that_ranks_receive_is_unpickled() -> None:
    root = Path(__file__).parents[3]
    forbidden = ("all_gather_object", "gather_object(", "broadcast_object_list", "scatter_object_list", '"c10d"')
    for folder in ("wellread", "launch", "finetune", "pretrain", "eval"):
        for path in (root / folder).rglob("*.py"):
            assert not [word for word in forbidden if word in path.read_text()], path
