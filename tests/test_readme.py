"""The README says what the committed results say; files and tests that pages name exist."""

import re
from pathlib import Path

import pytest

from mkd_fast.benchmarks.fidelity import report as fidelity
from mkd_fast.benchmarks.readme import FIDELITY, blocks, fidelity_rows
from mkd_fast.evaluate.readme import check_block

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", ["summary", "performance", "training"])
def test_tables_are_those_of_the_committed_results(name):
    block = blocks(ROOT)[name]
    assert block.strip(), f"no results are committed for {name}"
    check_block(ROOT / "README.md", name, block)


def test_the_fidelity_page_is_that_of_the_committed_results():
    for name, block in fidelity.blocks(fidelity_rows(ROOT)).items():
        check_block(ROOT / FIDELITY, name, block)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_named_files_and_tests_exist(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert set(re.findall(r"`(test_\w+)`", text)) <= set(re.findall(r"def (test_\w+)", code))
