import platform
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from mkd_fast import environment as room
from mkd_fast.environment import environment
from mkd_fast.losses import ops


def test_versions():
    versions = environment()["versions"]
    assert versions["torch"] == metadata.version("torch")
    assert versions["mkd_fast"] == metadata.version("mkd_fast")
    assert list(versions) == ["python", *room.PACKAGES]


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(room, "PACKAGES", ("torch", "no-such-package"))
    assert environment()["versions"]["no-such-package"] == "not installed"


def test_devices(monkeypatch):
    gpu = SimpleNamespace(name="Some GPU", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    devices = environment()["devices"]
    assert list(devices) == ["cpu", "cuda:0", "cuda:1"]
    assert devices["cuda:1"] == "Some GPU, 80 GiB"
    assert f"{torch.get_num_threads()} threads" in devices["cpu"]


def test_a_cpu_is_named_by_its_generation_too():
    cpuinfo = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    assert room.cpu_model(cpuinfo * 2) == "AMD EPYC (family 25, model 17)"
    assert room.cpu_model("model name : Some Arm\n") == "Some Arm"
    assert room.cpu_model("") == (platform.processor() or platform.machine())


def test_kernels_that_are_built_name_their_instruction_set(monkeypatch):
    monkeypatch.setattr(ops, "missing_kernels", lambda device_type: None)
    capability = SimpleNamespace(cpu_capability=lambda: "AVX2")
    monkeypatch.setattr(room.torch.ops, "mkd_fast", capability)
    assert environment()["kernels"]["cpu (C++)"] == "built, AVX2"


def test_kernels_that_are_missing_say_why(monkeypatch):
    monkeypatch.setattr(ops, "missing_kernels", lambda device_type: f"no {device_type} here")
    assert environment()["kernels"] == {
        "cpu (C++)": "not built: no cpu here",
        "gpu (Triton)": "none: no cuda here",
    }


@pytest.mark.parametrize(
    ("has_gpu", "words"), [(True, "compiled at first use"), (False, "no GPU here (kernels run in")]
)
def test_triton_with_and_without_a_gpu(monkeypatch, has_gpu, words):
    monkeypatch.setattr(ops, "missing_kernels", lambda device_type: "x" * (device_type == "cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(room.torch.ops, "mkd_fast", SimpleNamespace(cpu_capability=str))
    assert environment()["kernels"]["gpu (Triton)"].startswith(words)
