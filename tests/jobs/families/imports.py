# Every format that the build reads, by the calls that scripts use; one file that is not there.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, path, scope

import FreeCAD as App
import Import
import Mesh
import Part

L = "freecad_document_load_seconds"
scope(L)
NEW = float(".".join(App.Version()[:2])) >= 1.0
shape = Part.makeBox(10, 10, 10)
doc = App.newDocument("Out")
box = doc.addObject("Part::Box", "Box")
doc.recompute()
box.Shape.tessellate(0.1)
for name, write in (
    ("a.step", shape.exportStep),
    ("a.igs", shape.exportIges),
    ("a.brep", shape.exportBrep),
):
    write(path(name))
mesh = Mesh.Mesh(shape.tessellate(0.1))
MESHES = {"stl": "stl", "ast": "stl", "bms": "bms", "obj": "obj", "smf": "smf", "off": "off", "ply": "ply", "nas": "nastran", "bdf": "nastran"}
if NEW:
    MESHES["3mf"] = "3mf"
for end in MESHES:
    mesh.write(path("m." + end))


def reads(source, name, workbench, call, n=1):
    call(path(name))
    expect(L, n, source=source, workbench=workbench)


for source, name in (("step", "a.step"), ("iges", "a.igs"), ("brep", "a.brep")):
    reads(source, name, "Part", lambda file: Part.Shape().read(file))
reads("step", "a.step", "Part", lambda file: Part.Shape().read(file))
reads("brep", "a.brep", "Part", lambda file: Part.Shape().importBrep(file))
for end, source in MESHES.items():
    reads(source, "m." + end, "Mesh", lambda file: Mesh.Mesh().read(file))
reads("stl", "m.stl", "Mesh", lambda file: Mesh.insert(file, doc.Name))
Import.writeDXFObject([box], path("a.dxf"))
reads("dxf", "a.dxf", "Import", Import.readDXF)
if NEW:
    Import.export([box], path("a.glb"))
    for source, name in (("step", "a.step"), ("iges", "a.igs"), ("gltf", "a.glb")):
        doc = App.newDocument("In")
        reads(source, name, "Import", lambda file: Import.insert(file, doc.Name))
else:
    # The calls of OCCT are seen. (FreeCAD 0.20.2 crashes where it inserts some STEP files.)
    doc = App.newDocument("In")
    reads("iges", "a.igs", "none", lambda file: Import.insert(file, doc.Name))
for end in "step", "igs", "brep", "stl":
    try:
        (Mesh.Mesh() if end == "stl" else Part.Shape()).read(path("none." + end))
    except Exception:
        pass
expect(L, source="step", workbench="Part")
expect(L, source="iges", workbench="Part")
expect(L, source="brep", workbench="Part")
expect(L, source="stl", workbench="Mesh")
done()
