# Every feature that FreeCAD's Python has a call for, some of which cannot be made.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, expect_some, scope

import FreeCAD as App
import Part

F = "occt_feature_duration_seconds"
V = App.Vector


def does(feature, call, n=1, status="ok"):
    scope(F, feature=feature)
    scope("occt_exceptions_total", operation=feature)
    try:
        result = call()
    except Exception:
        result = None
    expect(F, n, feature=feature, status=status)
    if status == "exception":
        expect_some("occt_exceptions_total", operation=feature)
    return result


def box():
    return Part.makeBox(10, 10, 10)


def square(side=10, z=0):
    return Part.makePolygon([V(0, 0, z), V(side, 0, z), V(side, side, z), V(0, side, z), V(0, 0, z)])


for radius in 1, 2, 3:
    does("fillet", lambda: (lambda b: b.makeFillet(radius, b.Edges[0:4]))(box()))
does("fillet", lambda: (lambda b: b.makeFillet(50, b.Edges[0:4]))(box()), status="error")
does("chamfer", lambda: (lambda b: b.makeChamfer(1, b.Edges[0:4]))(box()))
does("chamfer", lambda: (lambda b: b.makeChamfer(60, b.Edges[0:4]))(box()), status="error")
does("thick_solid", lambda: (lambda b: b.makeThickness([b.Faces[0]], -1, 1e-3))(box()))
does("offset", lambda: box().makeOffsetShape(1, 1e-3))
does("offset_2d", lambda: square().makeOffset2D(1))
does("loft", lambda: Part.makeLoft([square(), square(20, 5), square(10, 9)], True))
path = Part.Wire(Part.makeLine(V(0, 0, 0), V(0, 0, 8)))
does("sweep", lambda: path.makePipeShell([square(2)], True))
does("sweep", lambda: path.makePipe(Part.Wire(Part.makeCircle(1))))
for height in 5, 6:
    does("prism", lambda: Part.Face(square()).extrude(V(0, 0, height)))
does("revolution", lambda: Part.Face(square()).revolve(V(20, 0, 0), V(0, 1, 0), 180))
filleted = (lambda b: b.makeFillet(1, b.Edges[0:1]))(box())
expect(F, feature="fillet", status="ok")
does("defeaturing", lambda: filleted.defeaturing([f for f in filleted.Faces if f.Surface.TypeId == "Part::GeomCylinder"]))
does("mesh", lambda: Part.makeSphere(5).tessellate(0.1))
does("sewing", lambda: Part.makeShell(box().Faces).sewShape())
does("prism", lambda: Part.Face(square()).extrude(V(0, 0, 0)), status="exception")
if float(".".join(App.Version()[:2])) >= 1.0:  # before, FreeCAD fills by another class
    does("filling", lambda: Part.makeFilledFace(square().Edges))
e1, e2 = Part.makeLine(V(0, 0, 0), V(10, 0, 0)), Part.makeLine(V(0, 0, 0), V(0, 10, 0))
does("fillet_2d", lambda: Part.ChFi2d.FilletAPI(e1, e2, Part.Plane(V(0, 0, 0), V(0, 0, 1))).perform(2))

doc = App.newDocument("Features")
body = doc.addObject("PartDesign::Body", "Body")
base = doc.addObject("PartDesign::AdditiveBox", "Base")
body.addObject(base)
draft = doc.addObject("PartDesign::Draft", "Draft")
body.addObject(draft)
draft.Base = (base, ["Face1"])
draft.NeutralPlane = (base, ["Face5"])
draft.Angle = 3
does("draft", lambda: doc.recompute())
done()
