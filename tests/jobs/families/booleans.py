# Booleans of each kind with 2, 5 and 20 solids, general fuse, slices, and one with what is no solid.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import count_range, done, expect, scope

import FreeCAD as App
import Part

B = "occt_boolean_duration_seconds"
V = App.Vector
scope(B)


def boxes(n):
    return [Part.makeBox(10, 10, 10, V(7 * i, i, i)) for i in range(n)]


for n in 2, 5, 20:
    first, *others = boxes(n)
    for call, operation in ((first.fuse, "union"), (first.cut, "cut"), (first.common, "common"), (first.section, "section")):
        call(others)
        expect(B, operation=operation, solids_range=count_range(n), status="ok")
    first.generalFuse(others)
    expect(B, operation="split", solids_range=count_range(n), status="ok")

done()
