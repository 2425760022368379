"""What a payload must satisfy: filters, which are JMESPath expressions, evaluated within a budget.

Why JMESPath: its grammar is settled and has a public compliance suite (jmespath/jmespath.test), and `jmespath`
is pure Python without dependencies, which gives us a tree to check beforehand and to walk with a meter. CEL in
Python is `cel-python`, which brings lark, pendulum and the compiled google-re2, or a binding to a compiled
evaluator, in which we could not count.

Tenants write these expressions, and all tenants share one process. So an expression is small (`MAX_CHARACTERS`,
`MAX_NODES`, `MAX_NESTING`), and what its evaluation does is paid for from a `BUDGET`: one unit for each node of
the tree, each time it is visited, and more for work in proportion to the size of a value. A unit is about a
microsecond at most. No value that an evaluation makes is larger than what it paid for, so memory is bounded, too.

Where the library departs from the specification, or lets an exception of Python through, we follow the
specification: `[true]` does not equal `[1]`, and comparing the order of unlike things gives null. Texts can be
ordered, as the library has it: that is useful for dates.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from jmespath import exceptions, functions, parser, visitor

#: of an expression's text
MAX_CHARACTERS = 1_000
#: of an expression's tree
MAX_NODES = 100
#: expressions inside expressions, as the parser descends
MAX_NESTING = 32
#: arrays and objects in one literal
MAX_LITERAL_PARTS = 50
#: units of work that one evaluation may do
BUDGET = 20_000

#: characters of text for one unit: where they are copied, and where they are only compared
_COPIED = 64
_COMPARED = 256
#: comparisons of a search for a text in a text, for one unit
_SEARCHED = 512
#: bits of a whole number that is written, whose square is one unit
_WRITTEN_BITS = 512
#: comparisons of one item in a sort, at most: the binary logarithm of the longest list that the budget allows
_SORT_ROUNDS = BUDGET.bit_length()
#: units for a call of a function: the library checks the arguments' types
_CALL = 3
#: units for the encoder that the library makes for each value it writes
_WRITER = 5

_QUOTED = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`(?P<literal>(?:[^`\\]|\\.)*)`|(?P<open>['"`])""", re.DOTALL
)
#: RFC 8259, section 6
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
#: a text longer than this is no number: every finite float and any sensible integer is shorter
_MAX_NUMBER_CHARACTERS = 1_000


class FilterError(ValueError):
    """An expression that cannot be a filter. The text says what is wrong, and repeats nothing of it."""


class FilterFailed(Exception):
    """A filter that gave no answer for a payload. `reason` is a sentence that repeats nothing of either."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Filter:
    """An expression that was checked; `compile_filter` makes it. Equal to another one of the same text."""

    #: the expression as it was written
    text: str
    _tree: Any = field(repr=False, compare=False)

    def accepts(self, payload: object) -> bool:
        """Whether the expression is true of `payload`: parsed JSON, nested at most 64 deep.

        False are, as everywhere in JMESPath, only `false`, `null` and the empty text, array and object: 0 is
        true. Raises FilterFailed if there is no answer: a function got what it does not take, or the budget
        did not suffice.
        """
        try:
            result = _Interpreter().visit(self._tree, payload)
        except _OverBudget:
            raise FilterFailed("The filter needs too much work for this payload.") from None
        except exceptions.JMESPathTypeError as exc:
            # the library's own text would carry a part of the payload
            raise FilterFailed(f"The function {exc.function_name}() got a value of a type it does not take.") from None
        except Exception:  # noqa: BLE001 - whatever a tenant's expression provokes is that filter's failure alone
            raise FilterFailed("The filter cannot be evaluated for this payload.") from None
        return not _is_false(result)


def compile_filter(text: str) -> Filter:
    """`text` as a filter. Raises FilterError unless it is a JMESPath expression within the limits.

    Functions are checked as far as can be without a payload: they exist, and get as many arguments as they take,
    expressions (`&…`) where they take such. Positions in error texts count characters from 1.
    """
    if not text.strip():
        raise FilterError("A filter is a JMESPath expression; this one is empty.")
    if len(text) > MAX_CHARACTERS:
        raise FilterError(f"A filter has at most {MAX_CHARACTERS} characters.")
    for position, character in enumerate(text, 1):
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\t\n\r":
            raise FilterError(f"A filter has no control characters; there is one at position {position}.")
    _check_quoted(text)
    tree = _parse(text)
    _check_tree(tree)
    return Filter(text, tree)


def _check_quoted(text: str) -> None:
    for match in _QUOTED.finditer(text):
        position = match.start() + 1
        if match["open"]:
            raise FilterError(f"The quotation that begins at position {position} has no end.")
        literal = match["literal"]
        if literal is None:
            continue
        literal = literal.replace("\\`", "`")
        # counted in the text, before anything descends into it
        if literal.count("[") + literal.count("{") > MAX_LITERAL_PARTS:
            raise FilterError(
                f"A literal has at most {MAX_LITERAL_PARTS} arrays and objects;"
                f" the one at position {position} has more."
            )
        try:
            # the library would take broken JSON for a text, NaN and infinity for numbers
            json.loads(literal, parse_constant=_refuse_number, parse_float=_finite)
        except ValueError:
            raise FilterError(
                f"The literal at position {position} is not JSON. A text is written in single quotes: 'text'."
            ) from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_number(text)
    return number


def _refuse_number(_text: str) -> NoReturn:
    raise ValueError("no JSON number")


class _TooNested(Exception):
    pass


class _Parser(parser.Parser):
    """The library's parser with a bound on its recursion, and without its cache.

    The cache would keep the expressions of all tenants, and would hand out trees that no bound was applied to.
    """

    _CACHE: ClassVar[dict[str, Any]] = {}
    _MAX_SIZE = 0
    _nesting = 0

    def _expression(self, binding_power: int = 0) -> Any:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise _TooNested
        node = super()._expression(binding_power)  # type: ignore[misc]  # the stubs leave private methods out
        self._nesting -= 1
        return node


def _parse(text: str) -> Any:
    try:
        return _Parser().parse(text).parsed
    except _TooNested:
        raise FilterError(f"A filter nests expressions at most {MAX_NESTING} deep.") from None
    except exceptions.IncompleteExpressionError:
        raise FilterError("The filter ends where something should follow.") from None
    except exceptions.ParseError as exc:
        # the library does not know where a call of a quoted name stands, and gives the beginning
        where = "" if exc.msg.startswith("Quoted identifier") else f" at position {exc.lex_position + 1}"
        raise FilterError(f"The filter is not a JMESPath expression: there is an error{where}.") from None
    except Exception:  # noqa: BLE001 - what the parser did not foresee is no valid expression either
        raise FilterError("The filter is not a JMESPath expression.") from None


def _check_tree(tree: Any) -> None:
    # without recursion; an expression (`&…`) is reached only through the function that takes it
    nodes = 0
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise FilterError(f"A filter has at most {MAX_NODES} parts: names, literals, operators, calls.")
        match node["type"]:
            case "slice":
                if node["children"][2] == 0:
                    raise FilterError("The step of a slice is not 0.")
            case "function_expression":
                waiting += _checked_arguments(node)
            case "expref":
                raise FilterError("An expression with `&` is only an argument of a function such as sort_by().")
            case "subexpression" | "value_projection" | "filter_projection" | "flatten" if _is_negated(node):
                raise FilterError(
                    "Before a dot, `[?` or `[]`, `!` belongs to the name alone, so that the result is always null:"
                    " write !(a.b), not !a.b."
                )
            case _:
                waiting += node["children"]


def _is_negated(node: Any) -> bool:
    return bool(node["children"][0]["type"] == "not_expression")


def _checked_arguments(call: Any) -> Iterator[Any]:
    name = call["value"]
    known = _Functions.FUNCTION_TABLE
    if name not in known:
        raise FilterError(f"The filter calls a function that does not exist. There are: {', '.join(sorted(known))}.")
    signature = known[name]["signature"]
    expected, given = len(signature), len(call["children"])
    variadic = bool(signature[-1].get("variadic"))
    if given < expected or (given > expected and not variadic):
        least = "at least " if variadic else ""
        raise FilterError(f"The function {name}() takes {least}{expected} argument(s), but gets {given}.")
    for at, argument in enumerate(call["children"]):
        takes_expression = "expref" in signature[min(at, expected - 1)]["types"]
        if takes_expression != (argument["type"] == "expref"):
            raise FilterError(
                f"Argument {at + 1} of {name}() is an expression with `&` before it, such as &name."
                if takes_expression
                else f"Argument {at + 1} of {name}() is a value, without `&` before it."
            )
        yield argument["children"][0] if takes_expression else argument


class _OverBudget(Exception):
    pass


class _Meter:
    """What is left of the budget."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = BUDGET

    def charge(self, units: int) -> None:
        """Pay for work before it is done."""
        self.left -= units
        if self.left < 0:
            raise _OverBudget


class _Interpreter(visitor.TreeInterpreter):
    """The library's interpreter, on a meter. One evaluation only."""

    def __init__(self) -> None:
        self._meter = _Meter()
        super().__init__(visitor.Options(custom_functions=_Functions(self._meter)))

    def visit(self, node: Any, value: Any) -> Any:
        meter = self._meter
        meter.left -= 1
        if meter.left < 0:
            raise _OverBudget
        # looked up in the class: the library's own cache of bound methods would make each interpreter a
        # cycle, with the payload's parts in it, that only the garbage collector frees
        return _VISITS[node["type"]](self, node, value)

    def visit_field(self, node: Any, value: Any) -> Any:
        # the library raises and catches an AttributeError here, which is slow
        return value.get(node["value"]) if isinstance(value, dict) else None

    def visit_comparator(self, node: Any, value: Any) -> Any:
        first, second = node["children"]
        left, right = self.visit(first, value), self.visit(second, value)
        operator = node["value"]
        if operator == "eq":
            return _equal(left, right, self._meter)
        if operator == "ne":
            return not _equal(left, right, self._meter)
        if isinstance(left, str) and isinstance(right, str):
            self._meter.charge(min(len(left), len(right)) // _COMPARED)
        elif not (_is_number(left) and _is_number(right)):
            return None
        return self.COMPARATOR_FUNC[operator](left, right)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if not isinstance(base, list):
            return None
        self._meter.charge(len(base))
        merged: list[Any] = []
        for element in base:
            if isinstance(element, list):
                self._meter.charge(len(element))
                merged += element
            else:
                merged.append(element)
        return merged

    def visit_slice(self, node: Any, value: Any) -> Any:
        if not isinstance(value, list):
            return None
        part = slice(*node["children"])
        self._meter.charge(len(range(*part.indices(len(value)))))
        return value[part]


_VISITS: dict[str, Callable[..., Any]] = {
    name.removeprefix("visit_"): getattr(_Interpreter, name) for name in dir(_Interpreter) if name.startswith("visit_")
}


class _Functions(functions.Functions):
    """The library's functions, on a meter."""

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def call_function(self, function_name: str, resolved_args: Any) -> Any:
        self._meter.charge(_CALL)
        if function_name not in _LOOKS_OUTSIDE_ONLY:
            for argument in resolved_args:
                _pay_for_copying(self._meter, argument)
        extra = _EXTRA_WORK.get(function_name)
        if extra is not None:
            extra(self._meter, *resolved_args)
        return super().call_function(function_name, resolved_args)

    @functions.signature({"types": ["array", "string"]}, {"types": []})
    def _func_contains(self, subject: Any, search: Any) -> bool:
        if isinstance(subject, list):
            return any(_equal(element, search, self._meter) for element in subject)
        if not isinstance(search, str):
            raise exceptions.JMESPathTypeError("contains", None, "", ["string"])
        return search in subject

    @functions.signature({"types": []})
    def _func_to_number(self, value: Any) -> int | float | None:
        # the library takes what Python takes: `1_000`, ` 1`, `nan`
        if _is_number(value):
            return value  # type: ignore[no-any-return]  # it is what it was found to be
        if not isinstance(value, str) or len(value) > _MAX_NUMBER_CHARACTERS or not _JSON_NUMBER.fullmatch(value):
            return None
        try:
            return int(value)
        except ValueError:
            number = float(value)
            return number if math.isfinite(number) else None

    @functions.signature({"types": ["object"], "variadic": True})
    def _func_merge(self, *objects: Any) -> dict[str, Any]:
        # the library checks the first one's type only
        merged: dict[str, Any] = {}
        for each in objects:
            if not isinstance(each, dict):
                raise exceptions.JMESPathTypeError("merge", None, "", ["object"])
            merged |= each
        return merged

    @functions.signature({"types": ["array"]}, {"types": ["expref"]})
    def _func_sort_by(self, array: Any, expression: Any) -> Any:
        keys = self._keys("sort_by", array, expression)
        return [array[at] for at in sorted(range(len(array)), key=keys.__getitem__)]

    @functions.signature({"types": ["array"]}, {"types": ["expref"]})
    def _func_max_by(self, array: Any, expression: Any) -> Any:
        keys = self._keys("max_by", array, expression)
        return array[max(range(len(array)), key=keys.__getitem__)] if array else None

    @functions.signature({"types": ["array"]}, {"types": ["expref"]})
    def _func_min_by(self, array: Any, expression: Any) -> Any:
        keys = self._keys("min_by", array, expression)
        return array[min(range(len(array)), key=keys.__getitem__)] if array else None

    def _keys(self, name: str, array: list[Any], expression: Any) -> list[Any]:
        # what the elements are ordered by: all numbers, or all texts
        keys = [expression.visit(expression.expression, element) for element in array]
        if not (all(map(_is_number, keys)) or all(isinstance(key, str) for key in keys)):
            raise exceptions.JMESPathTypeError(name, None, "", ["number", "string"])
        _pay_for_sorting(self._meter, keys)
        return keys


#: functions whose work does not grow with their arguments
_LOOKS_OUTSIDE_ONLY = frozenset({"length", "not_null", "to_array", "type"})


def _pay_for_copying(meter: _Meter, value: Any) -> None:
    # a value's outer layer, and the texts in a list
    if isinstance(value, list):
        meter.charge(len(value))
        meter.charge(sum(len(item) // _COPIED for item in value if isinstance(item, str)))
    elif isinstance(value, dict):
        meter.charge(len(value))
    elif isinstance(value, str):
        meter.charge(len(value) // _COPIED)


def _pay_for_sorting(meter: _Meter, array: Any) -> None:
    if isinstance(array, list):
        meter.charge(len(array))
        meter.charge(sum(len(item) // _COMPARED for item in array if isinstance(item, str)) * _SORT_ROUNDS)


def _pay_for_joining(meter: _Meter, separator: Any, array: Any) -> None:
    if isinstance(separator, str) and isinstance(array, list):
        meter.charge(len(separator) * len(array) // _COPIED)


def _pay_for_searching(meter: _Meter, subject: Any, search: Any) -> None:
    # CPython compares at every place for a short pattern, or in a text of less than 30,000 characters for one of
    # up to 100; otherwise its search is linear ("fastsearch.h")
    if isinstance(subject, str) and isinstance(search, str):
        meter.charge(len(subject) * min(len(search), 100 if len(subject) < 30_000 else 8) // _SEARCHED)


def _pay_for_writing(meter: _Meter, value: Any) -> None:
    # a value may hold the same part many times over; it is written each time, and so counted each time
    if isinstance(value, str):
        return
    meter.charge(_WRITER)
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            meter.charge(len(part) + sum(len(key) // _COPIED for key in part))
            waiting += part.values()
        elif isinstance(part, list):
            meter.charge(len(part))
            waiting += part
        elif isinstance(part, str):
            meter.charge(len(part) // _COPIED)
        elif isinstance(part, int):
            # to write a number in decimal takes time in the square of its length
            meter.charge((part.bit_length() // _WRITTEN_BITS) ** 2)


_EXTRA_WORK: dict[str, Callable[..., None]] = {
    "contains": _pay_for_searching,
    "join": _pay_for_joining,
    "max": _pay_for_sorting,
    "min": _pay_for_sorting,
    "sort": _pay_for_sorting,
    "to_string": _pay_for_writing,
}


def _equal(left: Any, right: Any, meter: _Meter) -> bool:
    """Whether two JSON values are the same. Python's `==` would take 1 for true, and could not be metered."""
    waiting = [(left, right)]
    while waiting:
        first, second = waiting.pop()
        if isinstance(first, list) and isinstance(second, list):
            if len(first) != len(second):
                return False
            meter.charge(len(first))
            waiting += zip(first, second, strict=True)
        elif isinstance(first, dict) and isinstance(second, dict):
            meter.charge(len(first))
            if first.keys() != second.keys():
                return False
            waiting += ((value, second[key]) for key, value in first.items())
        elif not _equal_scalars(first, second, meter):
            return False
    return True


def _equal_scalars(left: Any, right: Any, meter: _Meter) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        meter.charge(min(len(left), len(right)) // _COMPARED)
        return left == right
    if _is_number(left) and _is_number(right):
        return bool(left == right)
    # what is left are true, false and null, and values of unlike types
    return left is right


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_false(value: object) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)
