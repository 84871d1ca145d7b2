"""The gauge: operations a second as a share of the peak, and memory."""

import torch
from tiny_problem import Model
from transformers import BertConfig, BertForSequenceClassification

from mkd_fast.train import gauge as gauges
from mkd_fast.train.flops import Flops
from mkd_fast.train.gauge import Gauge, peak_memory_bytes
from mkd_fast.train.shares import Share

CPU = torch.device("cpu")
SHARE = Share((), num_counted=3, num_tokens=21, num_pairs=3 * 49)


def bert():
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=24,
    )
    return BertForSequenceClassification(config)


def test_what_was_done_since_the_last_reading(monkeypatch):
    monkeypatch.setattr(gauges, "_known_peak", lambda *of: 1e6)
    model = bert()
    gauge = Gauge(model, CPU, "float32")
    gauge.see(SHARE)
    gauge.see(SHARE)
    assert gauge.read(4.0)["peak_share"] == 2 * Flops.of(model).of_share(SHARE) / 4.0 / 1e6
    assert gauge.read(4.0)["peak_share"] == 0.0


def test_a_model_that_transformers_does_not_know_has_no_share():
    gauge = Gauge(Model(), CPU, "auto")
    gauge.see(SHARE)
    assert set(gauge.read(1.0)) == {"peak_memory_bytes"}


def test_memory_is_the_most_that_ever_was():
    held = torch.ones(16 << 20)
    most = peak_memory_bytes(CPU)
    assert most > held.nbytes
    del held
    assert peak_memory_bytes(CPU) >= most


def test_a_peak_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(gauges, "peak_flops", lambda *of: measured.append(of) or 1e9)
    gauges._known_peak.cache_clear()
    try:
        assert [gauges._known_peak(CPU, torch.float32, 3) for _ in range(2)] == [1e9, 1e9]
    finally:
        gauges._known_peak.cache_clear()
    assert measured == [(CPU, torch.float32)]
