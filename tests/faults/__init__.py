"""Nothing lost, nothing let in: what was tried, and what came out.

``python -m pytest tests/faults`` is the short form; ``-m long`` the long one, which writes its
table to ``results/faults.csv``.
"""
