"""Carries the tenant from sender to job, in the message's options, and tells ``db`` which message a job is.

At ``send()`` it is taken from ``send_with_options(tenant_id=...)``, from a ``tenant_id`` keyword argument, or from the
enclosing ``tenant_context``. It is bound while the actor runs, and again while the message is acknowledged or rejected,
where retries and dead letters do their work; afterwards nothing is bound.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID, uuid5

from dramatiq import Broker, Message, MessageProxy
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import Middleware, MiddlewareError

from db import current_message, open_transaction
from db.current_message import Execution
from db.errors import InvalidTenant
from db.tenancy import Tenancy, bind, current_tenancy, parse_uuid
from middleware.deliveries import Delivery
from middleware.dramatiq_internals import is_dramatiqs_own_enqueue
from middleware.errors import SendRefused, TenantError, TenantNotGiven, TenantNotValid
from middleware.signatures import parameters_of

#: Makes correlation ids of message ids that are no UUIDs.
CORRELATION_NAMESPACE = UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


def correlation_of(options: Mapping[str, Any], message_id: object) -> UUID:
    """Return a message's correlation id: its own, else its message id, either as UUID or made one."""
    for value in (options.get("correlation_id"), message_id):
        if value is None:
            continue
        try:
            return parse_uuid("correlation_id", value)
        except InvalidTenant:
            # UUIDs are made of bytes: a lone surrogate, which JSON may hold, must not stop us.
            return uuid5(CORRELATION_NAMESPACE, str(value).encode("utf-8", "backslashreplace").decode())
    return uuid5(CORRELATION_NAMESPACE, "")


@dataclass(slots=True)
class _Parts:
    """What of a message this middleware may change, before it is encoded."""

    actor_name: str
    message_id: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


class TenantContext(Middleware):
    """Binds every job to its tenant. First in the list, so that all other middleware works inside the binding.

    Actors are tenant-scoped unless declared with ``tenant_scoped=False``.

    Raises (from ``send()``):
      TenantNotGiven: When the actor is tenant-scoped and there is no tenant.
      TenantNotValid: When a tenant or correlation id is no UUID, or two different ones are given.
    """

    @property
    def actor_options(self) -> set[str]:
        return {"tenant_scoped"}

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if is_dramatiqs_own_enqueue(message):
            return
        parts = _Parts(message.actor_name, message.message_id, message.args, message.kwargs, message.options)
        try:
            _address(broker, parts, current_tenancy() or Tenancy(None))
        except MiddlewareError:
            raise
        except Exception as e:
            # Dramatiq would log this and send the message as it is.
            raise SendRefused(f"message for actor {message.actor_name!r} cannot be prepared: {e!r}") from e
        # Messages are frozen, but this one is ours until it is encoded. The caller's dicts are left alone: the same
        # message may be sent again.
        object.__setattr__(message, "args", parts.args)
        object.__setattr__(message, "kwargs", parts.kwargs)
        message.options.update(parts.options)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        try:
            arrived = _arrived(broker, message)
            bind(arrived)
            if isinstance(message, Delivery):
                message.tenancy = arrived
            current_message.bind(Execution(message.message_id))
            # A job that went before it in this thread may have left one open.
            open_transaction.forget()
        except BaseException as e:
            # Whatever it was, this message must not run: not without its tenant, still less with another's.
            message.fail()
            bind(_no_tenant(message))
            current_message.bind(None)
            if isinstance(e, MiddlewareError) or not isinstance(e, Exception):
                raise
            raise TenantError(f"the tenant of the message could not be read: {e!r}") from e

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        _unbind()

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        _unbind()

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._bind_again(broker, message)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._bind_again(broker, message)

    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        _unbind()

    #: See :class:`middleware.failure_endings.FailureEndings`.
    tidies_after_nack = True

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        _unbind()

    def _bind_again(self, broker: Broker, message: MessageProxy) -> None:
        if isinstance(message, Delivery) and message.tenancy is not None:
            bind(message.tenancy)
            return
        try:
            bind(_arrived(broker, message))
        except Exception:  # noqa: BLE001 - it was refused, or its actor is unknown: it belongs to whom it names
            bind(_named_tenant(message))


def _unbind() -> None:
    bind(None)
    current_message.bind(None)


def _scoped(broker: Broker, actor_name: str) -> bool | None:
    """Tell whether the actor is tenant-scoped; ``None`` where it is not known in this process."""
    try:
        return bool(broker.get_actor(actor_name).options.get("tenant_scoped", True))
    except ActorNotFound:
        return None


def _arrived(broker: Broker, message: MessageProxy) -> Tenancy:
    """Return the binding of a message that arrived.

    Raises:
      TenantError: When its tenant is missing though its actor is tenant-scoped, or is no UUID.
    """
    tenant_id = message.options.get("tenant_id")
    correlation_id = correlation_of(message.options, message.message_id)
    if tenant_id is None:
        if _scoped(broker, message.actor_name) is not False:
            raise TenantError(f"actor {message.actor_name!r} is tenant-scoped and the message has no tenant_id")
        return Tenancy(None, correlation_id)
    try:
        return Tenancy(parse_uuid("the message's tenant_id", tenant_id), correlation_id)
    except InvalidTenant as e:
        raise TenantError(str(e)) from None


def _no_tenant(message: MessageProxy) -> Tenancy:
    return Tenancy(None, correlation_of(message.options, message.message_id))


def _named_tenant(message: MessageProxy) -> Tenancy:
    """Return the binding of a message that does not run: the tenant it names, if that is one."""
    try:
        tenant_id = parse_uuid("tenant_id", message.options.get("tenant_id"))
    except Exception:  # noqa: BLE001 - whatever it was, the binding before this one must not stay
        return _no_tenant(message)
    return Tenancy(tenant_id, correlation_of(message.options, message.message_id))


def _address(broker: Broker, parts: _Parts, ambient: Tenancy) -> None:
    """Fill in the tenant and correlation id of a message about to be sent, and of those that are to follow it."""
    scoped = _scoped(broker, parts.actor_name)
    tenant_id = _tenant_to_send(broker, parts, ambient, scoped)
    correlation_id = parts.options.get("correlation_id")
    if correlation_id is not None:
        try:
            correlation_id = parse_uuid("correlation_id", correlation_id)
        except InvalidTenant as e:
            raise TenantNotValid(f"message for actor {parts.actor_name!r}: {e}") from None
    else:
        correlation_id = ambient.correlation_id or correlation_of({}, parts.message_id)
    parts.args = tuple(_plain(a) for a in parts.args)
    parts.kwargs = {name: _plain(value) for name, value in parts.kwargs.items()}
    parts.options = {name: _plain(value) for name, value in parts.options.items()}
    parts.options["correlation_id"] = str(correlation_id)
    if tenant_id is not None:
        parts.options["tenant_id"] = str(tenant_id)
    # Checked now: once the parent has run it is too late to tell the sender.
    inherited = Tenancy(tenant_id or ambient.tenant_id, correlation_id)
    target = parts.options.get("pipe_target")
    if isinstance(target, dict):
        parts.options["pipe_target"] = _address_follow_up(broker, target, inherited)
    callbacks = parts.options.get("group_completion_callbacks")
    if isinstance(callbacks, list):
        parts.options["group_completion_callbacks"] = [_address_follow_up(broker, c, inherited) for c in callbacks]


def _address_follow_up(broker: Broker, target: dict[str, Any], ambient: Tenancy) -> dict[str, Any]:
    parts = _Parts(
        actor_name=str(target.get("actor_name")),
        message_id=str(target.get("message_id")),
        args=tuple(target.get("args") or ()),
        kwargs=dict(target.get("kwargs") or {}),
        options=dict(target.get("options") or {}),
    )
    _address(broker, parts, ambient)
    return {**target, "args": parts.args, "kwargs": parts.kwargs, "options": parts.options}


def _tenant_to_send(broker: Broker, parts: _Parts, ambient: Tenancy, scoped: bool | None) -> UUID | None:
    given: dict[str, UUID] = {}
    try:
        if parts.options.get("tenant_id") is not None:
            given["tenant_id="] = parse_uuid("tenant_id", parts.options["tenant_id"])
        if scoped is not None and parts.kwargs.get("tenant_id") is not None:
            given["the argument tenant_id"] = parse_uuid("tenant_id", parts.kwargs["tenant_id"])
    except InvalidTenant as e:
        raise TenantNotValid(f"message for actor {parts.actor_name!r}: {e}") from None
    if scoped is not None and "tenant_id" in parts.kwargs and not _takes_tenant_id(broker, parts.actor_name):
        parts.kwargs = {name: value for name, value in parts.kwargs.items() if name != "tenant_id"}
    if ambient.tenant_id is not None and (scoped is not False or given):
        given["the enclosing tenant_context"] = ambient.tenant_id
    if len(set(given.values())) > 1:
        differing = ", ".join(f"{where} {tenant_id}" for where, tenant_id in given.items())
        raise TenantNotValid(f"message for actor {parts.actor_name!r} is given different tenants: {differing}")
    if not given:
        if scoped:
            raise TenantNotGiven(
                f"actor {parts.actor_name!r} is tenant-scoped and no tenant is given: send inside "
                "tenant_context(tenant_id), or with send_with_options(tenant_id=...), or declare the actor with "
                "tenant_scoped=False"
            )
        return None
    return next(iter(given.values()))


def _takes_tenant_id(broker: Broker, actor_name: str) -> bool:
    parameters = parameters_of(broker, actor_name)
    if parameters is None:
        return True
    return "tenant_id" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _plain(value: Any) -> Any:
    """Return ``value`` with UUIDs and times in it as ISO strings, which is how the actor will get them."""
    match value:
        case UUID():
            return str(value)
        case date():  # a datetime is one, too
            return value.isoformat()
        case dict():
            return {str(k) if isinstance(k, UUID) else k: _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case _:
            return value
