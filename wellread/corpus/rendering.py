"""Chat templates, which are foreign programs: rendered with a fixed date, without chance, within limits."""

from __future__ import annotations

import operator
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

from wellread.errors import UserError

SECONDS = 10.0
"""A longer rendering is refused; usual templates need less than a millisecond."""
CHARACTERS = 1_000_000
"""A template may add this many characters, and repeat the messages `REPEATS` times."""
REPEATS = 16
MEMORY = 2**30
"""A rendering may allocate this many bytes; texts that double fill any memory within a second."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")
"""How Python ends the text of an object that has no better one; the address differs between processes."""
DEFAULT_DATE = re.compile(r"\bset\s+date_string\s*=")
"""How a template asks for a date that transformers does not give it, as Llama 3.1 and later do."""
Message = dict[str, str]


class Renderer:
    """The chat template of a tokenizer.

    The template sees the variables and functions that transformers gives it, with three exceptions. Its clock shows a
    fixed date, which templates that set a default for ``date_string`` get under this name, too. The functions that
    return random values are missing, and addresses of objects are refused. So equal settings give equal texts.

    Parameters
    ----------
    backend : transformers tokenizer
    date : str
        The date that the template takes for today, as YYYY-MM-DD.

    Raises
    ------
    UserError
        When the tokenizer has no usable template. The text of the error continues a sentence that begins with "its
        chat".
    """

    def __init__(self, backend: Any, date: str) -> None:
        today = datetime.fromisoformat(date)
        # None, not an empty list: templates ask whether `tools is not none`, and then write a prompt for tools.
        self._variables = {"tools": None, "documents": None, **backend.special_tokens_map}
        self._limit = CHARACTERS
        with _refused_errors(), _limits():
            source = source_of(backend)
            self._template = self._compile(source, today)
        if DEFAULT_DATE.search(source):
            self._variables["date_string"] = today.strftime("%d %b %Y")
        self._addresses = {*ADDRESS.findall(source)}

    def _compile(self, source: str, today: datetime) -> Any:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        environment = _compile_jinja_template("").environment.overlay()  # the sandbox of transformers
        environment.filters = {name: call for name, call in environment.filters.items() if name != "random"}
        environment.intercepted_binops = frozenset(["*", "**"])
        environment.call_binop = self._call_binop
        constants = {name: value for name, value in environment.globals.items() if name != "lipsum"}
        constants["strftime_now"] = today.strftime
        environment.globals = {
            name: _Function(name, value) if isinstance(value, FunctionType | BuiltinFunctionType) else value
            for name, value in constants.items()
        }
        return environment.from_string(source.removeprefix("\ufeff"))

    def _call_binop(self, context: object, symbol: str, first: Any, second: Any) -> Any:
        """Multiply or raise to a power, unless the result would exceed the limit of the output."""
        if symbol == "**":
            if abs(first) > 1 and abs(second) > 64:
                raise OverflowError("a power is too large")
            return operator.pow(first, second)
        for sequence, factor in ((first, second), (second, first)):
            if isinstance(factor, int) and hasattr(sequence, "__len__") and len(sequence) * factor > self._limit:
                raise OverflowError("a repeated text is too long")
        return first * second

    def __call__(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """Render `messages`, followed by the beginning of an answer if `prompt`.

        Raises
        ------
        UserError
            When the template fails, or exceeds the limit of time or output. The text of the error continues a
            sentence that begins with "its chat".
        """
        pieces, length = list[str](), 0
        self._limit = CHARACTERS + REPEATS * sum(len(message["content"]) for message in messages)
        with _refused_errors(), _limits():
            copies = [dict(message) for message in messages]
            for piece in self._template.generate(messages=copies, add_generation_prompt=prompt, **self._variables):
                pieces.append(piece)
                length += len(piece)
                if length > self._limit:
                    raise OverflowError(f"it wrote more than {self._limit:,} characters")
        text = "".join(pieces)
        contents = (ADDRESS.findall(message["content"]) for message in messages)
        if {*ADDRESS.findall(text)} - self._addresses.union(*contents):
            raise UserError("gets the address of an object, which is random, from the chat template; fix the template")
        return text


def source_of(backend: Any) -> str:
    """The chat template of a tokenizer: of several named ones, the one with the name ``default``.

    Raises
    ------
    UserError
        When none has this name. The text of the error continues a sentence that begins with "its chat".
    """
    templates = backend.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise UserError(
            f"templates are named {', '.join(sorted(templates))}, none of them default; "
            "give one of them this name in its tokenizer_config.json"
        )
    return str(backend.get_chat_template())


class _Function:
    """A function of the templates. As text, it is always the same; Python would write the address of the function."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name, self._call = name, call

    def __call__(self, *values: Any, **options: Any) -> Any:
        return self._call(*values, **options)

    def __repr__(self) -> str:
        return f"<function {self._name}>"


class _Slow(Exception):
    """The template exceeds the limit of time."""


@contextmanager
def _refused_errors() -> Iterator[None]:
    """Turn any error of the template into a `UserError`: a template is foreign code and may fail in any way."""
    try:
        yield
    except UserError:
        raise
    except _Slow:
        raise UserError(f"takes the chat template more than {SECONDS:g} s; fix the template") from None
    except Exception as error:  # including MemoryError and RecursionError
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise UserError(f"is rejected by the chat template: {reason}") from None


@contextmanager
def _limits() -> Iterator[None]:
    """Interrupt a rendering after `SECONDS`, and let allocations fail after `MEMORY`.

    Only the main thread can be interrupted; it compiles all corpora.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise _Slow

    previous: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, interrupt)
    started, (remaining, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous if previous is not None else signal.SIG_DFL)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, remaining - (time.monotonic() - started)), interval)
