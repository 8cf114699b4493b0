# Shapes that are repaired, unified and projected on: FreeCAD's own functions and OCCT's.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

import FreeCAD as App
import Part

F = "occt_feature_duration_seconds"
V = App.Vector
for feature in "heal", "unify", "projection":
    scope(F, feature=feature)
for _ in range(3):
    Part.makeBox(10, 10, 10).fix(1e-3, 1e-3, 1e-3)
    expect(F, feature="heal", status="ok")
for _ in range(2):
    Part.makeBox(10, 10, 10).removeSplitter()
    expect(F, feature="unify", status="ok")
doc = App.newDocument("Healing")
both = doc.addObject("Part::Fuse", "Both")
both.Base, both.Tool = [doc.addObject("Part::Box", name) for name in ("One", "Other")]
both.Tool.Placement.Base.x = 10
both.Refine = True
doc.recompute()
expect(F, feature="unify", status="ok")
square = Part.makePolygon([V(0, 0, 0), V(10, 0, 0), V(10, 10, 0), V(0, 10, 0), V(0, 0, 0)])
Part.Face(square).project([Part.makeLine(V(2, 2, 5), V(8, 8, 5))])
expect(F, feature="projection", status="ok")
done()
