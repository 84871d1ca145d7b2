"""Generated blocks in a Markdown file: what stands between two comments is made, not typed.

<!-- begin: NAME -->
anything between the markers belongs to the generator
<!-- end: NAME -->
"""

from pathlib import Path

from mkd_fast.checks import evaluate as checks


def splice_block(text: str, name: str, block: str) -> str:
    """The text with the block, and a blank line around it, between the markers of that name.

    Raises:
        ValueError: The text does not hold the two markers once each, begin before end.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before, _, after_begin = text.partition(begin)
    _, found_end, after = after_begin.partition(end)
    num_begin, num_end = text.count(begin), text.count(end)
    if not (num_begin == num_end == 1 and found_end):
        raise checks.block_markers(name, num_begin, num_end)
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"


def update_block(path: Path, name: str, block: str) -> None:
    """Splices the block into the file.

    Raises:
        ValueError: As `splice_block`.
        OSError: The file cannot be read or written.
    """
    text = path.read_text(encoding="utf-8")
    path.write_text(splice_block(text, name, block), encoding="utf-8")


def check_block(path: Path, name: str, block: str) -> None:
    """Returns if `update_block` would change nothing.

    Raises:
        ValueError: The file holds another block, or as `splice_block`.
        OSError: The file cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    if splice_block(text, name, block) != text:
        raise checks.block_out_of_date(path, name)
