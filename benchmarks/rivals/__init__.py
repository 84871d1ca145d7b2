"""Ways of distilling that people use instead, each training the same student on the same text.

``job`` says what is trained and prepares it, ``variants`` names who trains it, and a module for
each of them holds what its users would write. ``mkd_fast.benchmarks.train`` measures them.
"""
