"""Holds fast which jobs somebody was asked about."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy.orm import Session

from db.failed import Filter, find
from db.far_time import FarTime


def held_fast(session: Session, where: Filter) -> Filter:
    """Return ``where`` without what fails from now on: nothing is done to a job that nobody was asked about."""
    if where.until is not None:
        return where
    newest = find(session, where, limit=1).jobs
    if not newest:
        return where
    # Not this machine's time: workers' clocks wrote theirs.
    last = newest[0].failed_at
    # Of times that Python does not have there is none after it; see db.times.
    return replace(where, until=last if isinstance(last, FarTime) else last + timedelta(microseconds=1))
