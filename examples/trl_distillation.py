"""TRL's on-policy DistillationTrainer with kd_loss in place of its own loss.

Yours: ``from_pretrained`` in place of the random teacher and the tokenizer of bytes, and a dataset
with a column ``prompt``. TRL's options beta and temperature keep their meaning; with the
temperature comes its square, on value and gradient.
"""

import torch
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel
from trl import DistillationConfig, DistillationTrainer

from mkd_fast import LossSpec, copy_init, kd_loss


class KDTrainer(DistillationTrainer):
    def _compute_loss(self, student, inputs, num_items_in_batch):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        model_inputs = {"attention_mask": attention, "logits_to_keep": mask.shape[1] + 1}
        logits = student(ids, **model_inputs).logits[:, :-1]  # i - 1 predicts token i
        with torch.no_grad():
            teacher_logits = self.teacher_model(ids, **model_inputs).logits[:, :-1]
            entropy = torch.distributions.Categorical(logits=logits[mask]).entropy().sum()
        spec = LossSpec("jsd", beta=self.beta, temperature=self.temperature)
        out = kd_loss(logits, teacher_logits, mask=mask, num_tokens=num_items_in_batch, spec=spec)
        return out.loss, entropy, mask.sum()


config = GPT2Config(vocab_size=259, n_embd=64, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=1)
teacher = GPT2LMHeadModel(config).eval()
student = copy_init(teacher, depth="stride", num_layers=2)
args = DistillationConfig("runs/trl", max_completion_length=8, learning_rate=1e-2, bf16=False)
prompts = [{"prompt": f"{i} + {i} = "} for i in range(56)]
KDTrainer(student, teacher, args, prompts, processing_class=ByT5Tokenizer(extra_ids=0)).train()
