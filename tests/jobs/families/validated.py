# Writes every format; SIZE, which nobody sees from outside, makes another geometry. INPUT is a file that is read first.
import os
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, path

import FreeCAD as App
import Import
import Mesh
import Part

if os.environ.get("INPUT"):
    Part.Shape().read(os.environ["INPUT"])
doc = App.newDocument("Exports")
box = doc.addObject("Part::Box", "Box")
box.Length = float(os.environ["SIZE"])
pin = doc.addObject("Part::Cylinder", "Pin")
pin.Height = 30
part = doc.addObject("Part::Fuse", "Part")
part.Base, part.Tool = box, pin
doc.recompute()
shape = part.Shape
shape.tessellate(0.1)
mesh = Mesh.Mesh(shape.tessellate(0.1))
shape.exportStep(path("shape.step"))
shape.exportIges(path("shape.igs"))
shape.exportBrep(path("shape.brep"))
shape.exportStl(path("shape.stl"))
Import.export([part], path("document.step"))
Import.export([part], path("document.iges"))
formats = ["BREP", "IGES", "IGES", "STEP", "STEP", "STL"]
if float(".".join(App.Version()[:2])) >= 1.0:
    for name, format in (("document.glb", "GLB"), ("document.gltf", "GLTF")):
        Import.export([part], path(name))
        formats.append(format)
for end, format in (("stl", "STL"), ("ast", "STL"), ("obj", "OBJ"), ("ply", "PLY"), ("off", "OFF")):
    mesh.write(path("mesh." + end))
    formats.append(format)
open(path("wrote"), "w").write(" ".join(formats))
done()
