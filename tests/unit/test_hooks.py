from __future__ import annotations

from typing import Any

from dramatiq.middleware import Middleware

from middleware.hooks import Hooks


class Acks(Middleware):
    def before_ack(self, broker: Any, message: Any) -> None: ...


class Nacks(Middleware):
    def before_nack(self, broker: Any, message: Any) -> None: ...


class AcksToo(Acks):
    pass


def test_only_those_with_a_hook_of_their_own_in_order() -> None:
    first, second, third = AcksToo(), Nacks(), Acks()
    assert Hooks().of([first, second, third], "before_ack") == [first, third]
    assert Hooks().of([first, second, third], "before_nack") == [second]
    assert Hooks().of([first, second, third], "after_ack") == []


def test_a_hook_may_be_the_objects_alone() -> None:
    one = Middleware()
    one.before_ack = lambda broker, message: None  # type: ignore[method-assign]
    assert Hooks().of([one, Middleware()], "before_ack") == [one]


def test_a_change_of_the_list_is_noticed() -> None:
    hooks = Hooks()
    middleware: list[Middleware] = [Acks()]
    assert hooks.of(middleware, "before_ack") == middleware
    middleware.insert(0, Acks())
    assert hooks.of(middleware, "before_ack") == middleware
    middleware[1] = Acks()
    assert hooks.of(middleware, "before_ack") == middleware
    del middleware[0]
    assert hooks.of(middleware, "before_ack") == middleware
