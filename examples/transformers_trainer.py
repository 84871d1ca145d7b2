"""Distillation in transformers.Trainer: a subclass whose loss is kd_loss.

Yours: ``AutoModelForCausalLM.from_pretrained`` in place of the random teacher, and a tokenized
dataset with ``input_ids`` and ``labels`` (-100: does not count) in place of the random ids.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from mkd_fast import copy_init, kd_loss


class KDTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")[:, 1:]  # token i is predicted from those before it
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = teacher(**inputs).logits[:, :-1]
        num_tokens = num_items_in_batch / self.args.world_size  # processes average their gradients
        loss = kd_loss(
            outputs.logits[:, :-1], teacher_logits, labels, ce_weight=0.1, num_tokens=num_tokens
        ).loss
        return (loss, outputs) if return_outputs else loss


args = TrainingArguments("runs/trainer", max_steps=20, logging_steps=5, learning_rate=1e-2)
size = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
teacher = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **size)).to(args.device).eval()
student = copy_init(teacher, depth="stride", num_layers=2)
dataset = [{"input_ids": row, "labels": row} for row in torch.randint(500, (64, 32))]
KDTrainer(student, args, train_dataset=dataset).train()
