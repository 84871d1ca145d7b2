import re
from pathlib import Path

import pytest

from mkd_fast.evaluate.readme import check_block, splice_block, update_block

TEXT = "# Title\n<!-- begin: table -->\nold\n<!-- end: table -->\nafter\n"


def test_only_what_stands_between_the_markers_changes() -> None:
    assert splice_block(TEXT, "table", "| a |\n") == (
        "# Title\n<!-- begin: table -->\n\n| a |\n\n<!-- end: table -->\nafter\n"
    )


def test_splicing_twice_is_splicing_once() -> None:
    once = splice_block(TEXT, "table", "| a |\n\n| b |\n")
    assert splice_block(once, "table", "| a |\n\n| b |\n") == once


def test_other_blocks_stay() -> None:
    text = TEXT + "<!-- begin: bench -->x<!-- end: bench -->"
    assert splice_block(text, "table", "new").endswith("<!-- begin: bench -->x<!-- end: bench -->")


def test_a_file_is_up_to_date_after_its_update(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(TEXT, encoding="utf-8")
    update_block(readme, "table", "| ü |")
    check_block(readme, "table", "| ü |")
    with pytest.raises(ValueError, match="check_block") as error:
        check_block(readme, "table", "| other |")
    assert str(error.value) == (
        f"check_block: block 'table' of {readme} must be what its source generates, got other "
        "text. Call update_block and commit the result."
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("nothing", "0 begin and 0 end markers", id="no markers"),
        pytest.param("<!-- begin: table -->", "1 begin and 0 end markers", id="not closed"),
        pytest.param(TEXT + TEXT, "2 begin and 2 end markers", id="twice"),
        pytest.param(
            "<!-- end: table --><!-- begin: table -->", "1 begin and 1 end", id="end first"
        ),
    ],
)
def test_bad_markers(text: str, found: str) -> None:
    expected = (
        "splice_block: the text must hold '<!-- begin: table -->' and after it "
        f"'<!-- end: table -->', once, got {found}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        splice_block(text, "table", "new")
