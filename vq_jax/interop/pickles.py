"""Reads pickles without running the code that they refer to.

A pickle is a program for a stack machine. Python's own machine calls any function that the program
names. This one builds only containers, numbers, strings and NumPy arrays. An object of an unknown
class becomes an `Inert`, which does nothing. A call of any function outside a short list raises an
error with the function's name. A limit on the number of steps bounds the size of the result.
"""

import io
import mmap
import pickletools
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, cast

import numpy as np

from vq_jax.errors import UserError

File = io.BytesIO | mmap.mmap

# Limit of opcodes. A checkpoint with its optimizer state has some hundred thousand.
_MAX_STEPS = 2_000_000
# Limit of the total size of all calls' arguments, in items or bytes: calls copy their arguments.
_MAX_ARGUMENTS = 2**28


class Global(NamedTuple):
    """The name of a class or function that a pickle refers to; it is never imported or called."""

    module: str
    name: str

    def __str__(self) -> str:
        # Error messages print it, so escape any terminal control characters.
        return ascii(f"{self.module}.{self.name}")[1:-1][:120]


class Inert:
    """A placeholder for an object of an unknown class.

    Attributes:
      reference: name of the class, or of the function that would have made the object.
    """

    def __init__(self, reference: Global):
        self.reference = reference

    def __repr__(self) -> str:
        return f"<{self.reference}>"


class _Array:
    """A NumPy array or dtype under construction: a later BUILD opcode completes it."""

    def __init__(self, dtype: np.dtype | None = None):
        self.dtype = dtype
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if self.dtype is not None:  # The state of a dtype is (version, byte order, ...).
            self.dtype = self.dtype.newbyteorder({"|": "=", "=": "="}.get(state[1], state[1]))
            return
        _, shape, dtype, column_major, data = state
        self.value = _frombuffer(data, dtype, shape, "F" if column_major else "C")


def _dtype(code: Any, *_: Any) -> _Array:
    dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 8 else None
    if dtype is None or dtype.kind not in "biufc" or dtype.fields or dtype.subdtype:
        raise ValueError("it contains an array that is not numeric")
    return _Array(dtype)


def _scalar(dtype: _Array, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype, 1)[0]


def _frombuffer(data: bytes, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Array) or dtype.dtype is None:
        raise ValueError("it contains an array that is not numeric")
    flat = np.frombuffer(data, dtype.dtype)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


def _pairs(items: Any = ()) -> dict[Any, Any]:
    return {_key(k): v for k, v in (items.items() if isinstance(items, dict) else items)}


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8", "utf8"):
        raise ValueError(f"it contains text in the encoding {encoding[:20]!r}")
    return text.encode(encoding)


def _items(items: Any = ()) -> list[Any]:
    return [_key(item) for item in items]


# Functions that a pickle may call. No result is larger than the arguments.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": _pairs,
    "builtins.dict": _pairs,
    "builtins.list": _items,
    "builtins.tuple": lambda items=(): tuple(_items(items)),
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "torch.Size": lambda items=(): tuple(_items(items)),
}
# Other names of modules, in other versions of NumPy or in pickle protocol 2, and the current ones.
_MODULES = {"numpy._core.": "numpy.core.", "__builtin__.": "builtins.", "copy_reg.": "copyreg."}
_PATHS = ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
# Harmless functions that need no result: a call gives an `Inert`.
_HARMLESS = {
    "copyreg._reconstructor",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    "torch.device",
    "torch.Generator",
    "datetime.datetime",
    "datetime.timedelta",
    "uuid.UUID",
}


# Rebuilds a tensor of a subclass. Its arguments are (function, class, function's arguments, state).
_REBUILD_SUBCLASS = "torch._tensor._rebuild_from_type_v2"


def _is_third_party(reference: Global) -> bool:
    """Returns whether a name is outside Python's standard library, PyTorch and NumPy."""
    top = str(reference).partition(".")[0]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy", "__builtin__", "nt")


def _is_enum(function: Global, arguments: Any) -> bool:
    """Returns whether a call looks like a third-party Enum's: a class with one plain value."""
    if not isinstance(arguments, tuple) or len(arguments) != 1 or not _is_third_party(function):
        return False
    return function.name[:1].isupper() and isinstance(arguments[0], str | int | float)


def _key(key: Any) -> Any:
    """Returns a dictionary key that is safe to hash and compare.

    Numbers beyond 2^60 are refused: a file could choose many with the same hash, and so make
    insertion take quadratic time.
    """
    if isinstance(key, int | float) and not abs(key) < 2**60:
        raise ValueError("a dictionary key is too large a number")
    if isinstance(key, tuple) and not isinstance(key, Global):
        if len(key) > 64 or any(isinstance(part, tuple) for part in key):
            raise ValueError("a dictionary key is too long or nested")
        for part in key:
            _key(part)
    hash(key)
    return key


class _Machine:
    """The stack machine that a pickle is a program for.

    Attributes:
      stack, marks, memo: its state; `marks` are positions in the stack.
      calls: name -> function, the functions that it may call.
      persistent_load: function that gives the object for a persistent id; None if there are none.
      arguments_size: total size of all calls' arguments so far, in items or bytes.
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[..., Any]],
        persistent_load: Callable[[Any], Any] | None,
    ):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.calls = _CALLS | dict(calls)
        self.persistent_load = persistent_load
        self.arguments_size = 0

    def pop_to_mark(self) -> list[Any]:
        """Removes and returns the items above the last mark."""
        start = self.marks.pop()
        if start > len(self.stack):
            raise ValueError("a mark is above the top of the stack")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def call(self, function: Any, arguments: Any) -> Any:
        """Calls an allowed function.

        Returns:
          the result; an `Inert` for a harmless function.

        Raises:
          UserError: the function is not allowed, or the arguments exceed the limit.
        """
        if not isinstance(function, Global):
            raise TypeError("it calls something that is not a function")
        name = str(function)
        for old, new in _MODULES.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if name in _HARMLESS or name.startswith("numpy.random.") or _is_enum(function, arguments):
            return Inert(function)
        if name == "builtins.getattr":  # Enum members may be pickled like this.
            cls, attribute = arguments
            if isinstance(cls, Global) and _is_third_party(cls) and isinstance(attribute, str):
                return Inert(cls)
        if name == _REBUILD_SUBCLASS and str(arguments[0]) != _REBUILD_SUBCLASS:
            return self.call(arguments[0], arguments[2])  # The tensor, without its class.
        if name not in self.calls:
            raise UserError(
                f"it calls {function}, which weights do not need: refused (if it is a pickled "
                "module, save its state_dict() instead)"
            )
        self.arguments_size += sum(len(a) for a in arguments if hasattr(a, "__len__"))
        if self.arguments_size > _MAX_ARGUMENTS:
            raise UserError(
                f"its calls have arguments of more than {_MAX_ARGUMENTS:,} items or bytes, which "
                "weights do not need"
            )
        return self.calls[name](*arguments)

    def new(self, cls: Any) -> Any:
        """Returns a new object of a class: a dict or an `Inert`."""
        if not isinstance(cls, Global):
            raise TypeError("it makes an object of something that is not a class")
        return {} if str(cls) == "collections.OrderedDict" else Inert(cls)

    def extend(self, target: Any, items: list[Any]) -> None:
        """Appends items to a list; items for an `Inert` are ignored."""
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError("it appends to something that is not a list")

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Adds alternating keys and values to a dict; items for an `Inert` are ignored."""
        if len(items) % 2:
            raise ValueError("a dictionary key has no value")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Inert):
            raise TypeError("it sets items of something that is not a dictionary")

    def build(self, target: Any, state: Any) -> None:
        """Gives an array its state; the state of any other object is ignored."""
        if isinstance(target, _Array):
            target.build(state)
        elif not isinstance(target, Inert | dict | list):
            raise TypeError("it sets the state of an object that has none")

    def step(self, name: str, argument: Any) -> None:
        """Executes one opcode other than STOP; `pickletools` documents all opcodes.

        It is one function because it is one dispatch over the opcodes.
        """
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT"
                | "BINFLOAT" | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES"
                | "SHORT_BINBYTES" | "BINBYTES8" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE"
                | "BINUNICODE8" | "BYTEARRAY8"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append([])
            case "LIST" | "FROZENSET":
                stack.append(self.pop_to_mark())
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(stack) < count:
                    raise ValueError("a tuple is longer than the stack")
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                made: dict[Any, Any] = {}
                self.set_items(made, self.pop_to_mark())
                stack.append(made)
            case "APPEND":
                item = stack.pop()
                self.extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self.pop_to_mark()
                self.extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self.pop_to_mark()
                self.set_items(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[_key(argument)] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[_key(argument)])
            case "GLOBAL":
                stack.append(Global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not isinstance(attribute, str) or not isinstance(module, str):
                    raise TypeError("the name of a function or class is not a string")
                stack.append(Global(module, attribute))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "OBJ":
                function, *arguments = self.pop_to_mark()
                stack.append(self.call(function, arguments))
            case "INST":
                stack.append(self.call(Global(*argument.split(" ", 1)), self.pop_to_mark()))
            case "NEWOBJ":
                _, cls = stack.pop(), stack.pop()
                stack.append(self.new(cls))
            case "NEWOBJ_EX":
                _, _, cls = stack.pop(), stack.pop(), stack.pop()
                stack.append(self.new(cls))
            case "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            case "BINPERSID":
                if self.persistent_load is None:
                    raise ValueError("it refers to an object outside the pickle")
                stack.append(self.persistent_load(stack.pop()))
            case _:
                raise ValueError(f"the opcode {name} is not supported")


def read_pickle(
    file: File,
    *,
    calls: Mapping[str, Callable[..., Any]] | None = None,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads the containers, numbers, strings and arrays of a pickle.

    Args:
      file: a file whose position is the start of the pickle; reading leaves it at the end.
      calls: name -> function, the functions that the pickle may call besides the default ones.
      persistent_load: function from a persistent id to the object outside the pickle that it means.

    Returns:
      dicts, lists (also for sets), tuples, numbers, strings, bytes and NumPy arrays; an `Inert` for
      an object of an unknown class, and a `Global` for a reference to a class or function.

    Raises:
      UserError: the pickle calls another function, or it is damaged.
    """
    machine = _Machine(calls or {}, persistent_load)
    try:
        opcodes = pickletools.genops(cast("IO[bytes]", file))  # An mmap works, too.
        for steps, (opcode, argument, _) in enumerate(opcodes):
            if opcode.name == "STOP":
                return _finished(machine.stack.pop())
            if steps > _MAX_STEPS:
                raise UserError(
                    f"its pickle has more than {_MAX_STEPS:,} steps, which weights do not need"
                )
            machine.step(opcode.name, argument)
    except UserError:
        raise
    except Exception as e:  # A damaged pickle can raise anything.
        reason = "it refers to a missing object" if isinstance(e, LookupError) else str(e)
        raise UserError(f"it is damaged or not a weight file: {ascii(reason)[1:-1][:120]}") from e
    raise UserError("it is damaged: its pickle has no end")


def _finished(tree: Any) -> Any:
    """Replaces each `_Array` in nested dicts, lists and tuples by its array or dtype.

    Raises:
      UserError: the tree has more than `_MAX_STEPS` nodes or 32 levels.
    """
    seen = 0

    def walk(node: Any, depth: int) -> Any:
        nonlocal seen
        seen += 1
        if seen > _MAX_STEPS or depth > 32:
            raise UserError(
                f"its content has more than {_MAX_STEPS:,} nodes or 32 levels, which weights do "
                "not need"
            )
        if isinstance(node, _Array):
            return node.dtype if node.value is None else node.value
        if isinstance(node, dict):
            return {key: walk(value, depth + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(item, depth + 1) for item in node]
        if isinstance(node, tuple) and type(node) is tuple:
            return tuple(walk(item, depth + 1) for item in node)
        return node

    return walk(tree, 0)
