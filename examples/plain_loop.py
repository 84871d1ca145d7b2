"""Distillation in a plain PyTorch loop. Yours go in at the two comments; nothing else changes."""

import torch
from torch import nn

from mkd_fast import kd_loss

VOCAB_SIZE = 500


def language_model(width: int) -> nn.Module:  # yours: token ids [B, S] -> logits [B, S, V]
    return nn.Sequential(nn.Embedding(VOCAB_SIZE, width), nn.Linear(width, VOCAB_SIZE))


torch.manual_seed(0)
teacher, student = language_model(64).eval(), language_model(32)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
batches = [torch.randint(VOCAB_SIZE, (8, 33)) for _ in range(20)]  # yours: token ids of text
for step, ids in enumerate(batches):
    with torch.no_grad():
        teacher_logits = teacher(ids[:, :-1])
    logits = student(ids[:, :-1])
    out = kd_loss(logits, teacher_logits, labels=ids[:, 1:], temperature=2.0, ce_weight=0.1)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    print(f"step {step}: loss {out.loss:.3f}, kd {out.kd:.3f}, ce {out.ce:.3f}")
