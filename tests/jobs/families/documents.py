# A document of 200 objects: created, recomputed, saved, closed, opened; then one that fails.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import count_range, done, expect, path, scope, stage

import FreeCAD as App
import Part

N = 200
CREATED = "freecad_object_created_total"
RECOMPUTED = "freecad_recompute_duration_seconds"
OBJECT = "freecad_object_recompute_duration_seconds"
LOADED = "freecad_document_load_seconds"
SAVED = "freecad_document_save_seconds"
for family in CREATED, RECOMPUTED, OBJECT, LOADED, SAVED, "model_generation_stage_duration_seconds":
    scope(family)
stage("startup")

doc = App.newDocument("Documents")


def add(kind, name, n=1):
    o = doc.addObject(kind, name)
    expect(CREATED, n, **{"class": kind, "workbench": kind.split("::")[0]})
    return o


class Scripted:
    executed = 0

    def execute(self, o):
        Scripted.executed += 1
        o.Shape = Part.makeBox(1, 2, 3)

    def dumps(self):
        return None

    def loads(self, state):
        return None

    __getstate__ = dumps
    __setstate__ = loads


for i in range(N // 4):
    box = add("Part::Box", "Box%d" % i)
    pin = add("Part::Cylinder", "Pin%d" % i)
    cut = add("Part::Cut", "Cut%d" % i)
    cut.Base, cut.Tool = box, pin
    scripted = add("Part::FeaturePython", "Scripted%d" % i)
    scripted.Proxy = Scripted()
    scripted.touch()
doc.recompute()
assert Scripted.executed == N // 4
expect(RECOMPUTED, workbench="Part", doc_complexity=count_range(N))
for kind in "Part::Box", "Part::Cylinder", "Part::Cut", "Part::FeaturePython":
    expect(OBJECT, N // 4, **{"class": kind, "workbench": kind.split("::")[0], "status": "ok"})

doc.getObject("Box3").Length = 20
doc.recompute()
expect(RECOMPUTED, workbench="Part", doc_complexity=count_range(N))
expect(OBJECT, **{"class": "Part::Box", "workbench": "Part", "status": "ok"})
expect(OBJECT, **{"class": "Part::Cut", "workbench": "Part", "status": "ok"})

file = path("documents.FCStd")
doc.saveAs(file)
doc.save()
expect(SAVED, 2, status="ok")
App.closeDocument(doc.Name)
doc = App.openDocument(file)
expect(LOADED, source="fcstd", workbench="Part")

bad = add("Part::Fillet", "Bad")
bad.Base = doc.getObject("Box5")
bad.Edges = [(1, 500.0, 500.0)]
doc.recompute()
expect(RECOMPUTED, workbench="Part", doc_complexity=count_range(N + 1))
expect(OBJECT, **{"class": "Part::Fillet", "workbench": "Part", "status": "error"})

# Few objects, none, and one of another workbench at last.
small = App.newDocument("Small")
small.recompute()
expect(RECOMPUTED, workbench="none", doc_complexity=count_range(0))
for n in 1, 2:
    small.addObject("Part::Box", "Box")
    small.recompute()
    expect(RECOMPUTED, workbench="Part", doc_complexity=count_range(n))
expect(CREATED, 2, **{"class": "Part::Box", "workbench": "Part"})
class Attached:
    def attach(self, o):
        o.touch()

    def execute(self, o):
        pass


small.addObject("Part::FeaturePython", "Attached", Attached(), None, True)
expect(CREATED, **{"class": "Part::FeaturePython", "workbench": "Part"})
small.addObject("App::FeaturePython", "Plain")
expect(CREATED, **{"class": "App::FeaturePython", "workbench": "App"})
small.recompute()
expect(RECOMPUTED, workbench="App", doc_complexity=count_range(4))
expect(OBJECT, 2, **{"class": "Part::Box", "workbench": "Part", "status": "ok"})
expect(OBJECT, **{"class": "Part::FeaturePython", "workbench": "Part", "status": "ok"})
try:
    small.saveAs(file + "/small.FCStd")  # below a file
except Exception:
    pass
expect(SAVED, status="exception")
stage("recompute", 7)
stage("save", 3)
stage("load")
done()
