"""Logs one event per line on stdout, as JSON or as coloured text, with secrets masked.

The name of an event is in the past tense, and keyword arguments describe the event:
`log.info("playbook_finished", rc=0, duration_s=41.3)`. A block `with bound_contextvars(job_id=…, action=…):` adds these
keys to every event that is logged in the block. The messages of libraries are written in the same way, but only from
level WARNING upwards: at lower levels urllib3 would log whole URLs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from enum import Enum
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from executor.redaction import redactor

__all__ = ["LogFormat", "bound_contextvars", "capture_warnings_and_exceptions", "configure", "get_logger"]

LogFormat = Literal["auto", "json", "console"]
#: The name of the parent of all loggers of this program. Every other logger belongs to a library.
PROGRAM_LOGGER_NAME = "executor"
#: The first keys of every line, in this order.
LEADING_KEYS = ("timestamp", "level", "event", "logger")


def get_logger(name: str | None = None) -> structlog.stdlib.BoundLogger:
    """Return a logger of this program. Callers pass `__name__`. They may call this function before `configure`."""
    if name is None or name == PROGRAM_LOGGER_NAME:
        name = PROGRAM_LOGGER_NAME
    elif not name.startswith(f"{PROGRAM_LOGGER_NAME}."):
        name = f"{PROGRAM_LOGGER_NAME}.{name}"
    return structlog.stdlib.get_logger(name)


def configure(format: LogFormat = "auto", level: str = "info", *, stream: TextIO | None = None) -> None:
    """Start to log to `stream` (default: stdout).

    This program's events are logged from `level` upwards, and the messages of libraries from WARNING upwards. The
    format `auto` means `console` if the stream is a terminal, otherwise `json`. A second call replaces the
    configuration of the first. Before the first call, the loggers of this program write nothing.
    """
    stream = stream or sys.stdout
    handler = _SafeStreamHandler(stream)
    handler.addFilter(_should_log)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_COMMON_PROCESSORS],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _put_leading_keys_first,
                _redact,  # directly before rendering, so that no later processor can add a secret
                *_renderers(format, stream),
            ],
        )
    )
    logging.getLogger().handlers = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    # urllib3 logs a warning at each retry. During an outage, this would be about one warning per second.
    # `agent/state.py` logs each outage of FulcrumCore and Proxmox once instead.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger(PROGRAM_LOGGER_NAME).setLevel(level.upper())


def capture_warnings_and_exceptions() -> None:
    """Log Python's warnings and uncaught exceptions, including the exceptions of threads.

    Without these hooks Python would print both on stderr, with unmasked secrets.
    """
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught_exception
    threading.excepthook = _log_uncaught_exception_of_thread


class _SafeStreamHandler(logging.StreamHandler[TextIO]):
    """Writes log lines. If it cannot write a line, it raises no exception, and does not print the line elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report on stderr that a line is lost. The method of the standard library would print the unmasked event."""
        exception_class = sys.exc_info()[0] or Exception
        print(f"a log line of {record.name} could not be written: {exception_class.__name__}", file=sys.stderr)


def _should_log(record: logging.LogRecord) -> bool:
    """Return whether to log a record. A record below WARNING is logged only if it is from this program.

    This filter is needed in addition to the levels of the loggers, because a library may set the level of its logger.
    """
    is_from_this_program = record.name == PROGRAM_LOGGER_NAME or record.name.startswith(f"{PROGRAM_LOGGER_NAME}.")
    return is_from_this_program or record.levelno >= logging.WARNING


def _put_leading_keys_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    leading_items = {key: event.pop(key) for key in LEADING_KEYS if key in event}
    return {**leading_items, **event}


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return cast(EventDict, redactor.redact_value(event))


def _with_enum_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace each enum by its value, because the console renderer would write it as `<JobStatus.FAILED: 'failed'>`."""
    return {key: value.value if isinstance(value, Enum) else value for key, value in event.items()}


def _rename_exception_key(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Rename the key `exception`, which holds the traceback as one string, to `traceback`."""
    if "exception" in event:
        event["traceback"] = event.pop("exception")
    return event


def _renderers(format: LogFormat, stream: TextIO) -> list[Processor]:
    """Return the last processors, which turn an event into the text of a log line."""
    is_terminal = stream.isatty()
    if format == "json" or (format == "auto" and not is_terminal):
        return [_rename_exception_key, structlog.processors.JSONRenderer(_to_json)]
    colors = is_terminal and not os.environ.get("NO_COLOR")
    return [
        _escape_event_name,
        _with_enum_values,
        structlog.dev.ConsoleRenderer(
            colors=colors, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


def _escape_event_name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters in the event's name, so that they cannot control the terminal.

    The message of a library is logged as the name of an event, and may contain text from other programs. The renderer's
    option `repr_native_str` escapes control characters in the values.
    """
    if not str(event["event"]).isprintable():
        event["event"] = repr(event["event"])
    return event


def _to_json(event: EventDict, **_kwargs: Any) -> str:
    """Return an event as JSON. A value that JSON cannot represent is written as text."""
    try:
        return json.dumps(event, default=str, allow_nan=False)
    except (TypeError, ValueError):  # NaN, or a nested key that JSON does not allow
        return json.dumps(
            {key: value if isinstance(value, (str, int)) else repr(value) for key, value in event.items()}
        )


def _log_uncaught_exception(
    exception_class: type[BaseException], exception: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(exception_class, KeyboardInterrupt):
        return
    get_logger().critical("crashed", exc_info=(exception_class, exception, traceback))


def _log_uncaught_exception_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    thread_name = args.thread.name if args.thread else "unknown"
    get_logger().critical(
        "thread_crashed", thread=thread_name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
    )


#: The processors that process every event.
_COMMON_PROCESSORS: list[Processor] = [
    merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]

# structlog is configured when this module is imported. With structlog's default configuration, a logger that is used
# before `configure` would print unmasked text.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_COMMON_PROCESSORS,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=False,  # `configure` may follow a first log line, and tests replace the processors
)
logging.getLogger(PROGRAM_LOGGER_NAME).addHandler(logging.NullHandler())
