"""Nests of plain values and tensors as one JSON file and one safetensors file; nothing is ever executed.

JSON alone cannot tell a tuple from a list, an int key from a str key, or write infinity. What it cannot
say is an object with one key that begins with ``$``:

    {"$tuple": [...]}   {"$dict": [[key, value], ...]}   {"$float": "-inf"}   {"$tensor": "name"}
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptkit.errors import CheckpointError

ALLOWED = "dict (keys str or int), list, tuple, None, bool, int, float, str and dense torch tensors"
NON_FINITE: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
DTYPES = frozenset(
    {torch.bool, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2}
    | {torch.float16, torch.float32, torch.float64}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)


def save_nested(path_stem: Path, value: Any) -> None:
    """Writes a nest to ``<stem>.json`` and, when it holds tensors, ``<stem>.safetensors``.

    Values, key types, tuples and tensors (dtype, shape, bits) come back as they were. Device, strides,
    ``requires_grad`` and shared memory do not: a tensor is read back contiguous, on the CPU, on its own.

    Args:
        path_stem: Where, without the ending.
        value: Any nest of dict (keys str or int), list, tuple, None, bool, int, float, str and tensors.

    Raises:
        CheckpointError: Something else is in the nest, or the files cannot be written.
    """
    json_file, tensor_file = _files(path_stem)
    encoder = _Encoder()
    try:
        text = json.dumps(encoder.encode(value, path_stem.name), indent=1, allow_nan=False)
    except (RecursionError, ValueError) as error:
        raise CheckpointError(
            f"the state contains itself, is nested too deep, or has an integer that is too large: {error}",
            where=str(json_file),
            allowed=ALLOWED,
            fix="save a flat copy of it",
        ) from error
    try:
        tensor_file.unlink(missing_ok=True)
        if encoder.tensors:
            save_file(encoder.tensors, tensor_file)
        json_file.write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot be written: {error}", where=str(json_file), fix="free space or choose a folder that can be written"
        ) from error


def load_nested(path_stem: Path) -> Any:
    """Reads what `save_nested` wrote; tensors on the CPU.

    Raises:
        CheckpointError: A file is missing, malformed, or the two do not belong together.
    """
    json_file, tensor_file = _files(path_stem)
    decoder = _Decoder(json_file, _read_tensors(tensor_file))
    try:
        value = decoder.decode(json.loads(json_file.read_text(encoding="utf-8"), parse_constant=decoder.refuse))
    except (OSError, ValueError, RecursionError) as error:
        raise _malformed(json_file, str(error)) from error
    unused = decoder.tensors.keys() - decoder.used
    if unused:
        raise _malformed(tensor_file, f"holds tensors that {json_file.name} does not name: {sorted(unused)[:5]}")
    return value


def _files(path_stem: Path) -> tuple[Path, Path]:
    return path_stem.with_name(path_stem.name + ".json"), path_stem.with_name(path_stem.name + ".safetensors")


def _malformed(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} cannot be read: {why}",
        where=str(path),
        fix="use another checkpoint; this one is damaged or was not written by adaptkit",
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            # The copy lets go of the file: a tensor mapped into it would keep it open and depend on it.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise _malformed(path, str(error)) from error


class _Encoder:
    """Turns a nest into JSON and collects its tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._storages: set[int] = set()

    def encode(self, value: Any, path: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        if kind is list:
            return self._items(value, path)
        if kind is tuple:
            return {"$tuple": self._items(value, path)}
        if kind in (dict, OrderedDict):
            return self._dict(value, path)
        if isinstance(value, Tensor):
            return {"$tensor": self._tensor(value, path)}
        self._refuse(f"a {_class(value)}", path)

    def _items(self, values: list[Any] | tuple[Any, ...], path: str) -> list[Any]:
        return [self.encode(value, f"{path}/{index}") for index, value in enumerate(values)]

    def _dict(self, value: dict[Any, Any], path: str) -> dict[str, Any]:
        for key in value:
            if type(key) not in (str, int):
                self._refuse(f"a dict with the key {key!r}, a {_class(key)}", path)
        pairs = [[key, self.encode(item, f"{path}/{key}")] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(pairs)
        return {"$dict": pairs}

    def _tensor(self, tensor: Tensor, path: str) -> str:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            self._refuse(f"a tensor of the class {_class(tensor)}, which carries more than its numbers", path)
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            self._refuse(f"a tensor ({tensor.dtype}, {tensor.layout}, on {tensor.device})", path)
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        if storage in self._storages:
            plain = plain.clone()
        self._storages.add(storage)
        name = f"{len(self.tensors)}:{path.encode('ascii', 'backslashreplace').decode()}"
        self.tensors[name] = plain
        return name

    def _refuse(self, found: str, path: str) -> NoReturn:
        raise CheckpointError(
            f"a checkpoint cannot hold {found}",
            where=path,
            allowed=ALLOWED,
            fix="convert it to one of these before it is saved (float(x), list(x), dict(x), tensor.clone(); an "
            "optimizer or strategy does it in its state_dict or training_state), and back when it is loaded",
        )


class _Decoder:
    """Turns JSON and tensors back into a nest; a ValueError says what is malformed."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        self.path = path
        self.tensors = tensors
        self.used: set[str] = set()

    def refuse(self, constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if not any(key.startswith("$") for key in value):
            return {key: self.decode(item) for key, item in value.items()}
        match value:
            case {"$tuple": list(items), **rest} if not rest:
                return tuple(self.decode(item) for item in items)
            case {"$dict": list(pairs), **rest} if not rest:
                return dict(self._pair(pair) for pair in pairs)
            case {"$float": str(name), **rest} if not rest and name in NON_FINITE:
                return NON_FINITE[name]
            case {"$tensor": str(name), **rest} if not rest and name in self.tensors:
                self.used.add(name)
                return self.tensors[name]
        raise ValueError(f"{str(value)[:80]} stands for nothing, or for a tensor that is not there")

    def _pair(self, pair: Any) -> tuple[str | int, Any]:
        match pair:
            case [str(key) | int(key), value] if not isinstance(key, bool):
                return key, self.decode(value)
        raise ValueError(f"{str(pair)[:80]} is not a key and a value")


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
