"""Carries the tenant from sender to job, in the message's options, and tells ``db`` which message a job is.

At ``send()`` it is taken from ``send_with_options(tenant_id=...)``, from a ``tenant_id`` keyword argument, or from the
enclosing ``tenant_context``. It is bound while the actor runs, and again while the message is acknowledged or rejected,
where retries and dead letters do their work; afterwards nothing is bound.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final
from uuid import UUID, uuid5

from dramatiq import Broker, Message, MessageProxy
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import MiddlewareError

from db import current_message, open_transaction
from db.current_message import Execution
from db.errors import InvalidTenant
from db.tenancy import Tenancy, bind, current_tenancy, is_canonical, parse_uuid, text_of
from middleware.deliveries import Delivery
from middleware.dramatiq_internals import sent_by_somebody
from middleware.errors import SendRefused, TenantError, TenantNotGiven, TenantNotValid
from middleware.hooks import BeforeEnqueue
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


class TenantContext(BeforeEnqueue):
    """Binds every job to its tenant. First in the list, so that all other middleware works inside the binding.

    Actors are tenant-scoped unless declared with ``tenant_scoped=False``.

    Raises (from ``send()``):
      TenantNotGiven: When the actor is tenant-scoped and there is no tenant.
      TenantNotValid: When a tenant or correlation id is no UUID, or two different ones are given.
    """

    @property
    def actor_options(self) -> set[str]:
        return {"tenant_scoped"}

    def before_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        ambient = current_tenancy() or Tenancy(None)
        for message in sent_by_somebody(messages):
            try:
                args, kwargs = _address(
                    broker,
                    message.actor_name,
                    message.message_id,
                    message.args,
                    message.kwargs,
                    message.options,
                    ambient,
                )
            except MiddlewareError:
                raise
            except Exception as e:
                # Dramatiq would log this and send the message as it is.
                raise SendRefused(f"message for actor {message.actor_name!r} cannot be prepared: {e!r}") from e
            # Messages are frozen, but this one is ours until it is encoded, and its options are. The caller's
            # arguments are left alone: the same message may be sent again.
            if args is not message.args:
                object.__setattr__(message, "args", args)
            if kwargs is not message.kwargs:
                object.__setattr__(message, "kwargs", kwargs)

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


#: What JSON has of its own, but for what is made of it.
_ATOMS: Final = frozenset({str, int, float, bool, type(None)})


def _address(
    broker: Broker,
    actor_name: str,
    message_id: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    ambient: Tenancy,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Fill in the tenant and correlation id of a message about to be sent, and of those that are to follow it.

    Returns its arguments as they are to be sent, and changes its ``options``.
    """
    actor = broker.actors.get(actor_name)
    scoped = None if actor is None else bool(actor.options.get("tenant_scoped", True))
    tenant_id, kwargs = _tenant_to_send(broker, actor_name, kwargs, options, ambient, scoped)
    correlation_id = _correlation_to_send(actor_name, message_id, options, ambient)
    if not _ATOMS.issuperset(map(type, args)):
        args = tuple(_plain(a) for a in args)
    if kwargs and not _ATOMS.issuperset(map(type, kwargs.values())):
        kwargs = {name: _plain(value) for name, value in kwargs.items()}
    if not _ATOMS.issuperset(map(type, options.values())):
        options |= {name: _plain(value) for name, value in options.items()}
    options["correlation_id"] = correlation_id
    if tenant_id is not None:
        options["tenant_id"] = text_of(tenant_id)
    if "pipe_target" in options or "group_completion_callbacks" in options:
        _address_follow_ups(broker, options, Tenancy(tenant_id or ambient.tenant_id, UUID(correlation_id)))
    return args, kwargs


def _correlation_to_send(actor_name: str, message_id: str, options: Mapping[str, Any], ambient: Tenancy) -> str:
    given = options.get("correlation_id")
    if given is not None:
        try:
            return str(parse_uuid("correlation_id", given))
        except InvalidTenant as e:
            raise TenantNotValid(f"message for actor {actor_name!r}: {e}") from None
    if ambient.correlation_id is not None:
        return text_of(ambient.correlation_id)
    return message_id if is_canonical(message_id) else str(correlation_of({}, message_id))


def _address_follow_ups(broker: Broker, options: dict[str, Any], inherited: Tenancy) -> None:
    # Checked now: once the parent has run it is too late to tell the sender.
    target = options.get("pipe_target")
    if isinstance(target, dict):
        options["pipe_target"] = _address_follow_up(broker, target, inherited)
    callbacks = options.get("group_completion_callbacks")
    if isinstance(callbacks, list):
        options["group_completion_callbacks"] = [_address_follow_up(broker, c, inherited) for c in callbacks]


def _address_follow_up(broker: Broker, target: dict[str, Any], ambient: Tenancy) -> dict[str, Any]:
    options = dict(target.get("options") or {})
    args, kwargs = _address(
        broker,
        str(target.get("actor_name")),
        str(target.get("message_id")),
        tuple(target.get("args") or ()),
        dict(target.get("kwargs") or {}),
        options,
        ambient,
    )
    return {**target, "args": args, "kwargs": kwargs, "options": options}


def _tenant_to_send(
    broker: Broker,
    actor_name: str,
    kwargs: dict[str, Any],
    options: Mapping[str, Any],
    ambient: Tenancy,
    scoped: bool | None,
) -> tuple[UUID | None, dict[str, Any]]:
    """Return the tenant of a message that is sent, and its keyword arguments without that, where it is moved."""
    if ambient.tenant_id is not None and scoped is not False and not ("tenant_id" in options or "tenant_id" in kwargs):
        # As most are sent.
        return ambient.tenant_id, kwargs
    given: dict[str, UUID] = {}
    try:
        if options.get("tenant_id") is not None:
            given["tenant_id="] = parse_uuid("tenant_id", options["tenant_id"])
        if scoped is not None and kwargs.get("tenant_id") is not None:
            given["the argument tenant_id"] = parse_uuid("tenant_id", kwargs["tenant_id"])
    except InvalidTenant as e:
        raise TenantNotValid(f"message for actor {actor_name!r}: {e}") from None
    if scoped is not None and "tenant_id" in kwargs and not _takes_tenant_id(broker, actor_name):
        kwargs = {name: value for name, value in kwargs.items() if name != "tenant_id"}
    if ambient.tenant_id is not None and (scoped is not False or given):
        given["the enclosing tenant_context"] = ambient.tenant_id
    if len(given) > 1 and len(set(given.values())) > 1:
        differing = ", ".join(f"{where} {tenant_id}" for where, tenant_id in given.items())
        raise TenantNotValid(f"message for actor {actor_name!r} is given different tenants: {differing}")
    if scoped and not given:
        raise TenantNotGiven(
            f"actor {actor_name!r} is tenant-scoped and no tenant is given: send inside tenant_context(tenant_id), or "
            "with send_with_options(tenant_id=...), or declare the actor with tenant_scoped=False"
        )
    return next(iter(given.values()), None), kwargs


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
