import re

import pytest
import torch

from mkd_fast.train.device import autocast, choose_device, computes_faster_in_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("there_is_one", "wanted"), [(True, GPU), (False, CPU)])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, there_is_one, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert choose_device("auto") == wanted


def test_a_device_by_name():
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cpuu", "", f"cuda:{torch.cuda.device_count()}"])
def test_a_device_that_is_not_there(name):
    message = f"run.device must be a device of this machine, got {name!r} ("
    with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({}, False),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_cpus_with_bfloat16_instructions(monkeypatch, capabilities, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_faster_in_bfloat16(CPU) is wanted


def test_a_torch_that_does_not_know_its_cpu(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_faster_in_bfloat16(CPU)


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_gpus_with_bfloat16_units(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert computes_faster_in_bfloat16(GPU) is wanted


@pytest.mark.parametrize(
    ("precision", "is_fast", "dtype"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_precision(monkeypatch, precision, is_fast, dtype):
    monkeypatch.setattr("mkd_fast.train.device.computes_faster_in_bfloat16", lambda _: is_fast)
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
