"""Everything around the course package: runs, audits, explanations, external tests, the report."""

import sys

if sys.version_info < (3, 12):  # noqa: UP036 before a module is read whose syntax it refuses
    sys.exit(f"Python 3.12 is needed; this is {sys.version.split()[0]}")
