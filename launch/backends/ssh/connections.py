"""Ranks on machines reached by ssh: one connection per node, and at its other end an agent (node.py).

What the agents get goes over the connections' stdin, for command lines can be read by everybody on a machine.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from launch.backends import elastic
from launch.backends.ssh.node import MARK, Request
from launch.cluster import ClusterFile
from wellread.errors import BAD_INPUT, FAILURE, print_error

SSH_OPTIONS = {
    "BatchMode": "yes",  # a question would wait for an answer for ever
    "LogLevel": "ERROR",  # no greetings: what it says is what failed
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ControlMaster": "no",  # one that became a master would outlive its session, and keep its output open
}
"""What is asked of ssh after the options in the cluster's file, of which ssh takes the first."""
SECONDS_TO_ANSWER = 120
"""How long an agent may take until its first line: ssh, the login shell, and Python from a slow filesystem."""
SECONDS_TO_END = 10
"""How long the other nodes may take when one has failed, and any node once its connection is closed."""
BEAT = 15
"""Seconds between two signs of life."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ENDED = 128 + signal.SIGTERM
"""Exit code of a node that ends because it was asked to."""


def start(
    cluster: ClusterFile,
    hosts: list[str],
    run: Path,
    arguments: list[str],
    ranks: int,
    variables: dict[str, str],
    code: Path,
) -> int:
    """Start `ranks` processes of ``python ARGUMENTS`` in folder `code` on each of `hosts`; return the exit code.

    SIGTERM, SIGINT and SIGHUP ask the ranks to save and to end; a second one ends them at once. So does the end of this
    process, whatever ends it. When one node fails, all are ended.
    """
    if len(hosts) > 1 and (loopback := [host for host in hosts if address(host) in LOOPBACK]):
        print_error(f"hostfile: {loopback[0]} is another machine for each node; write its name")
        return BAD_INPUT
    forwarded = {name: os.environ[name] for name in cluster.forward if name in os.environ}
    requests = [
        Request(
            host=host,
            run=str(run.resolve()),
            arguments=arguments,
            ranks=ranks,
            variables=variables | forwarded,
            nodes=len(hosts),
            number=number,
            address=address(hosts[0]),
            port=0,
            peer=address(hosts[1 if number == 0 else 0]) if len(hosts) > 1 else "",
        )
        for number, host in enumerate(hosts)
    ]
    return _Launch(cluster, code, requests).follow()


def address(host: str) -> str:
    """Name of a host without the user that logs in there."""
    return host.rpartition("@")[2]


def ssh_command(cluster: ClusterFile, host: str, code: Path) -> list[str]:
    """What starts the agent on `host`."""
    options = [word for name, value in SSH_OPTIONS.items() for word in ("-o", f"{name}={value}")]
    reach = [os.path.expanduser(word) for word in shlex.split(cluster.ssh)]
    return [*reach, *options, "-T", host, agent_command(code, cluster.python or sys.executable)]


def agent_command(code: Path, python: str) -> str:
    """The agent's start as a line of shell."""
    return f"cd {shlex.quote(str(code))} && exec {shlex.quote(python)} -m launch node"


class _Launch:
    """The agents of all nodes, from their start to their end."""

    def __init__(self, cluster: ClusterFile, code: Path, requests: list[Request]) -> None:
        self._cluster, self._code = cluster, code
        self._waiting = requests
        """Not yet started: node 0 comes first, and says which port the others meet it at."""
        self._agents: list[_Agent] = []
        self._news: _News = queue.SimpleQueue()
        self._ended: dict[int, int] = {}
        """Node -> exit code, in the order in which they ended."""
        self._stop_signal = 0
        self._deadline = float("inf")
        """When those that are left are no longer waited for."""
        self._beat = time.monotonic()

    def follow(self) -> int:
        """Start all, wait for all, and return the exit code."""
        try:
            with elastic.stop_signals(self._signal):
                self._connect(self._waiting.pop(0))
                while self._remaining():
                    self._hear()
                    self._see_to_the_time()
        except FileNotFoundError as error:
            print_error(
                f"{error.filename}: not found; name the command that reaches a host as ssh: in the cluster's file"
            )
            return BAD_INPUT
        finally:
            for agent in self._agents:
                agent.hang_up()
            for agent in self._agents:
                agent.close()
        failed = {number: code for number, code in self._ended.items() if code}
        if self._stop_signal:
            return 128 + self._stop_signal
        return elastic.likely_cause(failed)[1] if failed else 0

    def _remaining(self) -> list[_Agent]:
        return [agent for agent in self._agents if agent.number not in self._ended]

    def _connect(self, request: Request) -> None:
        command = ssh_command(self._cluster, request.host, self._code)
        self._agents.append(_Agent(request, command, self._news))

    def _signal(self, number: int, frame: types.FrameType | None) -> None:
        self._news.put((None, "signal", number))

    def _hear(self) -> None:
        """Wait up to a second for news, and act on it."""
        try:
            agent, what, value = self._news.get(timeout=1)
        except queue.Empty:
            return
        if agent is None:
            self._ask_to_stop(value)
        elif what == "port":
            if self._deadline == float("inf"):
                while self._waiting:
                    self._connect(replace(self._waiting.pop(0), port=value))
        elif agent.number not in self._ended:
            self._note_end(agent, value if what == "exit" else self._lost(agent, value))

    def _ask_to_stop(self, number: int) -> None:
        if self._stop_signal:
            self._deadline = time.monotonic()
            return
        self._stop_signal = number
        print(elastic.ASKED, end="", file=sys.stderr, flush=True)
        self._end(signal.Signals(number), elastic.SECONDS_TO_SAVE + SECONDS_TO_END)

    def _note_end(self, agent: _Agent, code: int) -> None:
        self._ended[agent.number] = code
        if code and self._deadline == float("inf"):
            self._end(signal.SIGTERM, SECONDS_TO_END)

    def _end(self, number: signal.Signals, patience: float) -> None:
        """Ask all that are left to end; those that have not begun have nothing to save."""
        self._deadline = time.monotonic() + patience
        for agent in self._remaining():
            if agent.answered:
                agent.send(f"stop {'TERM' if number == signal.SIGHUP else number.name.removeprefix('SIG')}")
            else:
                agent.kill()

    def _lost(self, agent: _Agent, code: int) -> int:
        """Exit code of an agent that has gone, ssh ending with `code`, without having told one."""
        if self._deadline < float("inf"):
            return ENDED
        if agent.answered:
            print_error(f"{agent.host}: the connection was lost ({agent.last_words() or f'ssh ended with {code}'})")
            return FAILURE
        print_error(f"{agent.host}: {agent.last_words() or f'ssh ended with code {code}'}; {self._remedy(code)}")
        return BAD_INPUT

    def _remedy(self, code: int) -> str:
        if code in (126, 127):
            return "name the interpreter of the nodes as python: in the cluster's file"
        if code == 255 or code < 0:
            return "what is named as ssh: in the cluster's file has to reach it without a question"
        return f"the nodes have to share {self._code} and its Python"

    def _see_to_the_time(self) -> None:
        now = time.monotonic()
        if now > self._beat + BEAT:
            self._beat = now
            for agent in self._agents:  # node 0's stays until all have ended
                agent.send("")
        for agent in self._remaining():
            if not agent.answered and now > agent.began + SECONDS_TO_ANSWER:
                agent.kill(f"no answer within {SECONDS_TO_ANSWER} s")
            if now > self._deadline:
                agent.hang_up()
            if now > self._deadline + SECONDS_TO_END:
                agent.kill()


class _Agent:
    """One node's agent, at the other end of an ssh."""

    def __init__(self, request: Request, command: list[str], news: _News) -> None:
        self.host, self.number, self.began = request.host, request.number, time.monotonic()
        self.answered = False
        self._news = news
        self._words = {"": "", "stdout": "", "stderr": ""}
        pipe = subprocess.PIPE
        self._ssh = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process, not for its connections
        )
        assert self._ssh.stdin, "as asked of Popen"
        self._stdin = self._ssh.stdin
        self._complaints = threading.Thread(target=self._pass_on_stderr, args=(self._ssh.stderr,), daemon=True)
        self._complaints.start()
        self._listener = threading.Thread(target=self._listen, args=(self._ssh.stdout,), daemon=True)
        self._listener.start()
        self.send(json.dumps(asdict(request)))

    def send(self, line: str) -> None:
        """Send one line; an agent that is gone is told of by the listener."""
        with suppress(BrokenPipeError):
            if not self._stdin.closed:
                self._stdin.write(f"{line}\n")
                self._stdin.flush()

    def hang_up(self) -> None:
        """Close the connection's stdin: the agent ends its ranks at once."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def kill(self, why: str = "") -> None:
        """End ssh itself."""
        self._words[""] = self._words[""] or why
        self._ssh.kill()

    def close(self) -> None:
        """Leave nothing behind, after hanging up: neither ssh nor unread output."""
        try:
            self._ssh.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # something that a rank has started keeps the session's output open
            self._ssh.kill()
            self._ssh.wait()
        for thread in (self._listener, self._complaints):
            thread.join(SECONDS_TO_END)

    def last_words(self) -> str:
        """Last line that came from ssh or the login shell."""
        self._complaints.join(1)
        return self._words[""] or self._words["stderr"] or self._words["stdout"]

    def _listen(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                text, mark, message = line.partition(MARK)
                if self.answered and self.number == 0:
                    _show(text, sys.stdout)
                elif not self.answered:
                    self._remember(text, "stdout")
                if mark:
                    self.answered = True
                    for what, value in json.loads(message).items():
                        self._news.put((self, what, value))
        self._news.put((self, "gone", self._ssh.wait()))

    def _pass_on_stderr(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._remember(line, "stderr")
                if self.answered:
                    _show(line, sys.stderr)

    def _remember(self, line: str, where: str) -> None:
        if line.strip():
            self._words[where] = " ".join(line.split())


def _show(text: str, stream: IO[str]) -> None:
    with suppress(BrokenPipeError):  # nobody looks; the run goes on
        stream.write(text)
        stream.flush()


_News = queue.SimpleQueue[tuple[_Agent | None, str, int]]
"""News: of which agent (None: of this process), what (port, exit, gone, signal), and its value."""
