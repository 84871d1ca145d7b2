"""The one place where errors are worded, a module for each room.

Each function returns the exception, and the caller raises it, so that a traceback ends where the
rule was broken. A message reads ``function: rule, got fact. Way out.``: ValueError for shapes,
ranges and content, TypeError for dtypes and kinds, RuntimeError for a missing build or device;
an error of the operating system keeps its class.

A room imports its own: ``from mkd_fast.checks import data as checks``.
"""
