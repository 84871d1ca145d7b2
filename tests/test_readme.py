"""The README says what the committed results say, and its code runs."""

import re
from pathlib import Path

import pytest

from mkd_fast.benchmarks.readme import blocks
from mkd_fast.evaluate.readme import check_block

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["summary", "performance"])
def test_tables_are_those_of_the_committed_results(name):
    block = blocks(ROOT)[name]
    assert block.strip(), f"no results are committed for {name}"
    check_block(ROOT / "README.md", name, block)


def test_the_loss_example_runs(capsys):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    exec(compile(code[0], "README.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out


def test_named_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
