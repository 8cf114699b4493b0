"""A CAD job for demonstrations and benchmarks: booleans, fillets, one that fails, a document, exports.

Runs under FreeCAD 0.20 to 1.1 without a display: `QT_QPA_PLATFORM=offscreen freecadcmd job.py`.
It knows nothing of cadscope, and leaves nothing behind.
"""

import os
import shutil
import tempfile

import FreeCAD as App
import Part
from FreeCAD import Placement, Rotation, Vector

ROWS = 9


def perforated_plate():
    """One plate, many holes: unions, cuts, an intersection and a section."""
    plate = Part.makeBox(120, 120, 12)
    pins = [
        Part.makeCylinder(3, 40, Vector(15 + 11 * x, 15 + 11 * y, -10)) for x in range(ROWS) for y in range(ROWS)
    ]
    for pin in pins:
        plate = plate.cut(pin)
    ribs = Part.makeBox(120, 6, 20, Vector(0, 3, 0)).fuse(Part.makeBox(6, 120, 20, Vector(3, 0, 0)))
    body = plate.fuse(ribs)
    dome = Part.makeSphere(95, Vector(60, 60, -20))
    body = body.common(dome)
    body.section(Part.makePlane(200, 200, Vector(-20, -20, 6)))
    return body


def rounded_block():
    """A block whose edges are rounded and bevelled; then a fillet that cannot be made."""
    block = Part.makeBox(60, 40, 30)
    block = block.makeFillet(4, block.Edges[:4])
    wedge = Part.makeBox(30, 20, 10, Vector(15, 10, 25))
    wedge = wedge.makeChamfer(1.5, wedge.Edges[4:6])
    block = block.fuse(wedge)
    try:
        cube = Part.makeBox(10, 10, 10)
        cube.makeFillet(50, cube.Edges)
    except Exception as error:  # the type differs between versions
        print("a fillet of radius 50 on a block of 10:", type(error).__name__)
    return block


def fill(document):
    """About twenty objects that depend on each other."""
    base = document.addObject("Part::Box", "Base")
    base.Length, base.Width, base.Height = 100, 80, 15
    result = base
    for index in range(6):
        hole = document.addObject("Part::Cylinder", "Hole%d" % index)
        hole.Radius, hole.Height = 3 + index, 40
        hole.Placement = Placement(Vector(12 + 15 * index, 40, -5), Rotation())
        cut = document.addObject("Part::Cut", "Cut%d" % index)
        cut.Base, cut.Tool = result, hole
        result = cut
    boss = document.addObject("Part::Cone", "Boss")
    boss.Radius1, boss.Radius2, boss.Height = 14, 8, 30
    boss.Placement = Placement(Vector(50, 65, 10), Rotation())
    union = document.addObject("Part::MultiFuse", "Union")
    union.Shapes = [result, boss]
    document.recompute()
    fillet = document.addObject("Part::Fillet", "Fillet")
    fillet.Base = base
    fillet.Edges = [(1, 2.0, 2.0), (3, 2.0, 2.0)]
    chamfer = document.addObject("Part::Chamfer", "Chamfer")
    chamfer.Base = boss
    chamfer.Edges = [(1, 1.0, 1.0)]
    sketch = document.addObject("Sketcher::SketchObject", "Sketch")
    import Sketcher

    for start, end in (((0, 0), (30, 1)), ((30, 1), (29, 20)), ((29, 20), (0, 0))):
        sketch.addGeometry(Part.LineSegment(Vector(*start, 0), Vector(*end, 0)), False)
    sketch.addConstraint(Sketcher.Constraint("Coincident", 0, 2, 1, 1))
    sketch.addConstraint(Sketcher.Constraint("Coincident", 1, 2, 2, 1))
    sketch.addConstraint(Sketcher.Constraint("Coincident", 2, 2, 0, 1))
    sketch.addConstraint(Sketcher.Constraint("Horizontal", 0))
    sketch.addConstraint(Sketcher.Constraint("Distance", 0, 32.0))
    extrusion = document.addObject("Part::Extrusion", "Extrusion")
    extrusion.Base, extrusion.Dir, extrusion.Solid = sketch, Vector(0, 0, 25), True
    document.recompute()
    return union


def main():
    folder = tempfile.mkdtemp(prefix="cad-job-")
    try:
        plate, block = perforated_plate(), rounded_block()
        document = App.newDocument("Job")
        for name, shape in (("Plate", plate), ("Block", block)):
            document.addObject("Part::Feature", name).Shape = shape
        union = fill(document)
        for length in (110, 120, 130, 140):
            document.Base.Length = length
            document.recompute()
        path = os.path.join(folder, "job.FCStd")
        document.saveAs(path)
        App.closeDocument(document.Name)

        document = App.openDocument(path)
        union = document.getObject("Union")
        Part.export([union, document.getObject("Plate")], os.path.join(folder, "job.step"))
        Part.export([union], os.path.join(folder, "job.iges"))
        union.Shape.exportBrep(os.path.join(folder, "job.brep"))
        document.Plate.Shape.tessellate(0.05)
        document.Plate.Shape.exportStl(os.path.join(folder, "job.stl"))
        for name in sorted(os.listdir(folder)):
            print("%-10s %8d bytes" % (name, os.path.getsize(os.path.join(folder, name))))
        print("%d objects, union of %.0f mm3" % (len(document.Objects), union.Shape.Volume))
        App.closeDocument(document.Name)
    finally:
        shutil.rmtree(folder)


main()
