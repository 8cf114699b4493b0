# Every feature by OCCT's own calls, some of which cannot be made.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

from ocp_shapes import boxes, listed, parts
from OCP.BRepAlgoAPI import BRepAlgoAPI_Check, BRepAlgoAPI_Defeaturing
from OCP.BRepBuilderAPI import BRepBuilderAPI_MakeFace, BRepBuilderAPI_MakePolygon, BRepBuilderAPI_Sewing
from OCP.BRepCheck import BRepCheck_Analyzer
from OCP.BRepFilletAPI import BRepFilletAPI_MakeChamfer, BRepFilletAPI_MakeFillet, BRepFilletAPI_MakeFillet2d
from OCP.BRepMesh import BRepMesh_IncrementalMesh
from OCP.BRepOffset import BRepOffset_Skin
from OCP.BRepOffsetAPI import (
    BRepOffsetAPI_DraftAngle,
    BRepOffsetAPI_MakeFilling,
    BRepOffsetAPI_MakeOffset,
    BRepOffsetAPI_MakeOffsetShape,
    BRepOffsetAPI_MakePipe,
    BRepOffsetAPI_MakePipeShell,
    BRepOffsetAPI_MakeThickSolid,
    BRepOffsetAPI_NormalProjection,
    BRepOffsetAPI_ThruSections,
)
from OCP.BRepPrimAPI import BRepPrimAPI_MakePrism, BRepPrimAPI_MakeRevol
from OCP.GeomAbs import GeomAbs_Arc, GeomAbs_C0
from OCP.gp import gp_Ax1, gp_Dir, gp_Pln, gp_Pnt, gp_Vec
from OCP.ShapeFix import ShapeFix_Shape
from OCP.ShapeUpgrade import ShapeUpgrade_UnifySameDomain

F = "occt_feature_duration_seconds"


def did(feature, status="ok", n=1):
    scope(F, feature=feature)
    expect(F, n, feature=feature, status=status)


def polygon(side=10.0, z=0.0):
    made = BRepBuilderAPI_MakePolygon()
    for x, y in ((0, 0), (side, 0), (side, side), (0, side)):
        made.Add(gp_Pnt(x, y, z))
    made.Close()
    return made.Wire()


def box():
    return boxes(1)[0]


for radius in 1, 2, 50:
    shape = box()
    fillet = BRepFilletAPI_MakeFillet(shape)
    for edge in parts(shape, "Edge")[0:3]:
        fillet.Add(float(radius), edge)
    try:
        fillet.Build()
    except Exception:
        pass
    did("fillet", "ok" if fillet.IsDone() else "error")
shape = box()
chamfer = BRepFilletAPI_MakeChamfer(shape)
chamfer.Add(1.0, parts(shape, "Edge")[0])
chamfer.Build()
did("chamfer")
chamfer = BRepFilletAPI_MakeChamfer(shape)
chamfer.Add(50.0, parts(shape, "Edge")[0])
try:
    chamfer.Build()
except Exception:
    pass
did("chamfer", "ok" if chamfer.IsDone() else "error")
face = BRepBuilderAPI_MakeFace(polygon()).Face()
flat = BRepFilletAPI_MakeFillet2d(face)
for vertex in parts(face, "Vertex")[0:1]:
    flat.AddFillet(vertex, 1.0)
    did("fillet_2d")
flat = BRepFilletAPI_MakeFillet2d(face)
edges = parts(face, "Edge")
flat.AddChamfer(edges[0], edges[1], 1.0, 1.0)
did("chamfer_2d")
offset = BRepOffsetAPI_MakeOffsetShape()
offset.PerformByJoin(box(), 1.0, 1e-3)
did("offset")
offset = BRepOffsetAPI_MakeOffsetShape()
offset.PerformBySimple(box(), 1.0)
did("offset", "ok" if offset.IsDone() else "error")
thick = BRepOffsetAPI_MakeThickSolid()
shape = box()
thick.MakeThickSolidByJoin(shape, listed(parts(shape, "Face")[0:1]), -1.0, 1e-3)
did("thick_solid")
offset = BRepOffsetAPI_MakeOffset(polygon(), GeomAbs_Arc)
offset.Perform(1.0)
did("offset_2d")
loft = BRepOffsetAPI_ThruSections(True)
for side, z in ((10, 0), (20, 5), (10, 9)):
    loft.AddWire(polygon(side, z))
loft.Build()
did("loft")
spine = BRepBuilderAPI_MakePolygon(gp_Pnt(0, 0, 0), gp_Pnt(0, 0, 8)).Wire()
pipe = BRepOffsetAPI_MakePipeShell(spine)
pipe.Add(polygon(2))
pipe.Build()
did("sweep")
BRepOffsetAPI_MakePipe(spine, polygon(2))
did("sweep")
for height in 5, 6:
    BRepPrimAPI_MakePrism(face, gp_Vec(0, 0, height))
    did("prism")
BRepPrimAPI_MakePrism(face, gp_Dir(0, 0, 1), True)
did("prism")
BRepPrimAPI_MakeRevol(face, gp_Ax1(gp_Pnt(20, 0, 0), gp_Dir(0, 1, 0)), 3.0)
did("revolution")
BRepPrimAPI_MakeRevol(face, gp_Ax1(gp_Pnt(20, 0, 0), gp_Dir(0, 1, 0)))
did("revolution")
shape = box()
draft = BRepOffsetAPI_DraftAngle(shape)
draft.Add(parts(shape, "Face")[0], gp_Dir(0, 0, 1), 0.05, gp_Pln(gp_Pnt(0, 0, 0), gp_Dir(0, 0, 1)))
draft.Build()
did("draft")
shape = box()
fillet = BRepFilletAPI_MakeFillet(shape)
fillet.Add(1.0, parts(shape, "Edge")[0])
fillet.Build()
did("fillet")
rounded = fillet.Shape()
less = BRepAlgoAPI_Defeaturing()
less.SetShape(rounded)
less.AddFaceToRemove(fillet.Generated(parts(shape, "Edge")[0]).First())
less.Build()
did("defeaturing", "ok" if less.IsDone() else "error")
for _ in range(3):
    ShapeUpgrade_UnifySameDomain(box()).Build()
    did("unify")
sewing = BRepBuilderAPI_Sewing()
for part in parts(box(), "Face"):
    sewing.Add(part)
sewing.Perform()
did("sewing")
for _ in range(2):
    ShapeFix_Shape(box()).Perform()
    did("heal")
filling = BRepOffsetAPI_MakeFilling()
for edge in parts(polygon(), "Edge"):
    filling.Add(edge, GeomAbs_C0)
filling.Build()
did("filling", "ok" if filling.IsDone() else "error")
projection = BRepOffsetAPI_NormalProjection(box())
projection.Add(polygon(4, 15))
projection.Build()
did("projection")
BRepMesh_IncrementalMesh(box(), 0.1)
did("mesh")
done()
