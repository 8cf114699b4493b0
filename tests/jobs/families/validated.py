# Writes every format; SIZE, which nobody sees from outside, makes another geometry. INPUT is a file that is read first.
import os
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, path

import FreeCAD as App
import Import
import Mesh
import Part
from fused import MESHES, fused

if os.environ.get("INPUT"):
    Part.Shape().read(os.environ["INPUT"])
_, part = fused(float(os.environ["SIZE"]))
shape = part.Shape
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
for format, end in MESHES:
    mesh.write(path("mesh." + end))
    formats.append(format)
open(path("wrote"), "w").write(" ".join(formats))
done()
