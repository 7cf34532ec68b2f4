from __future__ import annotations

import json
import math
import os
import random
from collections import OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptkit.errors import CheckpointError
from adaptkit.training.rng import preserved_rng, rng_state, seed_everything, set_rng_state
from adaptkit.training.serialization import load_nested, save_nested

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
NESTS = st.recursive(
    PLAIN,
    lambda nest: st.lists(nest) | st.lists(nest).map(tuple) | st.dictionaries(st.text() | st.integers(), nest),
    max_leaves=20,
)


def round_trip(folder: Path, value: Any) -> Any:
    save_nested(folder / "part", value)
    return load_nested(folder / "part")


def identical(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        same_keys = [(type(key), key) for key in a] == [(type(key), key) for key in b]
        return same_keys and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return bool(a == b)


@given(NESTS)
@settings(max_examples=300, deadline=None)
def test_a_nest_of_plain_values_comes_back_with_every_type_and_value(tmp_path_factory, value):
    assert identical(round_trip(tmp_path_factory.mktemp("nest"), value), value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).bfloat16(),
        torch.randn(2, 3).to(torch.float8_e4m3fn),
        torch.tensor([math.nan, math.inf, -math.inf, -0.0]),
        torch.tensor(7.5),
        torch.empty(0, 3),
        torch.arange(256, dtype=torch.uint8),
        torch.tensor([True, False]),
        torch.tensor(2**62),
        torch.randn(6, 4).t(),
        torch.randn(8, 8)[1:5, 2:7],
        torch.randn(3, 1).expand(3, 5),
        torch.nn.Parameter(torch.randn(2, 2)),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_a_tensor_comes_back_bit_for_bit(tmp_path, tensor):
    loaded = round_trip(tmp_path, {"deep": [(tensor,)]})["deep"][0][0]
    assert (loaded.dtype, loaded.shape, loaded.requires_grad) == (tensor.dtype, tensor.shape, False)
    as_bytes = [t.detach().contiguous().flatten().view(torch.uint8) for t in (loaded, tensor)]
    assert torch.equal(*as_bytes)


def test_tensors_that_share_memory_are_all_there(tmp_path):
    base = torch.arange(12.0)
    value = {"a": base, "again": base, "row": base.view(3, 4)[1], "empty": base[:0], "empty too": base[:0]}
    loaded = round_trip(tmp_path, value)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in value.items())


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    loaded = round_trip(tmp_path, {"a": torch.ones(5000)})
    tensors = tmp_path / "part.safetensors"
    tensors.write_bytes(b"\0" * tensors.stat().st_size)
    assert torch.equal(loaded["a"], torch.ones(5000))


def test_no_tensor_file_without_tensors_even_where_one_was(tmp_path):
    save_nested(tmp_path / "part", torch.ones(2))
    assert round_trip(tmp_path, [1]) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["part.json"]


def test_an_ordered_dict_keeps_its_order(tmp_path):
    assert list(round_trip(tmp_path, OrderedDict(b=1, a=2)).items()) == [("b", 1), ("a", 2)]


class Momentum:
    """What a careless optimizer keeps in its state."""


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Momentum(), "Momentum"),
        (np.float64(1.0), "numpy.float64"),
        (np.ones(2), "numpy.ndarray"),
        ({1, 2}, "builtins.set"),
        (b"bytes", "builtins.bytes"),
        (defaultdict(dict), "collections.defaultdict"),
        ({(1, 2): 0}, "(1, 2)"),
        ({True: 0}, "True"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
    ],
)
def test_anything_else_is_refused_by_name_and_place(tmp_path, value, named):
    with pytest.raises(CheckpointError) as error:
        save_nested(tmp_path / "optimizer", {"state": {0: {"momentum": value}}})
    text = str(error.value)
    assert named in text
    assert "optimizer/state/0/momentum" in text
    assert "fix:" in text
    assert not list(tmp_path.iterdir())


def test_a_nest_that_contains_itself_is_refused(tmp_path):
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CheckpointError, match="contains itself"):
        save_nested(tmp_path / "part", value)


HOSTILE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"NaN",
    b"[" * 100_000,
    b"1" * 10_000,
    b'{"$tensor": "0:part/b"}',
    b'{"$tensor": "../../etc/passwd"}',
    b'{"$tensor": ["0:part/a"]}',
    b'{"$tuple": 3}',
    b'{"$tuple": [], "more": 1}',
    b'{"$float": "1e5"}',
    b'{"$dict": [[true, 1]]}',
    b'{"$dict": [[[], 1]]}',
    b'{"$dict": [[1]]}',
    b'{"$object": "os.system", "args": ["touch owned"]}',
    b"[]",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_malformed_structure_is_an_error_and_nothing_else(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    save_nested(tmp_path / "part", {"a": torch.ones(2)})
    (tmp_path / "part.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="part"):
        load_nested(tmp_path / "part")
    assert sorted(os.listdir(tmp_path)) == ["part.json", "part.safetensors"]


def test_malformed_tensor_files_are_an_error(tmp_path):
    save_nested(tmp_path / "part", {"a": torch.ones(200)})
    file = tmp_path / "part.safetensors"
    whole = file.read_bytes()
    pickle_like = b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."
    huge_header = (2**62).to_bytes(8, "little") + b"{}"
    header = json.dumps({"0:part/a": {"dtype": "F32", "shape": [200], "data_offsets": [0, 1 << 40]}}).encode()
    beyond_the_end = len(header).to_bytes(8, "little") + header
    for content in (b"", whole[:7], whole[:-1], whole + b"x", pickle_like, huge_header, beyond_the_end):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"part\.safetensors"):
            load_nested(tmp_path / "part")
    file.unlink()
    with pytest.raises(CheckpointError, match="not there"):
        load_nested(tmp_path / "part")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"part\.json"):
        load_nested(tmp_path / "part")


def draws() -> list[Any]:
    return [random.random(), np.random.standard_normal(3).tolist(), torch.randn(3).tolist()]


def test_generators_go_on_where_their_saved_state_was_taken(tmp_path):
    with preserved_rng():
        seed_everything(3)
        np.random.standard_normal()
        save_nested(tmp_path / "rng", rng_state())
        expected = draws()
        seed_everything(4)
        assert draws() != expected
        set_rng_state(load_nested(tmp_path / "rng"))
        assert draws() == expected


def test_seeding_makes_every_generator_repeat():
    with preserved_rng():
        seed_everything(11)
        first = draws()
        seed_everything(11)
        assert draws() == first


def test_preserved_rng_undoes_every_draw_even_after_an_error():
    with preserved_rng():
        seed_everything(5)
        expected = draws()
        seed_everything(5)
        with suppress(KeyError), preserved_rng():
            draws()
            raise KeyError
        assert draws() == expected


@pytest.mark.parametrize("part", ["python", "numpy", "torch"])
def test_a_state_of_something_else_is_a_checkpoint_error(part):
    with preserved_rng():
        for wrong in (None, 3, {}):
            with pytest.raises(CheckpointError, match="random number generators"):
                set_rng_state({**rng_state(), part: wrong})
