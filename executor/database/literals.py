"""Defines the states of jobs, reports and mappings as SQL literals, which statements use instead of bound parameters.

SQLite uses a partial index only if the text of the statement contains the value.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, literal_column

from executor.model import ENDED_STATUSES, JobStatus, MappingState, ReportState

PENDING_LITERAL: ColumnElement[str] = literal_column(f"'{JobStatus.PENDING}'")
PROCESSING_LITERAL: ColumnElement[str] = literal_column(f"'{JobStatus.PROCESSING}'")
ENDED_LITERALS: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in ENDED_STATUSES]
DUE_LITERAL: ColumnElement[str] = literal_column(f"'{ReportState.DUE}'")
CLAIMED_ELSEWHERE_LITERAL: ColumnElement[str] = literal_column(f"'{ReportState.CLAIMED_ELSEWHERE}'")
DELETED_LITERAL: ColumnElement[str] = literal_column(f"'{MappingState.DELETED}'")
