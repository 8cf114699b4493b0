# Booleans of each kind with 2, 5 and 20 solids, general fuse, and one that cannot be made; each has grown memory.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import count_range, done, expect, scope

import FreeCAD as App
import Part

B = "occt_boolean_duration_seconds"
M = "occt_operation_memory_bytes"
V = App.Vector
scope(B)


def did(operation, n, status="ok"):
    scope(M, operation=operation)
    expect(B, operation=operation, solids_range=count_range(n), status=status)
    expect(M, operation=operation)


def boxes(n):
    return [Part.makeBox(10, 10, 10, V(7 * i, i, i)) for i in range(n)]


for n in 2, 5, 20:
    first, *others = boxes(n)
    for call, operation in ((first.fuse, "union"), (first.cut, "cut"), (first.common, "common"), (first.section, "section")):
        call(others)
        did(operation, n)
    first.generalFuse(others)
    did("split", n)
try:
    boxes(1)[0].generalFuse([])
except Exception:
    did("split", 1, "error")

done()
