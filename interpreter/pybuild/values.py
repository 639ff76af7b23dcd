"""Dataclasses that cost next to nothing until they are used.

:mod:`dataclasses` compiles six functions for each class when it is made, and loads
:mod:`inspect` to do so: 90 of the 200 ms that a build took which had nothing to do. Here
what is the same for all classes is shared, and only one with many values gets an ``__init__``
of its own, which takes half as long as the standard library's, and a ``__replace__``.
To a type checker these are the standard library's own, and to whoever asks the classes:
:func:`dataclasses.fields`, ``replace``, ``asdict`` and ``is_dataclass`` take them.

What pybuild doesn't use is refused: ``__post_init__``, ``ClassVar``, ``InitVar``, ``KW_ONLY``,
classes without ``slots``, and all other options of a class or a field.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

__all__ = ["dataclass", "field", "replace"]

_MISSING: Any = object()
_OWN_FIELDS = "__pybuild_fields__"
_REFUSED = ("ClassVar", "InitVar", "KW_ONLY", "typing.", "dataclasses.")
_FEW = 20
"""Calls of a method that cost less without a compiled one than compiling it does."""
_Class = type[Any]


class _Field:
    """What a class says of one of its attributes."""

    __slots__ = ("annotation", "default", "factory", "kw_only", "name", "shown")

    def __init__(self, default: Any, factory: Callable[[], Any] | None, *, shown: bool) -> None:
        self.name = ""
        self.annotation: Any = None
        self.kw_only = False
        self.default = default
        self.factory = factory
        self.shown = shown


class _Later:
    """An attribute of a class that is made when it is asked for, and stays.

    In place of a method `plain` is called, with the instance first, until making it is worth it or
    somebody looks at it.
    """

    __slots__ = ("_cls", "_left", "_make", "_plain", "name")

    def __init__(
        self,
        cls: _Class,
        name: str,
        make: Callable[[_Class], Any],
        plain: Callable[..., Any] | None = None,
    ) -> None:
        self._cls = cls
        self.name = name
        self._make = make
        self._plain = plain
        self._left = _FEW

    def __get__(self, instance: object, owner: _Class) -> Any:
        self._left -= 1
        if self._plain is not None and instance is not None and self._left >= 0:
            return partial(self._plain, instance)
        setattr(self._cls, self.name, self._make(self._cls))
        return getattr(owner if instance is None else instance, self.name)


def _dataclass(
    *, slots: bool, frozen: bool = False, kw_only: bool = False, eq: bool = True
) -> Callable[[_Class], _Class]:
    if not slots:
        raise TypeError("only classes with slots are made here")
    return partial(_finished, frozen=frozen, kw_only=kw_only, eq=eq)


def _field(
    *,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
    repr: bool = True,  # noqa: A002 - so called in dataclasses
) -> Any:
    return _Field(default, default_factory, shown=repr)


def _replace(value: Any, /, **changes: Any) -> Any:
    return value.__replace__(**changes)


def _replaced(value: Any, /, **changes: Any) -> Any:
    for each in getattr(value, _OWN_FIELDS):
        if each.name not in changes:
            changes[each.name] = getattr(value, each.name)
    return type(value)(**changes)


def _finished(cls: _Class, *, frozen: bool, kw_only: bool, eq: bool) -> _Class:
    """The class once more, with slots and the methods of a dataclass."""
    own = _fields_of(cls, kw_only=kw_only)
    inherited: dict[str, _Field] = {
        each.name: each
        for base in reversed(cls.__mro__[1:])
        for each in base.__dict__.get(_OWN_FIELDS, ())
    }
    fields = tuple({**inherited, **own}.values())
    key = _key_of([each.name for each in fields])
    namespace: dict[str, Any] = {
        "__repr__": _shown,
        **({"__eq__": _equal_by(key)} if eq else {}),
        "__getstate__": _state,
        "__setstate__": _set_state,
        **({"__setattr__": _refuse_setting, "__delattr__": _refuse_deleting} if frozen else {}),
        **cls.__dict__,
        "__slots__": tuple(name for name in own if name not in inherited),
        "__match_args__": tuple(each.name for each in fields if not each.kw_only),
        _OWN_FIELDS: fields,
    }
    if eq and namespace.get("__hash__") is None:
        namespace["__hash__"] = _hash_by(key) if frozen else None
    for name in (*own, "__dict__", "__weakref__"):
        namespace.pop(name, None)
    metaclass: Callable[..., _Class] = type(cls)
    made = metaclass(cls.__name__, cls.__bases__, namespace)
    made.__qualname__ = cls.__qualname__
    for later in (
        _Later(made, "__init__", _compiled_init, partial(_set, made)),
        _Later(made, "__replace__", _compiled_replace, _replaced),
        *(
            _Later(made, name, partial(_of_the_library, name))
            for name in ("__dataclass_fields__", "__dataclass_params__")
        ),
    ):
        setattr(made, later.name, later)
    return made


def _fields_of(cls: _Class, *, kw_only: bool) -> dict[str, _Field]:
    """The fields of the class's own body, by their names. Raises TypeError for what is refused."""
    if "__post_init__" in cls.__dict__:
        raise TypeError(f"{cls.__name__} has a __post_init__")
    found: dict[str, _Field] = {}
    for name, annotation in cls.__annotations__.items():
        if str(annotation).startswith(_REFUSED):
            raise TypeError(f"{cls.__name__}.{name} is no plain field: {annotation}")
        given = cls.__dict__.get(name, _MISSING)
        one = given if isinstance(given, _Field) else _Field(given, None, shown=True)
        if one.default is not _MISSING and one.default.__class__.__hash__ is None:
            raise TypeError(f"{cls.__name__}.{name} needs a default_factory")
        one.name, one.annotation, one.kw_only = name, annotation, kw_only
        found[name] = one
    return found


def _set(cls: _Class, instance: object, /, *args: Any, **words: Any) -> None:
    """What the ``__init__`` of `cls` does."""
    if not _set_all(getattr(cls, _OWN_FIELDS), instance, args, words):
        # Python itself says what is wrong with the arguments
        _compiled_init(cls)(instance, *args, **words)


def _set_all(
    fields: Sequence[_Field], instance: object, args: Sequence[Any], words: dict[str, Any]
) -> bool:
    positional = [each.name for each in fields if not each.kw_only]
    given = dict(zip(positional, args, strict=False)) | words
    if len(given) != len(args) + len(words):
        return False
    for each in fields:
        value = given.pop(each.name, _MISSING)
        if value is _MISSING:
            value = each.default if each.factory is None else each.factory()
        if value is _MISSING:
            return False
        object.__setattr__(instance, each.name, value)
    return not given


def _compiled_init(cls: _Class) -> Callable[..., None]:
    """The ``__init__`` of the class, which sets each slot by its own descriptor."""
    fields: tuple[_Field, ...] = getattr(cls, _OWN_FIELDS)
    known: dict[str, Any] = {"_MISSING": _MISSING}
    positional, by_keyword, body = ["self"], ["*"], []
    for each in fields:
        name = each.name
        known |= {f"_set_{name}": getattr(cls, name).__set__, f"_default_{name}": each.default}
        known[f"_make_{name}"] = each.factory
        value, optional = name, each.default is not _MISSING
        if each.factory is not None:
            value, optional = f"_make_{name}() if {name} is _MISSING else {name}", True
        (by_keyword if each.kw_only else positional).append(
            f"{name}=_default_{name}" if optional else name
        )
        body.append(f"\n  _set_{name}(self, {value})")
    words = [*positional, *by_keyword] if by_keyword[1:] else positional
    text = (
        f"def make({', '.join(known)}):\n"
        f" def __init__({', '.join(words)}):{''.join(body) or ' pass'}\n"
        " return __init__"
    )
    made: dict[str, Any] = {}
    # in the names of its module, as its annotations are of them
    exec(text, sys.modules[cls.__module__].__dict__, made)  # noqa: S102 - the words are names of fields
    init: Callable[..., None] = made["make"](**known)
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__annotations__ = {each.name: each.annotation for each in fields} | {"return": None}
    return init


def _compiled_replace(cls: _Class) -> Callable[..., Any]:
    """The ``__replace__`` of the class, which takes each value from where it is."""
    fields: tuple[_Field, ...] = getattr(cls, _OWN_FIELDS)
    words = ", ".join(f"{each.name}=_MISSING" for each in fields)
    values = ", ".join(
        f"{each.name + '=' if each.kw_only else ''}"
        f"self.{each.name} if {each.name} is _MISSING else {each.name}"
        for each in sorted(fields, key=lambda each: each.kw_only)
    )
    text = f"def __replace__(self, /, {'*, ' if words else ''}{words}):\n return self.__class__({values})"
    made: dict[str, Any] = {"_MISSING": _MISSING}
    exec(text, made)  # noqa: S102 - the words are names of fields
    replace: Callable[..., Any] = made["__replace__"]
    return replace


def _of_the_library(name: str, cls: _Class) -> Any:
    """What a class of the standard library with the same fields has under `name`."""
    import dataclasses  # noqa: PLC0415 - what this module is there to avoid

    fields: list[tuple[str, Any, Any]] = []
    for each in getattr(cls, _OWN_FIELDS):
        options: dict[str, Any] = {"repr": each.shown, "kw_only": each.kw_only}
        if each.factory is not None:
            options["default_factory"] = each.factory
        elif each.default is not _MISSING:
            options["default"] = each.default
        fields.append((each.name, each.annotation, dataclasses.field(**options)))
    frozen = cls.__dict__.get("__setattr__") is _refuse_setting
    return getattr(dataclasses.make_dataclass(cls.__name__, fields, frozen=frozen), name)


def _key_of(names: Sequence[str]) -> Callable[[Any], object]:
    """What gives the values of these attributes, to be compared and hashed."""
    return attrgetter(*names) if names else type


def _equal_by(key: Callable[[Any], object]) -> Callable[[object, object], object]:
    def equal(self: object, other: object) -> object:
        return key(self) == key(other) if other.__class__ is self.__class__ else NotImplemented

    return equal


def _hash_by(key: Callable[[Any], object]) -> Callable[[object], int]:
    def hashed(self: object) -> int:
        return hash(key(self))

    return hashed


def _shown(self: Any) -> str:
    shown = (each.name for each in getattr(self, _OWN_FIELDS) if each.shown)
    inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
    return f"{type(self).__qualname__}({inside})"


def _state(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in getattr(self, _OWN_FIELDS)]


def _set_state(self: Any, state: list[Any]) -> None:
    for each, value in zip(getattr(self, _OWN_FIELDS), state, strict=True):
        object.__setattr__(self, each.name, value)


def _refuse_setting(self: object, name: str, value: object) -> NoReturn:  # noqa: ARG001 - as a class calls it
    from dataclasses import FrozenInstanceError  # noqa: PLC0415 - for a bug only

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deleting(self: object, name: str) -> NoReturn:  # noqa: ARG001 - as above
    from dataclasses import FrozenInstanceError  # noqa: PLC0415 - as above

    raise FrozenInstanceError(f"cannot delete field {name!r}")


if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
else:
    dataclass, field, replace = _dataclass, _field, _replace
