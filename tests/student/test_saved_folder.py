"""A saved student loads in a process that has never heard of mkd_fast."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_tokenizer import unigram

from mkd_fast.student import copy_init, trim_tokenizer, used_token_ids

TEXTS = ["turn the light on", "light on"]
LOAD = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.set_num_threads(1)
found = {}
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(json.loads(sys.argv[1]), padding=True, return_tensors="pt")
    logits = model(**inputs).logits
    found[folder] = [inputs["input_ids"].tolist(), logits.tolist(), model.config.id2label]
assert not any(name.startswith("mkd_fast") for name in sys.modules)
print(json.dumps(found))
"""


def tokenizer():
    return unigram(["turn", "the", "light", "on", "off", "kitchen", "lamp"], has_mask=True)


@pytest.fixture
def students(make_teacher, tmp_path):
    """A trimmed student of each family with its tokenizer, saved, and its outputs here."""
    full = tokenizer()
    trimmed, token_map = trim_tokenizer(full, used_token_ids(full(TEXTS)["input_ids"], full))
    inputs = trimmed(TEXTS, padding=True, return_tensors="pt")
    assert len(trimmed) < len(full)
    outputs = {}
    for family in ("BertWithPadOne", "XLMRoberta", "DistilBertWithPadOne"):
        teacher = make_teacher(family)
        teacher.config.id2label = {0: "on", 1: "off", 2: "dim"}
        student = copy_init(teacher, num_layers=2, keep_token_ids=token_map.keep_token_ids)
        folder = tmp_path / family
        student.save_pretrained(folder)
        trimmed.save_pretrained(folder)
        with torch.no_grad():
            logits = student(**inputs).logits
        outputs[str(folder)] = [inputs["input_ids"].tolist(), logits.tolist()]
    return outputs


def test_a_saved_student_loads_without_mkd_fast(students, tmp_path):
    command = [sys.executable, "-c", LOAD, json.dumps(TEXTS), *students]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(tmp_path), check=False)
    assert ran.returncode == 0, ran.stderr
    for folder, (input_ids, logits, labels) in json.loads(ran.stdout).items():
        assert [input_ids, logits] == students[folder]
        assert labels == {"0": "on", "1": "off", "2": "dim"}
