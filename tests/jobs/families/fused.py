# A document with two shapes and their union, for jobs that export it; and how the endings of meshes are called.
import FreeCAD as App

# Format and ending.
MESHES = [
    pair.split()
    for pair in (
        "STL stl, STL ast, BMS bms, OBJ obj, SMF smf, OFF off, PLY ply, IV iv, VRML wrl, VRML vrml, VRML wrz, X3D x3d, "
        "X3D x3dz, X3D xhtml, PY py, ASY asy, 3MF 3mf, NASTRAN nas, NASTRAN bdf"
    ).split(",")
]


def fused(length=10.0):
    doc = App.newDocument("Exports")
    box = doc.addObject("Part::Box", "Box")
    box.Length = length
    pin = doc.addObject("Part::Cylinder", "Pin")
    pin.Height = 30
    part = doc.addObject("Part::Fuse", "Part")
    part.Base, part.Tool = box, pin
    doc.recompute()
    part.Shape.tessellate(0.1)
    return box, part
