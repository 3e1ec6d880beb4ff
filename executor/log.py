"""Logs one event per line on stdout, as JSON or as coloured text, with secrets masked.

The name of an event is in the past tense, and keyword arguments describe the event:
`log.info("playbook_finished", rc=0, duration_s=41.3)`. `with bound_contextvars(job_id=…, action=…):` adds these keys to
every event that is logged in the block. The same handler writes the messages of libraries, but only those of level
WARNING or higher: at lower levels urllib3 would log whole URLs.
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
#: The parent of all loggers of this program. Every other logger belongs to a library.
ROOT_LOGGER = "executor"
#: The first keys of every line, in this order.
LEADING_KEYS = ("timestamp", "level", "event", "logger")


def get_logger(name: str | None = None) -> structlog.stdlib.BoundLogger:
    """Return a logger below ROOT_LOGGER. Callers pass `__name__`. They may call this function before `configure`."""
    if name is None or name == ROOT_LOGGER:
        name = ROOT_LOGGER
    elif not name.startswith(f"{ROOT_LOGGER}."):
        name = f"{ROOT_LOGGER}.{name}"
    return structlog.stdlib.get_logger(name)


def configure(format: LogFormat = "auto", level: str = "info", *, stream: TextIO | None = None) -> None:
    """Start to log to `stream` (default: stdout).

    The log has this program's events of `level` or higher, and the messages of libraries of WARNING or higher. The
    format `auto` means `console` if the stream is a terminal, otherwise `json`. A second call replaces the
    configuration of the first. Before the first call, the loggers of this program write nothing.
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
                _redact,  # redacts last before rendering, so that no later processor can add a secret
                *_renderers(format, stream),
            ],
        )
    )
    logging.getLogger().handlers = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    # urllib3 logs a warning at each retry, which means about one per second during an outage. `agent.state.Link` logs
    # each outage once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger(ROOT_LOGGER).setLevel(level.upper())


def install_hooks() -> None:
    """Log Python's warnings and uncaught exceptions, also those of threads.

    Without these hooks Python would print both on stderr, with unmasked secrets.
    """
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class _Handler(logging.StreamHandler[TextIO]):
    """Writes log lines. If writing fails, the caller gets no exception, and the line is not printed anywhere else."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report on stderr that a line is lost. The method of the standard library would print the unmasked event."""
        kind = sys.exc_info()[0] or Exception
        print(f"a log line of {record.name} is lost: {kind.__name__}", file=sys.stderr)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Return whether to log a record. Below WARNING, only this program's are logged, whatever levels libraries set."""
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
    """Return the last processors of an event, which turn it into the text of a line."""
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
    """Escape control characters in the event's name: text from other programs must not control the terminal.

    `repr_native_str` escapes them in the values.
    """
    if not str(event["event"]).isprintable():
        event["event"] = repr(event["event"])
    return event


def _to_json(event: EventDict, **_kwargs: Any) -> str:
    """Return an event as JSON. A value that JSON cannot represent is written as text."""
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


#: The processors that process every event. They run in the thread that logs the event.
_COMMON: list[Processor] = [
    merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]

# structlog is configured at import, because with its default configuration a logger that is used before `configure`
# would print unmasked text.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_COMMON,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=False,  # tests replace the processors, and `configure` may be called after the first use
)
logging.getLogger(ROOT_LOGGER).addHandler(logging.NullHandler())
