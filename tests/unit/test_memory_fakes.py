from __future__ import annotations

import pytest
import torch

from adaptkit.memory.fakes import claimed_device


@pytest.mark.parametrize(("here", "claimed"), [(False, "cpu"), (True, "cuda")])
def test_fake_tensors_claim_to_be_on_a_gpu_only_where_there_is_one(
    here: bool, claimed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On machines without one pip installs a torch with CUDA too, and autograd fails there on such tensors."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    assert claimed_device(torch.device("cuda")).type == claimed
    assert claimed_device(torch.device("cpu")).type == "cpu"
