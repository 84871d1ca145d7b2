import gc

import pytest
import torch
from tiny_job import write_job
from torch.profiler import ProfilerActivity, profile

from mkd_fast.train.config import load
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.optimizer import make_optimizer
from mkd_fast.train.planning.rehearsal import (
    BATCH,
    GRADIENTS,
    MOMENTS,
    TEACHER_HEAD,
    WEIGHTS,
    rehearse_step,
)
from mkd_fast.train.planning.stages import build, distilling
from mkd_fast.train.planning.workload import FromLength

CPU = torch.device("cpu")


def allocated_peak(act):
    """The most bytes that torch's allocator had handed out at once beyond those before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        act()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


@pytest.mark.parametrize(
    ("kind", "set_"),
    [
        pytest.param("sequence_classification", {}, id="an encoder"),
        pytest.param("causal_lm", {}, id="chunks of a head, and a teacher's head"),
        pytest.param("causal_lm", {"capture.keep": '"topk:4"'}, id="sparse targets"),
    ],
)
def test_a_rehearsed_step_holds_what_a_real_one_holds(tmp_path, kind, set_):
    config = load(write_job(tmp_path, kind=kind), {"loss.hidden_weight": "0.0", **set_})
    work = FromLength(12).workload(config)
    task, step = distilling(config, work)
    optim = OptimConfig(batch_size=8, precision="float32")
    found = rehearse_step(lambda: build(config, work.student), task, step, optim, CPU)

    model = build(config, work.student).train()
    optimizer = make_optimizer(model, optim)

    def act():
        out = task.loss(model, step)
        out.loss.backward()
        del out
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    act()  # which makes the state
    real = allocated_peak(act)
    staying = sum(found.parts.get(part, 0) for part in (WEIGHTS, MOMENTS, BATCH, TEACHER_HEAD))
    # kernels hold a little that no operation returns, and Python names some tensors longer than C++
    assert abs(found.num_bytes - staying - real) <= 0.03 * real
    num_bytes = sum(p.nbytes for p in model.parameters())
    assert found.parts[WEIGHTS] == num_bytes + sum(b.nbytes for b in model.buffers())
    assert found.parts[MOMENTS] == 2 * num_bytes + 4 * len(list(model.parameters()))


def test_parts_of_a_step_keep_the_gradients_of_those_before(tmp_path):
    config = load(write_job(tmp_path))
    work = FromLength(12).workload(config)

    def peak(accumulate):
        task, step = distilling(config, work)
        optim = OptimConfig(batch_size=8, accumulate=accumulate, precision="float32")
        return rehearse_step(lambda: build(config, work.student), task, step, optim, CPU)

    whole, in_parts = peak(1), peak(2)
    assert in_parts.in_heap > whole.in_heap  # of the same batch: its gradients come on top
    assert in_parts.in_heap - whole.in_heap <= in_parts.parts[GRADIENTS]


@pytest.mark.parametrize(
    "settings",
    [{"precision": "float32"}, {"precision": "bfloat16", "attention": "eager"}],
    ids=["float32", "bfloat16, plain products"],
)
def test_layers_that_are_computed_twice_keep_less(settings, tmp_path):
    config = load(write_job(tmp_path))
    work = FromLength(12).workload(config)
    task, step = distilling(config, work)

    def held(checkpointing):
        optim = OptimConfig(batch_size=8, checkpointing=checkpointing, **settings)
        found = rehearse_step(lambda: build(config, work.student), task, step, optim, CPU)
        return found.in_heap

    assert held(checkpointing=True) < held(checkpointing=False)


def test_moments_of_8_bits_take_a_quarter(tmp_path):
    pytest.importorskip("torchao", reason="they are torchao's")
    config = load(write_job(tmp_path))
    work = FromLength(12).workload(config)
    work.student.intermediate_size = 2048  # smaller matrices stay as they are
    task, step = distilling(config, work)

    def found(name):
        optim = OptimConfig(batch_size=8, optimizer=name)
        return rehearse_step(lambda: build(config, work.student), task, step, optim, CPU)

    plain, low = found("adamw").parts[MOMENTS], found("adamw8bit").parts[MOMENTS]
    assert plain / 4 < low < plain / 3  # small ones, such as biases, stay as they are


def test_the_random_state_stays(tmp_path):
    config = load(write_job(tmp_path))
    work = FromLength(12).workload(config)
    task, step = distilling(config, work)
    before = torch.get_rng_state()
    rehearse_step(lambda: build(config, work.student), task, step, OptimConfig(), CPU)
    assert torch.equal(before, torch.get_rng_state())
