"""Our dataclasses against the standard library's, and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar, get_type_hints

import pytest

from pybuild import values
from pybuild.values import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    names: dict[str, int] = field(default_factory=dict)
    secret: str = field(default="hidden", repr=False)

    @property
    def total(self) -> int:
        return self.x + self.y


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    where: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base):
    number: int
    text: str = "another default"


@dataclass(slots=True)
class Changing:
    count: int = 0


@dataclass(frozen=True, slots=True)
class Empty:
    pass


@dataclass(frozen=True, slots=True)
class Odd:
    value: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and self.value % 2 == other.value % 2

    def __hash__(self) -> int:
        return self.value % 2

    def __repr__(self) -> str:
        return "odd"


MAKERS = [
    pytest.param(dataclass, field, id="ours"),
    pytest.param(dataclasses.dataclass, dataclasses.field, id="the standard library's"),
]


def made(dataclass: Any, field: Any) -> type[Any]:
    @dataclass(frozen=True, slots=True)
    class Made:
        """Says what it is."""

        path: bytes
        mode: int = 0o644
        extra: list[int] = field(default_factory=list)
        content: str = field(default="c", repr=False)

    return Made  # type: ignore[no-any-return]  # the decorator is not known here


@pytest.mark.parametrize(("dataclass", "field"), MAKERS)
def test_a_class_behaves_as_the_standard_librarys_does(dataclass: Any, field: Any) -> None:
    cls = made(dataclass, field)
    one, same, other = cls(b"a"), cls(path=b"a", mode=0o644, extra=[]), cls(b"a", 1, [2], "d")
    assert one == same
    assert one != other
    assert one != (b"a", 0o644, [], "c")
    assert one.extra is not same.extra
    assert repr(other).endswith("Made(path=b'a', mode=1, extra=[2])")
    assert cls.__match_args__ == ("path", "mode", "extra", "content")
    assert cls.__doc__ == "Says what it is."
    assert not hasattr(one, "__dict__")
    assert dataclasses.is_dataclass(cls)
    assert [each.name for each in dataclasses.fields(one)] == ["path", "mode", "extra", "content"]
    assert dataclasses.replace(one, mode=1).mode == 1
    assert dataclasses.asdict(other) == {"path": b"a", "mode": 1, "extra": [2], "content": "d"}
    assert copy.deepcopy(other) == other
    assert list(inspect.signature(cls).parameters) == ["path", "mode", "extra", "content"]
    assert inspect.signature(cls).parameters["mode"].default == 0o644
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.mode = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.mode
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'path'"):
        cls()
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'wrong'"):
        cls(b"a", wrong=1)


def test_the_hundredth_value_is_made_as_the_first_one() -> None:
    cls = made(dataclass, field)
    for number in range(100):
        one = cls(b"a", number, content="d")
        assert (one.path, one.mode, one.extra, one.content) == (b"a", number, [], "d")
        with pytest.raises(TypeError, match=r"got multiple values for argument 'path'"):
            cls(b"a", path=b"b")
        with pytest.raises(TypeError, match=r"takes from 2 to 5 positional arguments but 6"):
            cls(1, 2, 3, 4, 5)


def test_the_types_of_the_arguments_are_told() -> None:
    hints = get_type_hints(Derived.__init__)
    assert hints == {"where": str, "text": str, "number": int, "return": type(None)}


def test_equal_values_have_one_hash() -> None:
    assert {Base(where="a"), Base(where="a"), Base(where="b")} == {Base(where="b"), Base(where="a")}
    assert len({Empty(), Empty()}) == 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))  # a dict is in it
    with pytest.raises(TypeError, match="unhashable"):
        hash(Changing())


def test_a_derived_class_has_the_fields_of_both() -> None:
    one = Derived(where="here", number=3)
    assert (one.where, one.text, one.number) == ("here", "another default", 3)
    assert Derived.__match_args__ == ()
    assert one != Base(where="here", text="another default")
    with pytest.raises(TypeError, match="positional"):
        Derived("here", number=3)  # type: ignore[misc]  # what is to be refused


def test_a_class_of_the_standard_library_can_derive_from_ours() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Longer(Point):
        z: int = 3

    assert repr(Longer(1)) == (
        "test_a_class_of_the_standard_library_can_derive_from_ours.<locals>."
        "Longer(x=1, y=2, names={}, z=3)"
    )


def test_a_changing_class_is_changed() -> None:
    one = Changing()
    one.count += 1
    assert one == Changing(1)


def test_a_class_may_compare_its_values_by_identity() -> None:
    @values.dataclass(slots=True, eq=False)
    class Kept:
        one: int

    kept = Kept(1)
    assert kept == kept  # noqa: PLR0124 - the point
    assert kept != Kept(1)
    assert {kept: "found"}[kept] == "found"


def test_own_methods_stay() -> None:
    assert Odd(1) == Odd(3)
    assert hash(Odd(1)) == hash(Odd(3))
    assert repr(Odd(1)) == "odd"
    assert Point(1).total == 3


def test_a_value_is_matched_by_the_order_of_its_fields() -> None:
    match Point(1, 5):
        case Point(x, y):
            assert (x, y) == (1, 5)


def test_replace_makes_another_value_of_the_same_class() -> None:
    assert replace(Point(1), y=4) == Point(1, 4)
    assert replace(Derived(where="a", number=1), number=2) == Derived(where="a", number=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        replace(Point(1), z=4)  # type: ignore[call-arg]  # what is to be refused


def test_the_hundredth_replaced_value_is_as_the_first_one() -> None:
    cls = made(dataclass, field)
    one = cls(b"a", extra=[1])
    for number in range(100):
        other = replace(one, mode=number)
        assert other == cls(b"a", number, [1])
        assert other.extra is one.extra
        derived = replace(Derived(where="a", number=1), text="x", number=number)
        assert derived == Derived(where="a", text="x", number=number)
        assert replace(one) == one
        with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
            replace(one, z=number)
    assert replace(one, mode=None).mode is None


def test_a_value_survives_being_pickled_and_copied() -> None:
    for one in (Point(1, names={"a": 1}), Derived(where="a", number=1), Changing(2)):
        assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own
        assert copy.copy(one) == one


def _without_slots() -> None:
    @dataclass(frozen=True)
    class Made(Base):
        pass


def _with_post_init() -> None:
    @dataclass(slots=True)
    class Made:
        def __post_init__(self) -> None:
            pass


def _with_class_variable() -> None:
    @dataclass(slots=True)
    class Made:
        all: ClassVar[int] = 0


def _with_shared_list() -> None:
    @dataclass(slots=True)
    class Made:
        names: list[str] = []  # noqa: RUF012 - what is to be refused


@pytest.mark.parametrize(
    "define", [_without_slots, _with_post_init, _with_class_variable, _with_shared_list]
)
def test_what_is_not_supported_is_refused(define: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        define()


def test_making_classes_and_values_loads_neither_dataclasses_nor_inspect() -> None:
    program = (
        "import sys\nfrom pybuild.values import dataclass, replace\n"
        "@dataclass(frozen=True, slots=True)\nclass A:\n    a: int = 1\n"
        "assert replace(A(), a=2) != A() and repr(A()) == 'A(a=1)' and hash(A())\n"
        "print({'dataclasses', 'inspect'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == b"set()\n"
    assert values.dataclass is not dataclasses.dataclass  # type: ignore[comparison-overlap]
