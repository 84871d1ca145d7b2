"""Running a model over calibration text changes nothing of it and shows which tokens count."""

from types import SimpleNamespace

import pytest
import torch

from mkd_fast.student.calibration import run_over

IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
BATCH = {"input_ids": IDS, "attention_mask": MASK}
LAYERS = "bert.encoder.layer"


def test_each_batch_is_run_and_its_tokens_are_told(make_teacher):
    teacher = make_teacher("Bert", "ForMaskedLM").train()
    teacher.config.use_cache = True
    seen, head = [], []
    watching = [
        teacher.get_submodule(LAYERS)[0].register_forward_hook(
            lambda layer, inputs, output: seen.append(
                (layer.training, torch.is_grad_enabled(), teacher.config.use_cache)
            )
        ),
        teacher.cls.register_forward_hook(lambda *_: head.append(1)),
    ]
    batches = [BATCH, SimpleNamespace(**BATCH), {"input_ids": [[4]], "attention_mask": [[1]]}]
    masks = list(run_over(teacher, iter(batches), LAYERS))
    assert [mask.tolist() for mask in masks] == [MASK.bool().tolist()] * 2 + [[[True]]]
    assert seen == [(False, False, False)] * 3
    assert not head
    assert teacher.training
    assert teacher.config.use_cache
    for hook in watching:
        hook.remove()


def test_stopping_early_leaves_the_model_as_it_was(make_teacher):
    teacher = make_teacher("Bert").train()
    passes = run_over(teacher, [BATCH] * 2, LAYERS)
    next(passes)
    assert not teacher.training
    passes.close()
    assert teacher.training


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([{"input_ids": IDS}], TypeError, "must have input_ids and attention_mask, got dict"),
        ([(IDS, MASK)], TypeError, "must have input_ids and attention_mask, got tuple without"),
        ([], ValueError, "at least one token that its attention_mask counts, got none"),
        ([{**BATCH, "attention_mask": MASK * 0}], ValueError, "at least one token that its"),
    ],
)
def test_text_that_says_nothing_is_refused(make_teacher, batches, error, message):
    with pytest.raises(error, match=f"^copy_init: .*{message}"):
        list(run_over(make_teacher("Bert"), batches, LAYERS))
