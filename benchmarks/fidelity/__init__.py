"""What each kind of a teacher cache keeps of its teacher: bytes against the loss and gradient.

``python -m mkd_fast.benchmarks.fidelity WORK`` measures it on two real teachers and writes
``fidelity.csv``; docs/fidelity.md explains what came out.
"""
