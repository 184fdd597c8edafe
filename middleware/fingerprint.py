"""Tells whether two failures are the same one: what failed, where in the application's own code, and with which words.

Nothing goes in that a new release, another host or another customer's values would change: no line numbers, no folders,
no local variables, no code of libraries. The parts, in this order:

- The actor.
- The exception's class; for Postgres' errors the SQLSTATE and the constraint, for the system's the ``errno``, for an
  HTTP client's the status.
- The functions of the application's own code that were running, by module and qualified name, outermost first. Loops
  are taken out, so the depth of a recursion does not matter. The application's own is what lies neither in the standard
  library nor among installed packages, and whatever is in the package that the actor's name begins with, be it
  installed. Where there is none, it is the package that was called first; where there is none of that either, the
  innermost function, or nothing for an exception of Dramatiq's or ours, which says it all by its class.
- The message, its values taken out by :func:`normalise`, **where the application's own code raised it** (or called what
  is written in C and did), or where there is no frame of the application's own. Two messages from one validation helper
  are two failures. What a library raises is known by class and place: its words change from release to release and
  quote whatever a server answered. What carries a SQLSTATE has no message, except P0001, which is the words of a
  function of the application's own in the database. Of what is no message to run it is the kind of its problem.
- The same of what caused it, as far as ``raise ... from`` says so. What was merely being handled counts where the very
  function that handled it raised, directly: a translation that forgot its ``from``. Where code called by a handler
  fails, what it was called for would tear one failure into several.
- Of a group the set of its leaves.

A time limit and a shutdown strike wherever the job is, so they have neither frames nor message; a RecursionError does
so within the loop, so the loop's functions are a set, and it has no message.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import sysconfig
from collections import Counter, deque
from functools import lru_cache
from itertools import islice
from types import FrameType, TracebackType
from typing import Final, NamedTuple

from dramatiq.middleware import Interrupt

from middleware.late_patterns import LatePattern
from middleware.message_checks import InvalidMessage
from middleware.text import clean, cut, message_of, name_of

#: Part of what is hashed: another number, and every group begins anew.
VERSION: Final = 1

#: Characters of a message that are looked at, and those that are kept of its first line.
MESSAGE_READ: Final = 4_096
MESSAGE_KEPT: Final = 200
#: Characters of one part, where it is a name.
NAME_KEPT: Final = 300
#: Frames of either end of a traceback that are looked at, and those that are kept of either end.
FRAMES_READ: Final = 1_000
FRAMES_KEPT: Final = 25
#: Exceptions of a chain that are looked at, and those that are kept.
CHAIN_READ: Final = 100
CHAIN_KEPT: Final = 10
#: Members of a group that are looked at, and those that are kept.
MEMBERS_READ: Final = 100
MEMBERS_KEPT: Final = 10

#: Stands for a value in a normalised message.
VALUE: Final = "*"

# Each is linear in the text: it begins only where nothing before belongs to it, and what follows a repetition cannot be
# its beginning, or may be missing, or the repetition is bounded.
_VALUE = LatePattern(
    r"""
      (?<![a-zA-Z0-9+.-]) [a-zA-Z][a-zA-Z0-9+.-]{0,30}:// [^\s'"<>)\]},;]*                 # URL
    | (?<!\w) [bBrRuUfF]{0,2} ' (?: \\. | [^'\\] | '(?=\w) )* '?                           # quoted, to the end if open
    | (?<!\w) [bBrRuUfF]{0,2} " (?: \\. | [^"\\] )* "?
    | [`\u2018\u201a\u201c\u201e\xab] [^`\u2018\u2019\u201c\u201d\xbb]* [`\u2018\u2019\u201c\u201d\xbb]?
    | (?<![\w.+-]) [\w.+-]{1,64} @ [\w-]{1,63} (?: \.[\w-]{1,63} ){1,8}                    # e-mail address
    | (?<![^\W_]) [0-9a-fA-F]{8} (?: -[0-9a-fA-F]{4} ){3} -[0-9a-fA-F]{12} (?![^\W_])      # uuid
    | (?<![^\W_]) [0-9a-fA-F]{16,} (?![^\W_])
    | (?<![\w+/=-]) (?: [A-Za-z0-9+/]{40,}={0,2} | [\w-]{60,} )                            # base64, tokens
    | (?<![\w:]) (?: [0-9a-fA-F]{0,4}: ){2,7} [0-9a-fA-F]{0,4} (?![\w:])                   # IPv6 address
    | (?<!\w) [A-Za-z]:[\\/] [^\s'"<>|:]* | (?<![\w\\]) \\\\ [^\s'"<>|:]+                  # paths
    | (?<![\w.*/-]) ~? (?: /+[\w.@%+~=-]+ )+ /*
    | (?<![\w./@*-]) (?: \.\.?/ | [\w.-]{1,100}/[\w.-]{1,100}/ ) [\w.@%+~=/-]*
    | (?<![\w.-]) [\w.-]{1,100} \. (?: csv|tsv|jsonl?|xml|ya?ml|txt|log|pdf|xlsx?|docx?|parquet|avro|zip|gz|tar
                                     | png|jpe?g|html?|py|sql|tmp|bak|dat|bin ) (?!\w)
    | (?: (?<![\w*)\]]) [-+] (?=\d) )? (?<![^\W_]) [^\W\d_]* \d [^\W_]*                    # any word with a digit
    """,
    re.VERBOSE,
)
# Values side by side are one, with the brackets around them: lists and objects of any length and shape.
_VALUES = LatePattern(
    r"[\[{(]{0,6}\*(?:[-\s.:,;+/=|&_\[\]{}()]{0,4}(?:\*|(?<!\w)(?:None|True|False|null|true|false)(?!\w)))*[\]})]{0,6}"
)
#: Python 3.12 runs comprehensions in their functions, and leaves them out of the names of what is defined there.
_COMPREHENSION = re.compile(r"((?:\.<locals>)?)(?:\.?<(?:listcomp|dictcomp|setcomp|genexpr)>(?:\.<locals>)?)+(?=(\.?))")
#: Postgres' partitions carry a date or a number in their constraints' names.
_PARTITION = LatePattern(r"\d{4,}(?:_\d{1,2}(?!\d))*")

#: Packages whose frames say how a job was run. ``worker`` holds actors, too: theirs count by their names.
_PLUMBING_PACKAGES: Final = {"dramatiq", "middleware", "db", "worker"}
_NEVER_OWN: Final = {"dramatiq", "middleware", "db"}
_INSTALLED_FOLDERS: Final = re.compile(r"[/\\](?:site-packages|dist-packages|installed_wheels)[/\\]")
_STANDARD_LIBRARY: Final = tuple(
    f"{folder}{os.sep}"
    for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    for folder in {path, os.path.realpath(path)}
)

#: Where a frame's code is from.
_OWN, _INSTALLED, _PLUMBING = range(3)


class _Frame(NamedTuple):
    text: str
    origin: int
    #: The top-level package.
    package: str


def fingerprint(actor_name: str, error: BaseException | None) -> str:
    """Return what failures of one cause have in common, as 32 hexadecimal characters. Never raises."""
    return _digest(_parts(actor_name, error))


def fingerprint_of_text(actor_name: str, exception_class: str, message: str) -> str:
    """Return what :func:`fingerprint` returns for an exception that was never raised, of which only this is known."""
    parts = [f"actor: {actor_name[:NAME_KEPT]}", f"exception: {cut(exception_class, NAME_KEPT)}"]
    text = normalise(message)
    return _digest([*parts, f"message: {text}"] if text else parts)


def place(actor_name: str, error: BaseException | None) -> str | None:
    """Return the innermost function of the application's own code that ``error`` came through, as ``module:function``.

    ``None`` where it came through none. Never raises.
    """
    try:
        package = actor_name.partition(".")[0]
        frames = reversed(_frames(error.__traceback__)) if error is not None else ()
        return next((clean(frame.text) for frame in frames if _is_own(frame, package)), None)
    except BaseException:  # noqa: BLE001 - a user's exception may raise anything
        return None


def explain(actor_name: str, error: BaseException | None) -> list[str]:
    """Return the parts of which :func:`fingerprint` is made, as ``name: value``, for people. Never raises."""
    return [clean(part) for part in _parts(actor_name, error)]


def normalise(text: str) -> str:
    """Return the first line of ``text`` that says something, with ``*`` for its values, and at most 200 characters.

    Values are what is quoted, words with a digit in them (numbers, dates, ids, addresses in memory), uuids, URLs,
    e-mail and network addresses, paths and names of files, and lists and objects of such. Names without quotes stay.
    """
    head = str.__getitem__(text, slice(0, MESSAGE_READ))
    return _without_values(next((line for line in head.splitlines() if line and not line.isspace()), ""))


# Of a failure it is asked twice, for its fingerprint and for its title.
@lru_cache(maxsize=64)
def _without_values(line: str) -> str:
    line = _VALUES.sub(VALUE, _VALUE.sub(VALUE, line))
    return " ".join(line.split())[:MESSAGE_KEPT]


def _digest(parts: list[str]) -> str:
    text = "\0".join([f"dramaturg.fingerprint.{VERSION}", *parts])
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _parts(actor_name: str, error: BaseException | None) -> list[str]:
    actor = str.__getitem__(actor_name, slice(0, NAME_KEPT)) if isinstance(actor_name, str) else "(no name)"
    parts = [f"actor: {actor}"]
    if error is None:
        return [*parts, "no exception"]
    try:
        return parts + _story(error, actor.partition(".")[0], members=True)
    except BaseException as e:  # noqa: BLE001 - a user's exception may raise anything, and a coarse group beats none
        return [*parts, f"exception: {_bare(error)}", f"unreadable: {_bare(e)}"]


def _bare(error: BaseException) -> str:
    return str(type.__getattribute__(type(error), "__name__"))


def _story(error: BaseException, package: str, *, members: bool) -> list[str]:
    """Return the parts of an exception and of what caused it; ``package`` is the actor's, where its name has one."""
    told: dict[tuple[str, ...], None] = {}
    for n, link in enumerate(_chain(error)):
        parts = _one(link, package, outermost=n == 0)
        if members and isinstance(link, BaseExceptionGroup):
            parts += _members(link, package)
        # A loop that raises anew from what it last met tells the same again and again.
        told.setdefault(tuple(parts))
        if len(told) == CHAIN_KEPT:
            break
    return [
        f"{'caused by' if n else 'exception'}: {part}" if i == 0 else part
        for n, parts in enumerate(told)
        for i, part in enumerate(parts)
    ]


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while isinstance(current, BaseException) and id(current) not in seen and len(links) < CHAIN_READ:
        links.append(current)
        seen.add(id(current))
        current = current.__cause__ or _translated(current)
    return links


def _translated(error: BaseException) -> BaseException | None:
    """Return what ``error`` was raised for by the function that handled it, directly."""
    context = error.__context__
    if context is None or error.__suppress_context__:
        return None
    trace, handled = error.__traceback__, context.__traceback__
    if trace is None or handled is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return context if trace.tb_frame is handled.tb_frame else None


def _members(group: BaseExceptionGroup[BaseException], package: str) -> list[str]:
    leaves: list[BaseException] = []
    waiting: deque[BaseException] = deque([group])
    while waiting and len(leaves) < MEMBERS_READ:
        error = waiting.popleft()
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(islice(error.exceptions, MEMBERS_READ))
        else:
            leaves.append(error)
    told = {" | ".join(_story(leaf, package, members=False)) for leaf in leaves}
    return [f"member: {member}" for member in sorted(told)[:MEMBERS_KEPT]]


def _one(error: BaseException, package: str, *, outermost: bool) -> list[str]:
    """Return an exception's class, then its codes, frames and message."""
    kind = type(error)
    parts = [cut(name_of(kind), NAME_KEPT)]
    if isinstance(error, Interrupt):
        return parts
    sqlstate, codes = _codes(error)
    parts += codes
    frames = _frames(error.__traceback__)
    own = [f for f in frames if _is_own(f, package)]
    raised_by_own = bool(own) and own[-1] is frames[-1]
    if outermost and not own:
        own = _instead(frames, kind)
        raised_by_own = True
    texts = [f.text for f in own]
    if isinstance(error, RecursionError):
        parts += [f"frame: {text}" for text in _ends(_as_set(texts))]
        return parts
    parts += [f"frame: {text}" for text in _ends(_without_loops(texts))]
    if sqlstate == "P0001" or (raised_by_own and sqlstate is None):
        text = normalise(_said(error))
        if text:
            parts.append(f"message: {text}")
    return parts


def _said(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        # Its own text counts its members.
        return error.message
    return error.kind if isinstance(error, InvalidMessage) else message_of(error)


def _codes(error: BaseException) -> tuple[str | None, list[str]]:
    """Return the SQLSTATE, and all codes as parts."""
    # SQLAlchemy wraps the driver's errors.
    origin = _get(error, "orig") or error
    sqlstate = _get(origin, "sqlstate") or _get(origin, "pgcode")
    if isinstance(sqlstate, str):
        parts = [f"SQLSTATE: {sqlstate[:NAME_KEPT]}"]
        constraint = _get(_get(origin, "diag"), "constraint_name") or _get(origin, "constraint_name")
        if isinstance(constraint, str):
            parts.append(f"constraint: {_PARTITION.sub(VALUE, constraint[:NAME_KEPT])}")
        return sqlstate, parts
    if isinstance(error, OSError):
        number = _get(error, "errno")
        if type(number) is int:
            return None, [f"errno: {errno.errorcode.get(number, number)}"]
    for value in (_get(error, "status_code"), _get(_get(error, "response"), "status_code"), _get(error, "status")):
        if type(value) is int and 100 <= value <= 599:
            return None, [f"status: {value}"]
    return None, []


def _get(thing: object, name: str) -> object:
    try:
        return getattr(thing, name, None)
    except BaseException:  # noqa: BLE001 - a property of a user's exception
        return None


def _frames(trace: TracebackType | None) -> list[_Frame]:
    head: list[FrameType] = []
    tail: deque[FrameType] = deque(maxlen=FRAMES_READ)
    while trace is not None:
        (head if len(head) < FRAMES_READ else tail).append(trace.tb_frame)
        trace = trace.tb_next
    return [_frame(frame) for frame in (*head, *tail)]


def _frame(frame: FrameType) -> _Frame:
    code, names = frame.f_code, frame.f_globals
    module, file = dict.get(names, "__name__"), None
    filename = code.co_filename
    if module == "__main__":
        spec = _get(dict.get(names, "__spec__"), "name")
        module = spec if isinstance(spec, str) else _stem(filename)
    if not filename.startswith(os.sep):
        # Generated, or Cython, which has the path it was compiled under.
        file = dict.get(names, "__file__") or _get(sys.modules.get(str(module)), "__file__")
    return _known(
        module if isinstance(module, str) else None,
        code.co_qualname,
        code.co_name,
        filename,
        file if isinstance(file, str) else None,
    )


@lru_cache(maxsize=8_192)
def _known(module: str | None, qualname: str, name: str, filename: str, file: str | None) -> _Frame:
    if filename.startswith("<"):
        # What names generated code carries in full is up to the generator, and to Python's version.
        qualname = name
    if module is None:
        module = _stem(filename)
    # Cython's begin with the module.
    qualname = _COMPREHENSION.sub(lambda found: found[1] if found[2] else "", qualname.removeprefix(f"{module}."))
    qualname = qualname.removeprefix(".") or "<module>"
    package = module.partition(".")[0]
    place = filename if filename.startswith(os.sep) else file or filename
    if package in _PLUMBING_PACKAGES:
        origin = _PLUMBING
    elif _INSTALLED_FOLDERS.search(place):
        # Below the standard library's folder, as a rule.
        origin = _INSTALLED
    else:
        origin = _PLUMBING if place.startswith(("<frozen ", *_STANDARD_LIBRARY)) else _OWN
    return _Frame(cut(f"{module}:{qualname}", NAME_KEPT), origin, package)


def _stem(filename: str) -> str:
    """Return a name for code that is in no module: the file's, numbers taken out."""
    return re.sub(r"\d+", VALUE, re.split(r"[/\\]", filename)[-1].removesuffix(".py"))


def _is_own(frame: _Frame, package: str) -> bool:
    return frame.origin == _OWN or (frame.package == package and package not in _NEVER_OWN)


def _instead(frames: list[_Frame], kind: type[BaseException]) -> list[_Frame]:
    """Return the frames to go by where none is the application's own."""
    first = next((f for f in frames if f.origin == _INSTALLED), None)
    if first is not None:
        return [f for f in frames if f.package == first.package]
    if kind.__module__.partition(".")[0] in _PLUMBING_PACKAGES:
        return []
    return frames[-1:]


def _without_loops(names: list[str]) -> list[str]:
    """Return the way from the first to the last of ``names``, without what lies between two visits of one place."""
    path: list[str] = []
    keys: list[str | tuple[str, str]] = []
    at: dict[str | tuple[str, str], int] = {}
    for i, name in enumerate(names):
        # One decorator around many functions is no recursion; one around the same function again is.
        wraps = "<locals>" in name or name.endswith(".__call__")
        key = (name, names[i + 1] if i + 1 < len(names) else "") if wraps else name
        start = at.get(key)
        if start is not None:
            for gone in keys[start:]:
                del at[gone]
            del keys[start:], path[start:]
        at[key] = len(path)
        keys.append(key)
        path.append(name)
    return [name for i, name in enumerate(path) if i == 0 or path[i - 1] != name]


def _as_set(names: list[str]) -> list[str]:
    """Return the way into a recursion, then the functions that take part in it; it may have ended in any of them."""
    counts = Counter(names)
    loop = {name for name, count in counts.items() if count > 2}
    if not loop:
        return _without_loops(names)
    start = next(i for i, name in enumerate(names) if name in loop)
    return [*_without_loops(names[:start]), *sorted(loop)]


def _ends(names: list[str]) -> list[str]:
    if len(names) <= 2 * FRAMES_KEPT:
        return names
    return [*names[:FRAMES_KEPT], "…", *names[-FRAMES_KEPT:]]
