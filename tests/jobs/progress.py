# A job that somebody waits for: a sketch is solved, a document recomputed (one object takes its time), exported, saved and
# loaded again. Runs in freecadcmd of 0.20 and later.
import os
import time

import FreeCAD as App
import Part
import Sketcher

FOLDER = os.environ["JOB_FOLDER"]
V = App.Vector


class Slow:
    def __init__(self, obj):
        obj.Proxy = self

    def execute(self, obj):
        time.sleep(1.0)
        obj.Shape = Part.makeBox(1, 2, 3)


doc = App.newDocument("Plate")
sketch = doc.addObject("Sketcher::SketchObject", "Sketch")
for i in range(10):
    corners = [V(20 * i, 0, 0), V(20 * i + 10, 1, 0), V(20 * i + 9, 10, 0), V(20 * i + 1, 9, 0)]
    sketch.addGeometry([Part.LineSegment(corners[k], corners[(k + 1) % 4]) for k in range(4)], False)
sketch.addConstraint([Sketcher.Constraint("Coincident", 4 * i + k, 2, 4 * i + (k + 1) % 4, 1) for i in range(10) for k in range(4)])
sketch.solve()
for i in range(6):
    doc.addObject("Part::Box", "Box%d" % i)
Slow(doc.addObject("Part::FeaturePython", "Slow"))
doc.recompute()
Part.export([doc.getObject("Box1")], FOLDER + "/box.step")
doc.saveAs(FOLDER + "/plate.FCStd")
App.closeDocument(doc.Name)
App.openDocument(FOLDER + "/plate.FCStd")
print("job done")
