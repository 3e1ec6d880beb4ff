"""Explores the model with more faults and events than the tests do: python -m protocol FAULTS DEPTH.

FAULTS is the greatest number of faults, DEPTH that of events. A broken promise is printed with a shortest history.
"""

from __future__ import annotations

import sys

from protocol.exploration import Explorer

found = Explorer(faults=int(sys.argv[1]), max_depth=int(sys.argv[2])).explore()
print(found.summary)
if found.violation is not None:
    print(found.violation.story)
    sys.exit(1)
