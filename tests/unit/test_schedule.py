"""When scheduled jobs run: the calculation, in which no clock is asked, and what is refused at import."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.errors import ConnectionClosed
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from db.errors import ConfigurationError
from middleware.lossless_broker import LosslessBroker
from tests.unit.test_routing import function_in, module
from worker import routing
from worker.broker import make_broker
from worker.scheduler import Schedule, ScheduleError, scheduled_for, serving
from worker.scheduler.cron import Cron, InvalidExpression
from worker.scheduler.jobs import Job, jobs_of
from worker.scheduler.plan import MISSED_AFTER, due
from worker.scheduler.process import ALARM_EVERY, Scheduler
from worker.scheduler.tick import message_of
from worker.settings import Settings
from worker.testing import TestBroker

__all__ = ["module"]

BERLIN, UTC_ZONE = "Europe/Berlin", "UTC"
TENANT = UUID(int=7)


def at(said: str) -> datetime:
    return datetime.fromisoformat(said).replace(tzinfo=UTC)


def ticks(cron: Cron, since: datetime, until: datetime) -> list[datetime]:
    found = []
    while (following := cron.after(since)) is not None and following <= until:
        found.append(since := following)
    return found


def local(cron: Cron, since: str, until: str, zone: str = BERLIN) -> list[str]:
    return [f"{t.astimezone(ZoneInfo(zone)):%d %H:%M %z}" for t in ticks(cron, at(since), at(until))]


class TestWhereClocksChange:
    """On 2026-03-29 Berlin goes from 02:00 to 03:00, on 2026-10-25 from 03:00 back to 02:00."""

    SPRING = ("2026-03-28T12:00", "2026-03-30T12:00")
    AUTUMN = ("2026-10-24T12:00", "2026-10-26T12:00")

    def test_an_hour_that_there_is_not_is_right_after_it(self) -> None:
        assert local(Cron("30 2 * * *", BERLIN), *self.SPRING) == ["29 03:00 +0200", "30 02:30 +0200"]

    def test_an_hour_that_there_is_twice_is_once(self) -> None:
        assert local(Cron("30 2 * * *", BERLIN), *self.AUTUMN) == ["25 02:30 +0200", "26 02:30 +0100"]

    @pytest.mark.parametrize(("expression", "each"), [("*/30 2 * * *", 2), ("0,30 */2 * * *", 24), ("* 2 * * *", 60)])
    def test_also_where_the_expression_has_stars_beside_hours(self, expression: str, each: int) -> None:
        found = ticks(Cron(expression, BERLIN), at("2026-10-24T22:00"), at("2026-10-25T23:00") - timedelta(seconds=1))
        assert len(found) == each - (expression == "0,30 */2 * * *")
        spring = local(Cron(expression, BERLIN), "2026-03-28T23:00", "2026-03-29T01:00")
        assert spring[-1] == "29 03:00 +0200"

    def test_what_runs_in_every_hour_goes_on_as_time_does(self) -> None:
        for since in ("2026-03-29T00:00", "2026-10-25T00:00"):
            found = ticks(Cron("15 * * * *", BERLIN), at(since), at(since) + timedelta(hours=4))
            assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(hours=1)}
            seconds = ticks(Cron("*/20 * * * * *", BERLIN), at(since), at(since) + timedelta(hours=2))
            assert len(seconds) == 360

    def test_nobody_who_asks_in_the_hour_that_comes_again_is_told_what_was(self) -> None:
        cron = Cron("10,30 2,3 * * *", BERLIN)
        # 02:20, the second time.
        assert cron.after(at("2026-10-25T01:20")) == at("2026-10-25T02:10")

    def test_a_day_that_was_left_out(self) -> None:
        found = local(Cron("0 9 * * *", "Pacific/Apia"), "2011-12-29T12:00", "2012-01-01T00:00", "Pacific/Apia")
        assert found == ["29 09:00 -1000", "31 00:00 +1400", "31 09:00 +1400", "01 09:00 +1400"]

    def test_a_midnight_that_comes_twice_ends(self) -> None:
        # cronsim alone gives the same time for ever here.
        found = ticks(Cron("* * * * SUN", "America/St_Johns"), at("2010-11-07T02:29"), at("2010-11-07T03:40"))
        assert found == sorted(set(found))
        assert found[-1] == at("2010-11-07T03:40")

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(["30 2 * * *", "*/20 1-3 * * *", "5 * * * *", "*/15 * * * *", "0 0,2 * * *", "59 */3 * * 0"]),
        st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "America/Havana", "Asia/Beirut", UTC_ZONE]),
        # Days before clocks change somewhere, and one on which none does.
        st.sampled_from(["03-06", "03-27", "04-03", "07-01", "10-02", "10-23", "10-30"]),
        st.integers(0, 3 * 86_400),
        st.integers(0, 150_000),
    )
    def test_whenever_asked_it_is_the_same_and_as_counted_by_hand(
        self, expression: str, zone: str, day: str, start: int, later: int
    ) -> None:
        cron, since = Cron(expression, zone), at(f"2026-{day}") + timedelta(seconds=start)
        until = since + timedelta(days=1, hours=12)
        found = ticks(cron, since, until)
        assert found == counted(expression, ZoneInfo(zone), since, until)
        between = since + timedelta(seconds=later)
        if found and between < found[-1]:
            assert cron.after(between) == next(t for t in found if t > between)
            assert cron.latest(found[0], until) == found[-1]


def counted(expression: str, zone: ZoneInfo, since: datetime, until: datetime) -> list[datetime]:
    """Return the ticks by looking at each minute there is, or that a clock on the wall names."""
    plain = Cron(expression)
    if expression.split()[1] == "*":
        minutes = (since.replace(second=0, microsecond=0) + timedelta(minutes=n) for n in range(1, 2_161))
        walls = ((minute, minute.astimezone(zone).replace(tzinfo=UTC, fold=0)) for minute in minutes)
        return [m for m, wall in walls if m <= until and plain.after(wall - timedelta(seconds=1)) == wall]
    found = set()
    first = since.astimezone(zone).replace(tzinfo=UTC, fold=0) - timedelta(hours=3)
    for wall in ticks(plain, first, first + timedelta(days=2)):
        named = wall.replace(tzinfo=zone)
        while named.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != named.replace(tzinfo=None):
            named = (named.replace(tzinfo=None) + timedelta(minutes=1)).replace(tzinfo=zone)
        found.add(named.astimezone(UTC))
    return sorted(t for t in found if since < t <= until)


class TestExpressions:
    @pytest.mark.parametrize(
        ("expression", "zone", "said"),
        [
            ("61 * * * *", UTC_ZONE, "'61 * * * *': bad minute; five fields, minute hour day month weekday"),
            ("0 3 * *", UTC_ZONE, "'0 3 * *': 4 fields; five fields"),
            ("@daily", UTC_ZONE, "'@daily': 1 fields"),
            ("0 0 30 2 *", UTC_ZONE, "'0 0 30 2 *': bad day-of-month"),
            ("0 0 31 4 MON#5", UTC_ZONE, None),
            ("0 0 L 2 WED#1", UTC_ZONE, None),
            ("0 0 *,31 2 WED#5", UTC_ZONE, None),
            ("0 30 2 * * *", UTC_ZONE, "seconds are for what runs in every hour"),
            ("0 3 * * *", "Europe/Berlinn", "no time zone 'Europe/Berlinn'"),
            ("0 3 * * *", "../etc/passwd", "no time zone '../etc/passwd'"),
            ("0 3 * * *", "Europe", "no time zone 'Europe'"),
            ("0 3 * * *", "", "no time zone ''"),
        ],
    )
    def test_what_is_none_is_said(self, expression: str, zone: str, said: str | None) -> None:
        if said is None:
            assert Cron(expression, zone).after(at("2026-01-01T00:00")) is not None
            return
        with pytest.raises(InvalidExpression) as e:
            Cron(expression, zone)
        assert said in str(e.value)

    def test_one_that_never_comes(self) -> None:
        with pytest.raises(InvalidExpression, match="never comes"):
            Cron("0 0 */31 2 MON#2")

    def test_space_does_not_matter(self) -> None:
        assert Cron(" 0  3 * * *") == Cron("0 3 * * *")


def job(expression: str = "0 * * * *", zone: str = UTC_ZONE, **said: Any) -> Job:
    schedule = Schedule(expression, zone, **said)
    return Job("myapp.job", schedule, schedule.cron())


class TestDue:
    NOON = at("2026-01-01T12:00")

    def test_nothing_before_its_time(self) -> None:
        assert due(job(), self.NOON, self.NOON + timedelta(minutes=59, seconds=59)) is None

    def test_at_its_time_and_not_again(self) -> None:
        one = self.NOON + timedelta(hours=1)
        found = due(job(), self.NOON, one)
        assert found is not None
        assert (found.tick, found.late, found.send, found.missed) == (one, timedelta(0), True, False)
        assert due(job(), one, one) is None

    @pytest.mark.parametrize(("missed", "send"), [("once", True), ("skip", False)])
    def test_of_all_that_were_missed_the_last_is_sent_or_none(self, missed: str, send: bool) -> None:
        now = self.NOON + timedelta(days=400, minutes=30)
        found = due(job(missed=missed), self.NOON, now)
        assert found is not None
        assert (found.tick, found.send, found.missed) == (now - timedelta(minutes=30), send, True)
        assert due(job(missed=missed), found.tick, now) is None

    def test_what_is_a_little_late_was_not_missed(self) -> None:
        for late, send in ((MISSED_AFTER, True), (MISSED_AFTER + timedelta(milliseconds=1), False)):
            found = due(job(missed="skip"), self.NOON, self.NOON + timedelta(hours=3) + late)
            assert found is not None
            assert found.send is send

    def test_a_clock_that_is_set_back_sends_nothing_twice(self) -> None:
        one = self.NOON + timedelta(hours=1)
        for back in range(0, 180, 7):
            assert due(job(), one, one - timedelta(minutes=back)) is None
        assert due(job(), one, one + timedelta(hours=1)) is not None

    def test_a_clock_that_is_set_forward_sends_one(self) -> None:
        found = due(job("*/5 * * * *"), self.NOON, self.NOON + timedelta(hours=5, seconds=2))
        assert found is not None
        assert (found.tick, found.send) == (self.NOON + timedelta(hours=5), True)


class TestDeclared:
    @pytest.mark.parametrize(
        ("schedule", "said"),
        [
            ("61 * * * *", "cannot be scheduled at '61 * * * *': '61 * * * *': bad minute"),
            (Schedule("0 3 * * *", "Mars/Phobos"), "there is no time zone 'Mars/Phobos'"),
            (Schedule("0 3 * * *", kwargs={"n": 1}), "args and kwargs: got an unexpected keyword argument 'n'"),
            (Schedule("0 3 * * *", args=[object()]), "args and kwargs: "),
            (Schedule("0 3 * * *", missed="twice"), "missed must be 'once' or 'skip', not 'twice'"),  # type: ignore[arg-type]
            (Schedule("0 3 * * *", tenant_id="acme"), "tenant_id must be a UUID"),
            (5, "schedule must be a cron expression or Schedule, not 5"),
        ],
    )
    def test_what_cannot_be_is_an_error_at_import(self, module: str, schedule: Any, said: str) -> None:
        routing.register(module, "llm")
        with pytest.raises(ScheduleError) as e:
            routing.actor(tenant_scoped=False, schedule=schedule)(function_in(module))
        assert str(e.value).startswith(f"actor '{module}.job'")
        assert said in str(e.value)
        assert f"{module}.job" not in dramatiq.get_broker().actors

    def test_a_tenant_scoped_actor_needs_a_tenant(self, module: str) -> None:
        routing.register(module, "llm")
        with pytest.raises(ScheduleError, match=r"job' cannot be scheduled at '0 3 \* \* \*': it is tenant-scoped"):
            routing.actor(schedule="0 3 * * *")(function_in(module))
        actor = routing.actor(schedule=Schedule("0 3 * * *", tenant_id=TENANT))(function_in(module))
        assert message_of(actor.broker, jobs(module)[0], at("2026-01-01T03:00")).options["tenant_id"] == str(TENANT)

    def test_a_plain_actor_of_dramatiq_has_one_too(self, module: str) -> None:
        dramatiq.actor(queue_name="llm", actor_name=f"{module}.x", tenant_scoped=False, schedule="* * * * *")(
            function_in(module)
        )
        assert [found.name for found in jobs(module)] == [f"{module}.x"]


def jobs(module: str, **environment: str) -> tuple[Job, ...]:
    given = Settings.load({"REDIS_URL": "stub://", **environment})
    return tuple(found for found in jobs_of(dramatiq.get_broker(), given) if found.name.startswith(module))


class TestSettings:
    @pytest.fixture
    def name(self, module: str) -> str:
        routing.register(module, "llm")
        routing.actor(tenant_scoped=False, schedule=Schedule("0 3 * * *", BERLIN))(function_in(module))
        return f"{module}.job"

    def test_they_switch_off(self, name: str) -> None:
        assert [found.on for found in jobs(name)] == [True]
        (found,) = jobs(name, SCHEDULE_OFF=f" {name} ,")
        assert (found.on, found.rule) == (False, "off")

    def test_they_say_another_time(self, name: str) -> None:
        (found,) = jobs(name, SCHEDULE=f" {name} = 0,30 4-6 * * MON ;")
        assert (found.cron, found.changed) == (Cron("0,30 4-6 * * MON", BERLIN), True)
        assert not jobs(name)[0].changed

    @pytest.mark.parametrize("variable", ["SCHEDULE", "SCHEDULE_OFF"])
    def test_what_they_name_must_be_there(self, name: str, variable: str) -> None:
        value = "myapp.other=* * * * *" if variable == "SCHEDULE" else "myapp.other"
        with pytest.raises(ConfigurationError, match=rf"^{variable}: no actor 'myapp.other' has a schedule; .*{name}"):
            jobs(name, **{variable: value})

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("x", "SCHEDULE: 'x' is not of the form name=expression"),
            ("x=", "SCHEDULE: 'x=' is not of the form"),
            ("x=0 4 * * *;x=0 5 * * *", "SCHEDULE: 'x' is there twice"),
            ("x=0 99 * * *", "SCHEDULE: 'x': '0 99 * * *': bad hour"),
        ],
    )
    def test_what_they_say_must_be_an_expression(self, value: str, said: str) -> None:
        with pytest.raises(ConfigurationError) as e:
            Settings.load({"REDIS_URL": "stub://", "SCHEDULE": value})
        assert said in str(e.value)


class TestMessage:
    def test_its_id_follows_from_its_tick(self, module: str) -> None:
        routing.register(module, "llm")
        routing.actor(tenant_scoped=False, schedule="0 3 * * *")(function_in(module))
        (one,) = jobs(module)
        broker, tick = dramatiq.get_broker(), at("2026-01-01T03:00")
        first, again = (message_of(broker, one, tick) for _ in range(2))
        other = message_of(broker, one, tick + timedelta(days=1))
        by_hand = message_of(broker, one, None)
        assert first.message_id == again.message_id
        assert len({first.message_id, other.message_id, by_hand.message_id}) == 3
        assert "scheduled_for" not in by_hand.options

    def test_a_job_knows_for_when_it_is(self, module: str, stub_broker: TestBroker, stub_worker: Worker) -> None:
        routing.register(module, "llm")
        seen: list[datetime | None] = []

        def work(n: int) -> None:
            seen.append(scheduled_for())

        work.__module__ = module
        routing.actor(tenant_scoped=False, schedule=Schedule("0 3 * * *", BERLIN, kwargs={"n": 1}))(work)
        (one,) = jobs(module)
        for tick in (at("2026-01-01T02:00"), None):
            stub_broker.enqueue(message_of(stub_broker, one, tick))
            stub_broker.join("llm", fail_fast=True)
            stub_worker.join()
        assert seen == [at("2026-01-01T02:00"), None]
        assert scheduled_for() is None


class Away:
    """A state that cannot be asked."""

    def look(self, *_: Any, **__: Any) -> Any:
        raise ConnectionClosed("Redis: gone")


def test_redis_away_is_said_once_a_minute() -> None:
    broker = make_broker(Settings.load({"DATABASE_URL": "postgres://h/x", "REDIS_URL": "redis://127.0.0.1:1"}))
    assert isinstance(broker, LosslessBroker)
    now, lines = [0.0], list[str]()

    def wait(seconds: float) -> bool:
        now[0] += seconds
        return now[0] >= 3 * ALARM_EVERY

    handler = logger.add(lambda line: lines.append(str(line)), format="{message}")
    try:
        state: Any = Away()
        Scheduler(broker, [], state, {"name": "one"}, wait, clock=lambda: now[0]).run()
    finally:
        logger.remove(handler)
    assert [line.strip() for line in lines] == [
        f"nothing is scheduled, for {seconds} s by now: Redis: gone" for seconds in (0, 60, 120)
    ]


def test_told_to_stop_before_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a host that changes its mind: no traceback, and no other status."""
    broker = make_broker(Settings.load({"DATABASE_URL": "postgres://h/x", "REDIS_URL": "redis://127.0.0.1:1"}))
    assert isinstance(broker, LosslessBroker)
    left: list[object] = []
    monkeypatch.setattr("worker.scheduler.serving.signal.signal", lambda *_: None)
    monkeypatch.setattr(serving, "configure_process", lambda *_: None)
    monkeypatch.setattr(serving, "_introduce", lambda _: serving._stop(15, None))
    monkeypatch.setattr(serving, "_leave", lambda *said: left.append(said))
    serving.serve(Settings.load({"REDIS_URL": "stub://"}), broker, ())
    assert len(left) == 1
