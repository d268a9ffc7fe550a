"""Ranks on machines reached through ssh: one connection per node, to an agent (node.py) on that node.

Requests are sent through the stdin of the connection, since every user of a machine can read command lines.
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
from wellread.errors import BAD_INPUT, FAILURE, UserError
from wellread.provenance import ROOT
from wellread.streams import print_error

SSH_OPTIONS = {
    "BatchMode": "yes",  # otherwise a prompt would wait without end
    "LogLevel": "ERROR",  # no banners: output of ssh then means an error
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ControlMaster": "no",  # a master connection would outlive its session and keep its output open
}
"""Options of ssh, after those in the cluster file; of repeated options, ssh uses the first."""
SECONDS_TO_ANSWER = 120
"""How long an agent may take until its first line: ssh, the login shell, and Python on a slow filesystem."""
SECONDS_TO_END = 10
"""How long other nodes may take to end after one failed, and a node after its connection was closed."""
BEAT = 15
"""Seconds between two heartbeats."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ENDED = 128 + signal.SIGTERM
"""Exit code of a node that ends on request."""


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

    SIGTERM, SIGINT and SIGHUP ask the ranks to save and end; a second signal ends them at once, and so does any end of
    this process. When one node fails, all nodes are ended.
    """
    if len(hosts) > 1 and (loopback := [host for host in hosts if address(host) in LOOPBACK]):
        print_error(f"hostfile: {loopback[0]} is a different machine on each node; write the host name instead")
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
    """Return the name of a host without the user name in front."""
    return host.rpartition("@")[2]


def count_gpus(cluster: ClusterFile, host: str) -> int:
    """Ask a host how many GPUs its processes may use.

    Raises
    ------
    UserError
        When it gives no answer.
    """
    command = ssh_command(cluster, host, agent_command(ROOT, cluster.python or sys.executable, "launch.devices"))
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS_TO_ANSWER, check=False
        )
        number, reason = result.stdout.split()[-1:], result.stderr.strip().splitlines()[-1:]
    except (OSError, subprocess.TimeoutExpired) as error:
        number, reason = [], [str(error)]
    if not number or not number[0].isdigit():
        why = f" ({reason[0]})" if reason else ""
        remedy = "set device: cuda or cpu in the cluster file"
        raise UserError(f"--cluster {cluster.name}: cannot ask {host} for its GPUs{why}; {remedy}")
    return int(number[0])


def ssh_command(cluster: ClusterFile, host: str, line: str, **settings: object) -> list[str]:
    """Return the command that runs a shell command line on `host`, with additional settings of ssh."""
    options = [word for name, value in (SSH_OPTIONS | settings).items() for word in ("-o", f"{name}={value}")]
    reach = [os.path.expanduser(word) for word in shlex.split(cluster.ssh)]
    return [*reach, *options, "-T", host, line]


def agent_command(code: Path, python: str, *words: str) -> str:
    """Return the shell command line that starts the agent, or another module of Python."""
    return f"cd {shlex.quote(str(code))} && exec {shlex.quote(python)} -m {shlex.join(words or ('launch', 'node'))}"


class _Launch:
    """The agents of all nodes, from their start to their end."""

    def __init__(self, cluster: ClusterFile, code: Path, requests: list[Request]) -> None:
        self._cluster, self._code = cluster, code
        self._waiting = requests
        """Requests that are not sent yet: node 0 comes first, and reports the port for the other nodes."""
        self._agents: list[_Agent] = []
        self._news: _News = queue.SimpleQueue()
        self._ended: dict[int, int] = {}
        """Node -> exit code, in the order in which the nodes ended."""
        self._stop_signal = 0
        self._deadline = float("inf")
        """Time after which the remaining nodes are ended."""
        self._beat = time.monotonic()

    def follow(self) -> int:
        """Start all agents, wait for them, and return the exit code."""
        try:
            with elastic.stop_signals(self._signal):
                self._connect(self._waiting.pop(0))
                while self._remaining():
                    self._hear()
                    self._see_to_the_time()
        except FileNotFoundError as error:
            print_error(
                f"{error.filename}: not found; correct ssh: in the cluster file, the command that connects to a host"
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
        line = agent_command(self._code, self._cluster.python or sys.executable)
        command = ssh_command(self._cluster, request.host, line)
        self._agents.append(_Agent(request, command, self._news))

    def _signal(self, number: int, frame: types.FrameType | None) -> None:
        self._news.put((None, "signal", number))

    def _hear(self) -> None:
        """Wait up to a second for a message, and handle it."""
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
        """Ask the remaining agents to end; kill those that have not answered yet, since they have nothing to save."""
        self._deadline = time.monotonic() + patience
        for agent in self._remaining():
            if agent.answered:
                agent.send(f"stop {'TERM' if number == signal.SIGHUP else number.name.removeprefix('SIG')}")
            else:
                agent.kill()

    def _lost(self, agent: _Agent, code: int) -> int:
        """Return the exit code for an agent that ended without reporting one; `code` is that of ssh."""
        if self._deadline < float("inf"):
            return ENDED
        if agent.answered:
            print_error(f"{agent.host}: the connection was lost ({agent.last_words() or f'ssh ended with {code}'})")
            return FAILURE
        print_error(f"{agent.host}: {agent.last_words() or f'ssh ended with code {code}'}; {self._remedy(code)}")
        return BAD_INPUT

    def _remedy(self, code: int) -> str:
        if code in (126, 127):
            return "set python: in the cluster file to the interpreter of the nodes"
        if code == 255 or code < 0:
            return "make the command in ssh: in the cluster file work without a prompt"
        return f"put {self._code} and its Python on a filesystem that all nodes share"

    def _see_to_the_time(self) -> None:
        now = time.monotonic()
        if now > self._beat + BEAT:
            self._beat = now
            for agent in self._agents:  # the agent of node 0 stays until all have ended
                agent.send("")
        for agent in self._remaining():
            if not agent.answered and now > agent.began + SECONDS_TO_ANSWER:
                agent.kill(f"no answer within {SECONDS_TO_ANSWER} s")
            if now > self._deadline:
                agent.hang_up()
            if now > self._deadline + SECONDS_TO_END:
                agent.kill()


class _Agent:
    """The connection to the agent on one node."""

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
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C must reach only this process, not its connections
        )
        assert self._ssh.stdin, "stdin=PIPE"
        self._stdin = self._ssh.stdin
        self._complaints = threading.Thread(target=self._pass_on_stderr, args=(self._ssh.stderr,), daemon=True)
        self._complaints.start()
        self._listener = threading.Thread(target=self._listen, args=(self._ssh.stdout,), daemon=True)
        self._listener.start()
        self.send(json.dumps(asdict(request)))

    def send(self, line: str) -> None:
        """Send one line; when the agent is gone, the listener reports it."""
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
        """End ssh and read its remaining output, after hanging up."""
        try:
            self._ssh.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # a process started by a rank keeps the session's output open
            self._ssh.kill()
            self._ssh.wait()
        for thread in (self._listener, self._complaints):
            thread.join(SECONDS_TO_END)

    def last_words(self) -> str:
        """Return the last line from ssh or the login shell."""
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
    with suppress(BrokenPipeError):  # the reader is gone; the run continues
        stream.write(text)
        stream.flush()


_News = queue.SimpleQueue[tuple[_Agent | None, str, int]]
"""Messages: the agent (None: this process), the kind (port, exit, gone, signal), and the value."""
