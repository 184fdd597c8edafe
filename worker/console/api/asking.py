"""What can be asked for: the filters of the pages and the command line, in a query or in a body."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from worker.failed.asked import Asked

Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1_000)]
#: Empty, it would be one filter less, and so all jobs instead of none.
Words = Annotated[list[Word], Field(min_length=1, max_length=1_000)]
StatusWord = Literal["pending", "in_progress", "resolved", "abandoned", "open", "all"]
Limit = Annotated[int, Field(ge=1, le=1_000, description="How many at most.")]
After = Annotated[str, Field(max_length=500, description="Where to go on: `next` of the page before.")]

STRICT: Final = ConfigDict(extra="forbid")


class Filters(BaseModel):
    """Which failed jobs: all for which each of these holds; of several values of one, any."""

    model_config = STRICT

    id: Words | None = Field(None, description="Ids, or what they begin with, four characters at least.")
    status: Annotated[list[StatusWord], Field(min_length=1, max_length=10)] | None = Field(
        None, description="`open` is pending and in_progress."
    )
    queue: Words | None = None
    actor: Words | None = Field(None, description="Names, or what follows the last dots of them.")
    tenant: Words | None = Field(None, description="Ids or names.")
    error_type: Words | None = None
    exception: Words | None = Field(None, description="Classes, or what follows the last dots of them.")
    fingerprint: Words | None = Field(None, description="Of groups, or what they begin with, four characters at least.")
    correlation_id: Word | None = Field(None, description="Of one piece of work.")
    since: Word | None = Field(None, description="Failed then or later: `2h`, `7d`, or a time in ISO 8601.")
    until: Word | None = Field(None, description="Failed before then.")
    text: Word | None = Field(None, description="In message, traceback or arguments; three characters at least.")
    replay: Word | None = Field(None, description="Of this replay.")

    def asked(self) -> Asked:
        """Return it as the library takes it."""
        return Asked(
            ids=self.id,
            status=list(self.status) if self.status else None,
            queue=self.queue,
            actor=self.actor,
            tenant=self.tenant,
            error_type=self.error_type,
            exception=self.exception,
            fingerprint=self.fingerprint,
            correlation_id=self.correlation_id,
            since=self.since,
            until=self.until,
            text=self.text,
            replay=self.replay,
        )


class FiltersOfAPage(Filters):
    """Which failed jobs, and where a page of them begins."""

    after: After | None = None
    limit: Limit = 50
