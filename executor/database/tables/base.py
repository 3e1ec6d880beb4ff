"""Defines the base class of the tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import JSON
from sqlalchemy.orm import DeclarativeBase

from executor.database.times import UtcDateTime


class Base(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime, dict[str, Any]: JSON(none_as_null=True)}
