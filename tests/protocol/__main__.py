"""Explores more faults and events than the tests do: python -m protocol FAULTS DEPTH."""

from __future__ import annotations

import sys

from protocol.exploration import Explorer

found = Explorer(faults=int(sys.argv[1]), max_depth=int(sys.argv[2])).explore()
print(found.summary)
if found.violation is not None:
    print(found.violation.story)
    sys.exit(1)
