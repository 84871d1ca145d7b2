"""Every code block of the README and of the pages in docs/ runs, or says why it does not."""

import sys

import pytest
from code_blocks import ROOT, BlockError, run_page

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page, tmp_path):
    """One after another; ``pytest -s`` shows what is not run, and why."""
    for reason in run_page(page, tmp_path):
        sys.stdout.write(f"{reason}\n")


def page_of(folder, text):
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_blocks_go_on_from_those_before(tmp_path):
    page = page_of(
        tmp_path,
        """
<!-- setup: python
written = "5"
-->

```python
print(written)
```

```text
5
```

```toml
# recipe.toml
[train]
epochs = 3
```

<!-- not run: it would take hours -->

```bash
mkd-fast train recipe.toml --set train.epochs=4
torchrun train.py  # and what is no command of ours
```

<!-- not compared: it is another one on every machine -->

```text
17.2 s
```
""",
    )
    assert run_page(page, tmp_path) == [
        "page.md:23 not run: it would take hours",
        "page.md:30 not compared: it is another one on every machine",
    ]


BROKEN = {
    "python that raises": ("```python\n\n1 / 0\n```", "page.md:3: ZeroDivisionError"),
    "another output": ("```python\nprint(1)\n```\n\n```text\n2\n```", "what is printed is\n1"),
    "no such command": ("```bash\nmkd-fast destil recipe.toml\n```", "No such command 'destil'"),
    "no such option": ("```bash\nmkd-fast info --fast\n```", "No such option: --fast"),
    "an argument too few": ("```bash\nmkd-fast distill\n```", "Missing argument 'recipe'"),
    "a command that fails": ("```bash\nmkd-fast cache info nowhere\n```", "exit code 2"),
    "a command of others": ("```bash\nmake demo\n```", "make is not run here"),
    "no such recipe": ("```bash\nmkd-fast train my.toml\n```", "there is no my.toml"),
    "no such setting": (
        "<!-- not run: slow -->\n```bash\nmkd-fast train recipes/masked_lm.toml --set a.b=1\n```",
        "sections must be known, got [a]",
    ),
    "an unknown key": ("```toml\n[train]\nepoch = 3\n```", "epoch"),
    "another console output": ("```console\n$ mkd-fast info\nfast\n```", "mkd-fast info prints"),
    "a language that cannot run": ("```yaml\na: 1\n```", "needs <!-- not run: REASON -->"),
    "no language": ("```\na\n```", "needs <!-- not run: REASON -->"),
    "no reason": ("<!-- not run: -->\n```yaml\na: 1\n```", "a reason is missing"),
    "no such file": (
        "<!-- not run: slow -->\n```bash\npython benchmarks/tpu.py\n```",
        "there is no benchmarks/tpu.py",
    ),
    "no such module": (
        "<!-- not run: slow -->\n```bash\npython -m mkd_fast.nothing\n```",
        "there is no module mkd_fast.nothing",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_block_is_named_with_its_line(name, tmp_path):
    text, message = BROKEN[name]
    with pytest.raises(BlockError, match=r"^page\.md:\d+: ") as caught:
        run_page(page_of(tmp_path, "\n" + text + "\n"), tmp_path)
    assert message in str(caught.value)
