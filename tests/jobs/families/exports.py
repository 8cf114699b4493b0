# Every format that the build writes, by the calls that scripts use; one file that cannot be written.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, path, scope, size_range

import FreeCAD as App
import Import
import Mesh
import Part
from fused import MESHES, fused

E = "export_duration_seconds"
X = "occt_exceptions_total"
scope(E)
scope(X)
NEW = float(".".join(App.Version()[:2])) >= 1.0
box, part = fused()
shape = part.Shape


def writes(format, name, call, sized=True):
    file = path(name)
    call(file)
    expect(E, format=format, file_size_range=size_range(file) if sized else "unknown", status="ok")


writes("STEP", "shape.step", shape.exportStep)
writes("IGES", "shape.igs", shape.exportIges)
writes("BREP", "shape.brep", shape.exportBrep)
writes("STL", "shape.stl", shape.exportStl)
writes("STEP", "document.step", lambda file: Import.export([part], file))
writes("IGES", "document.iges", lambda file: Import.export([part], file))
if NEW:
    writes("GLB", "document.glb", lambda file: Import.export([part], file))
    writes("GLTF", "document.gltf", lambda file: Import.export([part], file))
many = Part.makeCompound([Part.makeSphere(5, App.Vector(12 * i, 0, 0)) for i in range(12)])
writes("STL", "big.stl", many.exportStl)
mesh = Mesh.Mesh(shape.tessellate(0.1))
for format, end in MESHES:
    writes(format, "mesh." + end, mesh.write)
Mesh.export([part], path("objects.stl"))
expect(E, format="STL", file_size_range=size_range(path("objects.stl")), status="ok")
# Their files are closed later.
writes("AMF", "objects.amf", lambda file: Mesh.export([part], file), sized=False)
writes("DXF", "drawing.dxf", lambda file: Import.writeDXFObject([box], file), sized=False)
# What cannot be written, because there is a file where a folder would have to be.
for call in (shape.exportStl,):
    try:
        call(path("shape.stl/shape.stl"))
    except Exception:
        pass
    expect(E, format="STL", file_size_range="unknown", status="error")
for call, format in ((shape.exportStep, "STEP"), (shape.exportBrep, "BREP")):
    try:
        call(path("shape.stl/shape." + format.lower()))
    except Exception:
        pass
    expect(E, format=format, file_size_range="unknown", status="exception")
    expect(X, operation="export", exception="Base::FileException")
done()
