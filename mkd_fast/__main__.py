"""``python -m mkd_fast``: the same as ``mkd-fast``."""

from mkd_fast.cli import main

main()
