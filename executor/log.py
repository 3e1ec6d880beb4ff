"""Logs one event per line on stdout, as JSON or as coloured text, with secrets masked.

An event has a name in the past tense, and its facts are keys: `log.info("playbook_finished", rc=0, duration_s=41.3)`.
Keys for all events of a block are bound once: `with bound_contextvars(job_id=…, action=…):`. Messages of libraries are
logged from WARNING on, by the same handler. Below that, urllib3 would log whole URLs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from executor.redaction import redactor

__all__ = ["LogFormat", "bound_contextvars", "configure", "get_logger", "install_hooks"]

LogFormat = Literal["auto", "json", "console"]
#: The parent of our loggers. All others belong to libraries.
ROOT_LOGGER = "executor"
#: The first keys of every line, in this order.
LEADING_KEYS = ("timestamp", "level", "event", "logger")


def get_logger(name: str | None = None) -> structlog.stdlib.BoundLogger:
    """Return a logger below ROOT_LOGGER; pass `__name__`. It may be called before `configure`."""
    if name is None or name == ROOT_LOGGER:
        name = ROOT_LOGGER
    elif not name.startswith(f"{ROOT_LOGGER}."):
        name = f"{ROOT_LOGGER}.{name}"
    return structlog.stdlib.get_logger(name)


def configure(format: LogFormat = "auto", level: str = "info", *, stream: TextIO | None = None) -> None:
    """Log to `stream` (default: stdout): our events from `level` on, those of libraries from WARNING on.

    `auto` means console on a terminal, otherwise JSON. A second call replaces the first. Before the first call,
    our loggers write nothing.
    """
    stream = stream or sys.stdout
    handler = _Handler(stream)
    handler.addFilter(_is_wanted)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_COMMON],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _put_leading_keys_first,
                _redact,  # last before rendering, so that no later processor can add a secret
                *_renderers(format, stream),
            ],
        )
    )
    logging.getLogger().handlers = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    # urllib3 logs a warning at each retry, so once a second in an outage. `agent.state.Link` logs an outage once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger(ROOT_LOGGER).setLevel(level.upper())


def install_hooks() -> None:
    """Log uncaught exceptions, also of threads, and Python's warnings. Python would print them unmasked on stderr."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines. If that fails, the caller gets no exception, and the content of the line is not printed."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report on stderr that a line is lost. The standard library would print the unmasked line."""
        kind = sys.exc_info()[0] or Exception
        print(f"a log line of {record.name} is lost: {kind.__name__}", file=sys.stderr)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Drop events of libraries below WARNING, also of those that set their own level."""
    return record.levelno >= logging.WARNING or record.name == ROOT_LOGGER or record.name.startswith(f"{ROOT_LOGGER}.")


def _put_leading_keys_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    leading = {key: event.pop(key) for key in LEADING_KEYS if key in event}
    return {**leading, **event}


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return cast(EventDict, redactor.redact_value(event))


def _name_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Rename the key `exception`, which holds the traceback as one string, to `traceback`."""
    if "exception" in event:
        event["traceback"] = event.pop("exception")
    return event


def _renderers(format: LogFormat, stream: TextIO) -> list[Processor]:
    is_terminal = stream.isatty()
    if format == "json" or (format == "auto" and not is_terminal):
        return [_name_traceback, structlog.processors.JSONRenderer(_to_json)]
    colors = is_terminal and not os.environ.get("NO_COLOR")
    return [
        _escape_event,
        structlog.dev.ConsoleRenderer(
            colors=colors, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


def _escape_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, as `repr_native_str` does for values: outside text must not control a terminal."""
    if not str(event["event"]).isprintable():
        event["event"] = repr(event["event"])
    return event


def _to_json(event: EventDict, **_kwargs: Any) -> str:
    try:
        return json.dumps(event, default=str, allow_nan=False)
    except (TypeError, ValueError):  # NaN, or a key that is not a string
        return json.dumps(
            {key: value if isinstance(value, (str, int)) else repr(value) for key, value in event.items()}
        )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    get_logger().critical("crashed", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    name = args.thread.name if args.thread else "unknown"
    get_logger().critical("thread_crashed", thread=name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


#: The processors that every event passes, in the thread that logs it.
_COMMON: list[Processor] = [
    merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]

# structlog is configured at import: by default, a logger that is used before `configure` would print unmasked text.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_COMMON,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=False,  # tests capture logs, and `configure` may come after the first use
)
logging.getLogger(ROOT_LOGGER).addHandler(logging.NullHandler())
