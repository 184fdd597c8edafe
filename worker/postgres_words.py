"""What Postgres says, for whoever cannot mend a statement: without secrets, and without the statement."""

from __future__ import annotations

import psycopg
from psycopg.errors import UndefinedColumn, UndefinedFunction, UndefinedTable

from middleware.redaction import Redactor


def explain(error: BaseException | None) -> str:
    """Return what is wrong, in a line."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return f"Postgres cannot be reached: {Redactor().text(str(error).strip())}"
    # Neither the statement nor where in a trigger it was: nobody who runs a command can mend those.
    said = Redactor().text(error.diag.message_primary or str(error).strip())
    if isinstance(error, UndefinedTable | UndefinedColumn | UndefinedFunction):
        said += "; the database may be behind: worker migrate"
    return f"Postgres refused: {said}"
