"""Benchmarks behind ``mkd-fast bench``: one file per op, over one harness.

Imported as ``mkd_fast.benchmarks``. LOG.md keeps what was tried, and what lost.
"""
