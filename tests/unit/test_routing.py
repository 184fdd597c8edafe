"""The criteria A of the evidence document, each with its case of concurrency, and what routing refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any

import dramatiq
import pytest

from middleware.errors import UndeclaredQueue
from worker import routing
from worker.attribution import recompute_window
from worker.broker import broker
from worker.housekeeping import ping
from worker.llm import describe_window
from worker.maintenance import verify_window
from worker.queues import Queue
from worker.routing import RoutingError, queues_of, register


@pytest.fixture
def module() -> Iterator[str]:
    """A module name that nobody has routed, forgotten again afterwards."""
    name = f"myapp_{uuid.uuid4().hex}.emails"
    before, actors = dict(routing._routes), dict(broker.actors)
    yield name
    routing._routes.clear()
    routing._routes.update(before)
    broker.actors.clear()
    broker.actors.update(actors)


def function_in(module: str, name: str = "job") -> Callable[..., Any]:
    made = FunctionType((lambda: None).__code__, {}, name)
    made.__module__ = module
    return made


def in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"REDIS_URL": "stub://", "PYTHONPATH": ":".join(sys.path), **environment},
        check=False,
    )


class TestAttributionQueueDeclared:
    def test_the_four_queues_are_declared(self) -> None:
        assert {"attribution", "llm", "maintenance", "housekeeping"} <= broker.get_declared_queues()
        assert [q.value for q in Queue] == ["attribution", "llm", "maintenance", "housekeeping"]

    def test_by_whatever_thread_imports_first(self) -> None:
        # All threads import different modules of ours at once, in a process that has none yet.
        code = """
            import importlib, threading
            names = ["worker.attribution", "worker.llm", "worker.maintenance", "worker.housekeeping", "worker.broker"]
            barrier = threading.Barrier(len(names))
            def load(name):
                barrier.wait()
                importlib.import_module(name)
            threads = [threading.Thread(target=load, args=(n,)) for n in names]
            [t.start() for t in threads]; [t.join() for t in threads]
            from worker.broker import broker
            print(sorted(q for q in broker.get_declared_queues() if not q.endswith(".DQ")), sorted(broker.actors))
        """
        done = in_a_new_process(code)
        assert done.stdout.strip() == (
            "['attribution', 'housekeeping', 'llm', 'maintenance'] ['worker.attribution.follow_run', "
            "'worker.attribution.recompute_day', 'worker.attribution.recompute_window', "
            "'worker.housekeeping.deliver_alert', 'worker.housekeeping.look_for_alerts', 'worker.housekeeping.ping', "
            "'worker.housekeeping.sample_queues', 'worker.housekeeping.send_heartbeat', 'worker.llm.describe_window', "
            "'worker.llm.explain_window', 'worker.maintenance.adopt_dead_letters', "
            "'worker.maintenance.apply_retention', 'worker.maintenance.verify_window', 'worker.probe']"
        ), done.stderr


class TestRoutingRuleDefined:
    @pytest.mark.parametrize("queue", list(Queue))
    def test_a_module_goes_to_the_queue_of_its_name(self, queue: Queue) -> None:
        assert routing.queue_of(f"worker.{queue.value}") == queue.value
        assert routing.queue_of(f"worker.{queue.value}.more") == queue.value

    def test_actors_are_where_their_modules_are_routed(self) -> None:
        routed = {a.actor_name: a.queue_name for a in (recompute_window, ping, describe_window, verify_window)}
        assert routed == {
            "worker.attribution.recompute_window": "attribution",
            "worker.housekeeping.ping": "housekeeping",
            "worker.llm.describe_window": "llm",
            "worker.maintenance.verify_window": "maintenance",
        }

    def test_many_threads_routing_one_module_agree(self, module: str) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: register(module, "llm"), range(64)))
        assert routing.queue_of(module) == "llm"

    def test_a_module_has_one_queue(self, module: str) -> None:
        register(module, "llm")
        with pytest.raises(RoutingError, match=r"emails' to 'maintenance': it goes to 'llm' already"):
            register(module, "maintenance")


class TestActorRegistered:
    def test_under_the_name_of_its_module(self) -> None:
        assert broker.get_actor("worker.attribution.recompute_window") is recompute_window

    def test_under_the_same_name_in_every_process_also_the_main_one(self) -> None:
        # As `python -m worker.attribution` runs it: __name__ is "__main__" there.
        code = """
            import runpy, sys
            sys.argv = ["worker.attribution"]
            runpy.run_module("worker.attribution", run_name="__main__", alter_sys=True)
            from worker.broker import broker
            print(sorted(broker.actors))
        """
        done = in_a_new_process(code)
        assert done.stdout.strip() == (
            "['worker.attribution.follow_run', 'worker.attribution.recompute_day', "
            "'worker.attribution.recompute_window', 'worker.probe']"
        ), done.stderr

    def test_one_of_many_threads_gets_a_name_and_the_others_are_told(self, module: str) -> None:
        register(module, "llm")

        def declare(_: int) -> str:
            try:
                return routing.actor(function_in(module)).actor_name
            except RoutingError as e:
                return str(e)

        with ThreadPoolExecutor(16) as pool:
            outcomes = list(pool.map(declare, range(32)))
        assert outcomes.count(f"{module}.job") == 1
        assert sum(f"actor '{module}.job' is declared already" in o for o in outcomes) == 31


class TestRoutingKeyDeterministic:
    @pytest.mark.parametrize("queue", list(Queue))
    def test_it_follows_from_the_queue(self, queue: Queue) -> None:
        assert queue.routing_key == f"{queue.value}.task"

    def test_from_every_thread(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            keys = set(pool.map(lambda _: Queue(recompute_window.queue_name).routing_key, range(256)))
        assert keys == {"attribution.task"}


class TestRefused:
    def test_a_module_without_a_route(self, module: str) -> None:
        with pytest.raises(RoutingError, match=f"actor '{module}.job': module '{module}' has no queue"):
            routing.actor(function_in(module))

    def test_an_unknown_queue(self, module: str) -> None:
        with pytest.raises(UndeclaredQueue, match=f"actor '{module}.job' is on queue 'atribution', which is not decl"):
            routing.actor(queue_name="atribution")(function_in(module))

    def test_dramatiqs_default_queue_for_a_plain_actor(self, module: str) -> None:
        with pytest.raises(UndeclaredQueue, match="queue 'default'"):
            dramatiq.actor(broker=broker, actor_name=module)(function_in(module))
        assert module not in broker.actors

    def test_a_bad_queue_name(self, module: str) -> None:
        with pytest.raises(RoutingError, match="'a b' is not a queue name"):
            register(module, "a b")

    def test_a_message_for_an_undeclared_queue(self) -> None:
        from worker.broker import make_broker
        from worker.settings import Settings

        # On Redis, where stock Dramatiq takes it and nobody ever consumes it; refused before anything is sent, so the
        # port may be one where no server listens.
        settings = Settings.load({"DATABASE_URL": "postgres://h/x", "REDIS_URL": "redis://127.0.0.1:1"})
        on_redis = make_broker(settings)
        message: dramatiq.Message[None] = dramatiq.Message("atribution", "worker.attribution.x", (), {}, {})
        with pytest.raises(UndeclaredQueue, match="'atribution', which is not declared; known: attribution"):
            on_redis.enqueue(message)
        with pytest.raises(dramatiq.QueueNotFound):
            on_redis.enqueue(message, delay=10)


class TestAnApplicationsOwn:
    def test_a_registered_queue_is_declared_and_its_modules_actors_are_on_it(self, module: str) -> None:
        register(module.rpartition(".")[0], "emails")
        declared = routing.actor(function_in(module))
        assert (declared.queue_name, declared.actor_name) == ("emails", f"{module}.job")
        assert "emails" in broker.get_declared_queues()

    def test_extra_queues_are_declared(self) -> None:
        code = """
            import dramatiq
            from worker.broker import broker
            @dramatiq.actor(queue_name="reports", tenant_scoped=False)
            def report(): pass
            print(report.broker is broker, "reports" in broker.get_declared_queues())
        """
        done = in_a_new_process(code, EXTRA_QUEUES="emails, reports")
        assert done.stdout.strip() == "True True", done.stderr


class TestConsumedQueues:
    @pytest.mark.parametrize("queue", list(Queue))
    def test_a_module_on_the_command_line_consumes_its_own_queue(self, queue: Queue) -> None:
        assert queues_of([f"worker.{queue.value}"]) == {queue.value}

    def test_two_modules_consume_both(self) -> None:
        assert queues_of(["worker.llm", "worker.maintenance"]) == {"llm", "maintenance"}

    def test_a_module_without_a_route_consumes_all(self) -> None:
        assert queues_of(["worker.llm", "myapp.everything"]) is None
