"""Pickles read without running them.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program names.
This one builds containers, numbers, strings and NumPy arrays; a class it does not know becomes an
`Inert` that does nothing; a call of anything outside a short list refuses the file, by name. What it
builds is never larger than a fixed number of steps allows.
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

# A checkpoint with its optimizer's state takes some hundred thousand.
_STEPS = 2_000_000
# What calls may be given, all together, in items and bytes: a call copies what it gets.
_ARGUMENTS = 2**28


class Global(NamedTuple):
    """A name that a pickle asks for: a class or a function, neither looked up nor called."""

    module: str
    name: str

    def __str__(self) -> str:
        return ascii(f"{self.module}.{self.name}")[1:-1][:120]  # shown on a terminal


class Inert:
    """An object of a class that weights do not need: its name, and nothing it could do."""

    def __init__(self, of: Global):
        self.of = of

    def __repr__(self) -> str:
        return f"<{self.of}>"


class _Array:
    """A NumPy array or type on its way: its contents come with a later step."""

    def __init__(self, dtype: np.dtype | None = None):
        self.dtype = dtype
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if self.dtype is not None:  # of a type: (version, byte order, ...)
            self.dtype = self.dtype.newbyteorder({"|": "=", "=": "="}.get(state[1], state[1]))
            return
        _, shape, of, column_major, data = state
        self.value = _frombuffer(data, of, shape, "F" if column_major else "C")


def _dtype(code: Any, *_: Any) -> _Array:
    dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 8 else None
    if dtype is None or dtype.kind not in "biufc" or dtype.fields or dtype.subdtype:
        raise ValueError("an array of objects")
    return _Array(dtype)


def _scalar(of: _Array, data: bytes) -> Any:
    return np.frombuffer(data, of.dtype, 1)[0]


def _frombuffer(data: bytes, of: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(of, _Array) or of.dtype is None:
        raise ValueError("an array of objects")
    flat = np.frombuffer(data, of.dtype)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


def _pairs(items: Any = ()) -> dict[Any, Any]:
    return {_key(k): v for k, v in (items.items() if isinstance(items, dict) else items)}


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8", "utf8"):
        raise ValueError(f"text in {encoding[:20]!r}")
    return text.encode(encoding)


def _items(items: Any = ()) -> list[Any]:
    return [_key(item) for item in items]


# What a pickle may call. Nothing here takes more room than its arguments.
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
# Modules that had other names when the pickle was written, or in protocol 2.
_MODULES = {"numpy._core.": "numpy.core.", "__builtin__.": "builtins.", "copy_reg.": "copyreg."}
_PATHS = ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
# What it may call in vain.
_HARMLESS = {
    "copyreg._reconstructor",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    "torch.device",
    "torch.Generator",
    "datetime.datetime",
    "datetime.timedelta",
    "uuid.UUID",
}


# A tensor of a subclass: (function, class, the function's arguments, state).
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"


def _is_foreign(of: Global) -> bool:
    """Whether a name is of neither Python's nor PyTorch's own modules, as a project's class is."""
    top = str(of).partition(".")[0]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy", "__builtin__", "nt")


def _is_enum(function: Global, arguments: Any) -> bool:
    """Whether a call is that of a project's Enum: a class, given one plain value."""
    if not isinstance(arguments, tuple) or len(arguments) != 1 or not _is_foreign(function):
        return False
    return function.name[:1].isupper() and isinstance(arguments[0], str | int | float)


def _key(key: Any) -> Any:
    """A dictionary's key, if it is one that cannot take for ever to compare: numbers beyond 2^60 have
    hashes that a file can make equal at will."""
    if isinstance(key, int | float) and not abs(key) < 2**60:
        raise ValueError("a number that is no key")
    if isinstance(key, tuple) and not isinstance(key, Global):
        if len(key) > 64 or any(isinstance(part, tuple) for part in key):
            raise ValueError("a key that is too deep")
        for part in key:
            _key(part)
    hash(key)
    return key


class _Machine:
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
        self.spent = 0

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        if start > len(self.stack):
            raise ValueError("a mark above the stack")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global):
            raise TypeError("a call of what is no function")
        name = str(function)
        for old, new in _MODULES.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if name in _HARMLESS or name.startswith("numpy.random.") or _is_enum(function, arguments):
            return Inert(function)
        if name == "builtins.getattr":  # of an Enum, by name
            of, attribute = arguments
            if isinstance(of, Global) and _is_foreign(of) and isinstance(attribute, str):
                return Inert(of)
        if name == _SUBCLASS and str(arguments[0]) != _SUBCLASS:
            return self.call(arguments[0], arguments[2])  # of a tensor, whatever its class
        if name not in self.calls:
            raise UserError(
                f"it asks to call {function}, which no weights need: refused (of a module saved "
                "whole, save the state_dict() instead)"
            )
        self.spent += sum(len(a) for a in arguments if hasattr(a, "__len__"))
        if self.spent > _ARGUMENTS:
            raise UserError("it copies the same things over and over, which no weights do")
        return self.calls[name](*arguments)

    def new(self, of: Any) -> Any:
        if not isinstance(of, Global):
            raise TypeError("an object of no class")
        return {} if str(of) == "collections.OrderedDict" else Inert(of)

    def put(self, target: Any, items: list[Any]) -> None:
        """Adds to a list, or what stands for a subclass of one."""
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError("items for what is no list")

    def set(self, target: Any, items: list[Any]) -> None:
        """Adds keys and values, in turn, to a dictionary, or what stands for a subclass of one."""
        if len(items) % 2:
            raise ValueError("a key without a value")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Inert):
            raise TypeError("keys for what is no dictionary")

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, _Array):
            target.build(state)
        elif not isinstance(target, Inert | dict | list):
            raise TypeError("a state for what has none")

    def step(self, name: str, argument: Any) -> None:
        """One opcode other than STOP; see `pickletools` for what each means."""
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
                    raise ValueError("a tuple of what is not there")
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                made: dict[Any, Any] = {}
                self.set(made, self.pop_to_mark())
                stack.append(made)
            case "APPEND":
                item = stack.pop()
                self.put(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self.pop_to_mark()
                self.put(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set(stack[-1], [key, value])
            case "SETITEMS":
                items = self.pop_to_mark()
                self.set(stack[-1], items)
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
                    raise TypeError("a name that is no text")
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
                _, of = stack.pop(), stack.pop()
                stack.append(self.new(of))
            case "NEWOBJ_EX":
                _, _, of = stack.pop(), stack.pop(), stack.pop()
                stack.append(self.new(of))
            case "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            case "BINPERSID":
                if self.persistent_load is None:
                    raise ValueError("something kept outside of it")
                stack.append(self.persistent_load(stack.pop()))
            case _:
                raise ValueError(f"the opcode {name}")


def read_pickle(
    file: File,
    *,
    calls: Mapping[str, Callable[..., Any]] | None = None,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """What a pickle describes, as far as it is containers, numbers, strings and arrays.

    Args:
      file: at the pickle's beginning; it is left at its end.
      calls: name -> function, what it may call besides the usual.
      persistent_load: what stands for an object kept outside the pickle.

    Returns:
      dicts, lists (of sets, too), tuples, numbers, strings, bytes and NumPy arrays; `Inert` for an
      object of an unknown class, and `Global` for a class or function that is only named.

    Raises:
      UserError: it asks to call something else, or it is damaged.
    """
    machine = _Machine(calls or {}, persistent_load)
    try:
        opcodes = pickletools.genops(cast("IO[bytes]", file))  # a mapped file reads as one
        for steps, (opcode, argument, _) in enumerate(opcodes):
            if opcode.name == "STOP":
                return _finished(machine.stack.pop())
            if steps > _STEPS:
                raise UserError(f"it takes more than {_STEPS:,} steps to read, which no weights do")
            machine.step(opcode.name, argument)
    except UserError:
        raise
    except Exception as e:  # whatever a damaged pickle leads to
        what = "something that is not there" if isinstance(e, LookupError) else str(e)
        raise UserError(f"it is damaged, or no file of weights: {ascii(what)[1:-1][:120]}") from e
    raise UserError("it is damaged: it has no end")


def _finished(tree: Any) -> Any:
    """The tree with arrays in place of `_Array`, in the dicts, lists and tuples nearest to its root."""
    seen = 0

    def walk(node: Any, depth: int) -> Any:
        nonlocal seen
        seen += 1
        if seen > _STEPS or depth > 32:
            raise UserError("it is nested deeper, or wider, than any weights are")
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
