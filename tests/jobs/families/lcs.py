# Local coordinate systems: how many were placed in a recompute, and that those that were not touched are not.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import count_range, done, expect, scope

import FreeCAD as App

F = "a4_lcs_resolution_duration_seconds"
scope(F)
doc = App.newDocument("Lcs")
body = doc.addObject("PartDesign::Body", "Body")
doc.recompute()
for n in 1, 3, 12:
    added = [doc.addObject("PartDesign::CoordinateSystem", "Lcs%d_%d" % (n, i)) for i in range(n)]
    for one in added:
        body.addObject(one)
    doc.recompute()
    assert not any("Touched" in one.State for one in added)
    expect(F, lcs_count_range=count_range(n))
doc.addObject("Part::Box", "Box")
doc.recompute()  # no coordinate system in it
done()
