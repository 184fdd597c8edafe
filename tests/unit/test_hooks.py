from __future__ import annotations

from typing import Any

from dramatiq.middleware import Middleware

from middleware.hooks import BeforeEnqueue, Hooks


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


class Ours(BeforeEnqueue):
    def before_enqueue_many(self, broker: Any, messages: Any, delay: Any) -> None: ...


class Heir(Ours):
    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None: ...


class Anybodys(Middleware):
    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None: ...


def test_those_that_come_first_and_can_be_are_given_many_messages_at_once() -> None:
    first, second, theirs, third = Ours(), Ours(), Anybodys(), Ours()
    hooks = Hooks()
    assert hooks.before_enqueue([first, Acks(), second]) == ([first, second], [])
    assert hooks.before_enqueue([first, second, theirs, third]) == ([first, second], [theirs, third])
    assert hooks.before_enqueue([theirs, first]) == ([], [theirs, first])


def test_who_inherits_and_does_it_otherwise_is_given_one_after_the_other() -> None:
    patched, heir = Ours(), Heir()
    patched.before_enqueue = lambda broker, message, delay: None  # type: ignore[method-assign]
    assert Hooks().before_enqueue([heir]) == ([], [heir])
    assert Hooks().before_enqueue([patched]) == ([], [patched])
