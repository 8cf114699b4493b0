# A FreeCAD job whose operations are known: it says what it did, and between which times, in JOB_RECORD.
# Runs in freecadcmd of 0.20 and later. JOB_ROUNDS repeats it; JOB_WAIT is time to probe what its imports have mapped.
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
    try:
        result = call()
        outcome = "ok"
    except Exception as e:
        result = None
        outcome = type(e).__name__
    end = clock()
    RECORD.write(json.dumps(dict(more, kind=kind, start=begin, end=end, outcome=outcome)) + "\n")
    return result


def plate(holes):
    return Part.makeBox(20 + 10 * holes, 20, 5)


def drills(holes, height=9):
    tools = [Part.makeCylinder(3, height, V(15 + 10 * i, 10, -2)) for i in range(holes)]
    return Part.makeCompound(tools)


def booleans():
    for kind, first, count in (("union", 3, 5), ("cut", 4, 4), ("common", 5, 3), ("section", 6, 2)):
        for holes in range(first, first + count):
            base, tool = plate(holes), drills(holes)
            call = {"union": base.fuse, "cut": base.cut, "common": base.common, "section": base.section}[kind]
            timed(kind, lambda: call(tool))


def features():
    box = Part.makeBox(10, 10, 10)
    for i in range(3):
        edges = box.Edges[0:4]
        timed("fillet", lambda: box.makeFillet(1 + i / 2, edges), contours=4)
    timed("fillet", lambda: box.makeFillet(50, edges), contours=4)  # cannot be made
    for i in range(2):
        timed("chamfer", lambda: box.makeChamfer(1 + i / 2, box.Edges[0:2]), contours=2)


def document(round):
    doc = App.newDocument("Job%d" % round)

    def add(kind, name, **properties):
        o = timed("add", lambda: doc.addObject(kind, name), object=name, type=kind)
        for key, value in properties.items():
            setattr(o, key, value)
        return o

    base = add("Part::Box", "Base", Length=40, Width=30, Height=10)
    pin = add("Part::Cylinder", "Pin", Radius=4, Height=30)
    add("Part::Fuse", "Joined", Base=base, Tool=pin)
    add("Part::Cut", "Drilled", Base=base, Tool=pin)
    add("Part::Fillet", "Rounded", Base=base, Edges=[(1, 1.0, 1.0), (3, 1.0, 1.0)])
    add("Part::Chamfer", "Bevelled", Base=base, Edges=[(1, 1.0, 1.0)])
    timed("recompute", doc.recompute, objects=6)
    add("Part::Fillet", "Impossible", Base=base, Edges=[(1, 500.0, 500.0)])
    timed("recompute", doc.recompute, objects=1)
    doc.removeObject("Impossible")
    path = os.path.join(FOLDER, "job%d.FCStd" % round)
    timed("save", lambda: doc.saveAs(path), path=path)
    shape = doc.getObject("Joined").Shape
    for kind, write in (("STEP", shape.exportStep), ("STL", shape.exportStl), ("BREP", shape.exportBrep)):
        path2 = os.path.join(FOLDER, "job%d.%s" % (round, kind.lower()))
        timed("export", lambda: write(path2), format=kind, path=path2)
    App.closeDocument(doc.Name)
    again = timed("load", lambda: App.openDocument(path), path=path)
    timed("recompute", again.recompute, objects=0)
    App.closeDocument(again.Name)


time.sleep(float(os.environ.get("JOB_WAIT", "0")))
timed("start", lambda: None, versions=App.Version()[:3], occt=Part.OCC_VERSION)
for round in range(int(os.environ.get("JOB_ROUNDS", "1"))):
    booleans()
    features()
    document(round)
timed("end", lambda: None)
RECORD.close()
print("job done")
