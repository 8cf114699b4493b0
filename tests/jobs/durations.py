# A FreeCAD job whose operations take long for what surrounds them in the same Python call: booleans of curved
# surfaces, whose algorithm has little to free at its end (a plate with many holes spends 1.5 % of the call on that,
# after the operation). Writes the times of the Python calls to JOB_RECORD, as operations.py does.
import json
import os
import time

import FreeCAD as App
import Part

FOLDER = os.environ["JOB_FOLDER"]
RECORD = open(os.environ["JOB_RECORD"], "w")
V = App.Vector


def clock():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def timed(kind, call, **more):
    begin = clock()
    call()
    end = clock()
    RECORD.write(json.dumps(dict(more, kind=kind, start=begin, end=end, outcome="ok")) + "\n")


time.sleep(1)
torus = Part.makeTorus(10, 3)
for i in range(8):
    other = Part.makeTorus(9, 2, V(4 + i / 4, 0.5, 1), V(1, 2, 3))
    cone = Part.makeCone(5, 2, 20 + i, V(7, 0, -8), V(0.3, 0.1, 1))
    for kind, call, tool in (
        ("union", torus.fuse, cone),
        ("cut", torus.cut, cone),
        ("common", torus.common, other),
        ("section", torus.section, cone),
    ):
        timed(kind, lambda: call(tool))
    doc = App.newDocument("Times%d" % i)
    base = doc.addObject("Part::Torus", "Base")
    tool = doc.addObject("Part::Cone", "Tool")
    tool.Placement.Base = V(7, 0, -8)
    joined = doc.addObject("Part::Fuse", "Joined")
    joined.Base, joined.Tool = base, tool
    timed("recompute", doc.recompute)
    for n in range(100):
        doc.addObject("Part::Box", "Box%d" % n)
    timed("recompute", doc.recompute)
    path = os.path.join(FOLDER, "times%d.FCStd" % i)
    doc.saveAs(path)
    shape = joined.Shape
    for format, write in (("STEP", shape.exportStep), ("STL", shape.exportStl)):
        out = os.path.join(FOLDER, "times%d.%s" % (i, format.lower()))
        timed("export", lambda: write(out), format=format, path=out)
    App.closeDocument(doc.Name)
    timed("load", lambda: App.openDocument(path), path=path)
    App.closeDocument(App.ActiveDocument.Name)
timed("end", lambda: None)
RECORD.close()
print("job done")
