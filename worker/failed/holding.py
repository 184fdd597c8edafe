"""Holds fast which jobs somebody was asked about."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy.orm import Session

from db.failed import Filter, find


def held_fast(session: Session, where: Filter) -> Filter:
    """Return ``where`` without what fails from now on: nothing is done to a job that nobody was asked about."""
    if where.until is not None:
        return where
    newest = find(session, where, limit=1).jobs
    # Not this machine's time: workers' clocks wrote theirs.
    return replace(where, until=newest[0].failed_at + timedelta(microseconds=1)) if newest else where
