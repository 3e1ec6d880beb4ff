"""Explores the model with more faults and events than the tests do: python -m protocol FAULTS DEPTH.

FAULTS is the greatest number of faults, DEPTH that of events. A broken promise is printed with a shortest history.
"""

from __future__ import annotations

import sys

from protocol.exploration import Explorer

exploration = Explorer(faults=int(sys.argv[1]), max_depth=int(sys.argv[2])).explore()
print(exploration.summary)
if exploration.violation is not None:
    print(exploration.violation.numbered_history)
    sys.exit(1)
