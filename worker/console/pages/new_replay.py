"""Making a replay: which jobs, how many would go and why the rest would not, how it is to go; and its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final
from urllib.parse import urlencode
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, ImmutableMultiDict

from db.errors import ConfigurationError
from db.failed import Filter, Share, count_up_to, largest_groups, moment
from db.failed.events import REASON_AT_MOST, checked
from db.replays import runs
from db.replays.runs import RAMP, AlreadyMade, ReplaySettings
from db.tenancy import parse_uuid
from worker.console import dry_runs
from worker.console.access import Acting, ActingForAll, Looking, NotAllowed, Work
from worker.console.asking import asked_in, pairs_of
from worker.console.deployment import Deployment
from worker.console.dry_runs import Looked
from worker.console.pages.replays import which
from worker.console.problems import Illegal
from worker.console.rendering import redirect, render
from worker.failed.asked import Asked
from worker.failed.choosing import Chosen, NothingToReplay, choose
from worker.failed.holding import held_fast
from worker.replay.application import NoSuchActor, check_is_there
from worker.tenants import tenant_names
from worker.text import short

router = APIRouter()

#: Jobs that are counted, and looked at for their groups, where that takes looking at each; and groups that are named.
COUNTED: Final = 10_000
GROUPED: Final = 2_000
GROUPS: Final = 5
#: Jobs that were named and cannot be sent, that are told.
REFUSED: Final = 20

_DEFAULT: Final = ReplaySettings()


@dataclass(frozen=True, slots=True)
class Wanted:
    """How it is to go, as somebody typed it; the form's own id, and until when jobs are those that he was shown."""

    ramp: str = ",".join(map(str, RAMP))
    rate: str = ""
    threshold: str = f"{_DEFAULT.threshold * 100:g}"
    window: str = str(_DEFAULT.window)
    send_as: str = ""
    reason: str = ""
    form_id: str = ""
    held_until: str = ""


class WrongField(ValueError):
    """Raised when a field of the form cannot be so; the message names it and what was given."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def to_settings(wanted: Wanted) -> ReplaySettings:
    """Return how a replay is to go.

    Raises:
      WrongField: Naming the first that cannot be so.
    """
    steps = [step.strip() for step in wanted.ramp.split(",")]
    if len(steps) > 100 or not all(step.isascii() and step.isdigit() and len(step) < 8 for step in steps):
        raise WrongField("ramp", f"ramp must be whole numbers with commas between, as 1,5,20, not {wanted.ramp!r}")
    threshold = _number("threshold", wanted.threshold)
    if not 0 <= threshold <= 100:
        raise WrongField("threshold", f"threshold must be 0 to 100 per cent, not {wanted.threshold!r}")
    if not (wanted.window.isascii() and wanted.window.isdigit() and len(wanted.window) < 8):
        raise WrongField("window", f"window must be a whole number, not {wanted.window!r}")
    if "\0" in wanted.send_as or len(wanted.send_as) > 255:
        raise WrongField("send_as", "send_as must be the name of an actor")
    try:
        return ReplaySettings(
            ramp=tuple(map(int, steps)),
            rate=_number("rate", wanted.rate) if wanted.rate else None,
            threshold=threshold / 100,
            window=int(wanted.window),
            actor=wanted.send_as or None,
        )
    except ValueError as e:
        # It begins with the field's name.
        raise WrongField(str(e).partition(" ")[0], str(e)) from None


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise WrongField(name, f"{name} must be a number, not {value!r}") from None


async def _posted(request: Request) -> FormData:
    return await request.form()


Posted = Annotated[FormData, Depends(_posted)]
_FIELDS: Final = tuple(Wanted.__dataclass_fields__)


def _wanted(form: ImmutableMultiDict[str, Any]) -> Wanted:
    given = {name: str(form[name]).strip() for name in _FIELDS if name in form}
    return Wanted(**given)


@dataclass(frozen=True, slots=True)
class Shown:
    """What somebody is shown of the jobs before he says yes."""

    chosen: Chosen
    held: Filter
    count: int
    is_all: bool
    groups: list[Share]
    names: Mapping[UUID, str] = field(default_factory=dict)


def _look_up(session: Session, work: Work, asked: Asked, wanted: Wanted) -> Shown:
    """Find out which jobs, and hold them fast; see :func:`worker.failed.choosing.choose` for what it raises."""
    chosen = choose(session, asked, work.now)
    where = chosen.where
    held = _held(session, where, work, wanted)
    count, is_all = _count(session, where, held)
    # Of many, groups know without a look at each, and what has failed since makes no difference.
    groups = largest_groups(session, held if count <= GROUPED else where, limit=GROUPS + 1, at_most=GROUPED)
    return Shown(chosen, held, count, is_all, groups, tenant_names(session, where.tenant_id))


def _count(session: Session, where: Filter, held: Filter) -> tuple[int, bool]:
    """Return how many jobs are held, and whether these are all."""
    if not where.of_groups or held.until is None:
        return count_up_to(session, held, COUNTED)
    # However many there are: those of the groups, less the few that have failed since.
    count, _ = count_up_to(session, where, COUNTED)
    since, is_all = count_up_to(session, replace(where, since=held.until), COUNTED)
    return count - since, is_all


def _held(session: Session, where: Filter, work: Work, wanted: Wanted) -> Filter:
    if where.ids or where.until is not None:
        return where
    if wanted.held_until:
        return replace(where, until=moment("held_until", wanted.held_until, work.now))
    return held_fast(session, where)


@router.get("/replays/new")
def ask(request: Request, work: Looking) -> Response:
    """Show which jobs would be sent again, and ask how."""
    if not work.who.may_act:
        raise NotAllowed(f"{work.who.name} may look, and not send anything again")
    asked = asked_in(request.query_params)
    wanted = Wanted(form_id=str(uuid4()))
    if not asked.narrows:
        return _page(request, work, wanted, None)
    with work.begin() as session:
        try:
            shown = _look_up(session, work, asked, wanted)
        except NothingToReplay as e:
            return _nothing(request, work, session, wanted, e)
    return _page(request, work, wanted, shown)


@router.post("/replays/new")
def try_it(request: Request, work: ActingForAll, form: Posted) -> Response:
    """Say how many would go, and why the rest would not, with what somebody has typed; nothing is changed."""
    wanted = _wanted(form)
    deployment: Deployment = request.app.state.deployment
    with work.begin() as session:
        try:
            shown = _look_up(session, work, asked_in(form, also=("csrf", *_FIELDS)), wanted)
        except NothingToReplay as e:
            return _nothing(request, work, session, wanted, e, 409)
    try:
        settings = to_settings(wanted)
        _check_actor(work, deployment, wanted)
        looked = dry_runs.look(work, deployment, request.app.state.client, shown.held, settings)
    except WrongField as e:
        return _page(request, work, wanted, shown, wrong=e, status_code=422)
    except (Illegal, ConfigurationError) as e:
        status = 409 if isinstance(e, Illegal) else 503
        return _page(request, work, wanted, shown, wrong=e, status_code=status)
    return _page(request, work, wanted, shown, looked=looked)


@router.post("/replays")
def start(request: Request, work: Acting, form: Posted) -> Response:
    """Make the replay that a form asks for, once, however often it is sent, and run it."""
    wanted = _wanted(form)
    asked = asked_in(form, also=("csrf", *_FIELDS))
    deployment: Deployment = request.app.state.deployment
    form_id = parse_uuid("form_id", wanted.form_id) if wanted.form_id else uuid4()
    with work.begin() as session:
        if runs.get(session, form_id, counted=False) is not None:
            return _started_before(request, form_id)
        try:
            shown = _look_up(session, work, asked, wanted)
        except NothingToReplay as e:
            return _nothing(request, work, session, wanted, e, 409)
    try:
        settings = to_settings(wanted)
        _check_actor(work, deployment, wanted)
        reason = _reason(wanted)
    except WrongField as e:
        return _page(request, work, wanted, shown, wrong=e, status_code=422)
    try:
        with work.begin() as session:
            runs.create(session, shown.held, settings, by=work.who.name, reason=reason, replay_id=form_id)
    except AlreadyMade:
        with work.begin() as session:
            if runs.get(session, form_id, counted=False) is None:
                raise Illegal("this form has been used by somebody else: load it again") from None
        # A moment ago, by the same form.
        return _started_before(request, form_id)
    deployment.run_soon(form_id)
    return redirect(request, f"/replays/{form_id}", say=f"Replay {short(form_id)} is started.")


def _started_before(request: Request, replay_id: UUID) -> Response:
    return redirect(
        request, f"/replays/{replay_id}", say=f"Replay {short(replay_id)} was started by this form before: this is it."
    )


def _reason(wanted: Wanted) -> str | None:
    try:
        return checked("reason", wanted.reason, REASON_AT_MOST) if wanted.reason else None
    except ValueError as e:
        raise WrongField("reason", str(e)) from None


def _check_actor(work: Work, deployment: Deployment, wanted: Wanted) -> None:
    """Check that there is the actor that is to run them, where this process can tell.

    Raises:
      WrongField: When there is none.
    """
    if not wanted.send_as or work.tenant_id is not None:
        return
    try:
        broker = deployment.broker
    except ConfigurationError:
        # Whoever runs it says so of each job.
        return
    try:
        check_is_there(broker, wanted.send_as)
    except NoSuchActor as e:
        raise WrongField("send_as", f"send_as: {e}") from None


def _nothing(
    request: Request, work: Work, session: Session, wanted: Wanted, error: NothingToReplay, status_code: int = 200
) -> Response:
    count, is_all = count_up_to(session, error.where, COUNTED)
    nothing = {"count": count, "is_all": is_all, "refused": error.refused, "query": _query(error.where)}
    return _page(request, work, wanted, None, nothing=nothing, status_code=status_code)


def _query(where: Filter) -> str:
    return f"?{urlencode([*pairs_of(replace(where, status=())), ('status', 'all')])}"


def _page(
    request: Request,
    work: Work,
    wanted: Wanted,
    shown: Shown | None,
    *,
    looked: Looked | None = None,
    wrong: Exception | None = None,
    nothing: dict[str, Any] | None = None,
    status_code: int = 200,
) -> Response:
    deployment: Deployment = request.app.state.deployment
    fields = {}
    if shown is not None:
        held = shown.held
        if held.until != shown.chosen.where.until and held.until is not None:
            wanted = replace(wanted, held_until=held.until.isoformat())
        fields = {
            "pairs": pairs_of(shown.chosen.where),
            "which": which(shown.chosen.where, dict(shown.names)),
            "query": f"?{urlencode(pairs_of(held))}",
            "refused": list(shown.chosen.refused.items())[:REFUSED],
            "more_refused": max(0, len(shown.chosen.refused) - REFUSED),
            "abandoned": "abandoned" in held.status or bool(held.ids),
        }
    return render(
        request,
        "new_replay.html",
        who=work.who,
        now=work.now,
        status_code=status_code,
        wanted=wanted,
        shown=shown,
        looked=looked,
        wrong=wrong,
        wrong_field=wrong.name if isinstance(wrong, WrongField) else None,
        nothing=nothing,
        cannot_import=deployment.wrong,
        actors=[] if work.tenant_id else deployment.actors,
        groups_named=GROUPS,
        # Of how many the groups are; None for all.
        grouped=None if shown is None or shown.count <= GROUPED or shown.chosen.where.of_groups else GROUPED,
        refused_named=REFUSED,
        **fields,
    )
