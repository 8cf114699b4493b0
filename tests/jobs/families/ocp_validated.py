# Writes every format by OCCT's own calls; SIZE, which nobody sees from outside, makes another geometry.
import os
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, path

from ocp_documents import Info, document, static
from OCP.BinTools import BinTools
from OCP.BRepMesh import BRepMesh_IncrementalMesh
from OCP.BRepPrimAPI import BRepPrimAPI_MakeBox
from OCP.BRepTools import BRepTools
from OCP.IGESControl import IGESControl_Writer
from OCP.Message import Message_ProgressRange
from OCP.RWGltf import RWGltf_CafWriter
from OCP.STEPControl import STEPControl_AsIs, STEPControl_Writer
from OCP.StlAPI import StlAPI_Writer
from OCP.TCollection import TCollection_AsciiString
from OCP.VrmlAPI import VrmlAPI_Writer

shape = BRepPrimAPI_MakeBox(float(os.environ["SIZE"]), 10.0, 10.0).Shape()
BRepMesh_IncrementalMesh(shape, 0.1)
step = STEPControl_Writer()
step.Transfer(shape, STEPControl_AsIs)
step.Write(path("a.step"))
iges = IGESControl_Writer()
iges.AddShape(shape)
iges.ComputeModel()
iges.Write(path("a.igs"))
static(BRepTools, "Write")(shape, path("a.brep"))
static(BinTools, "Write")(shape, path("shape.bin"))
StlAPI_Writer().Write(shape, path("a.stl"))
VrmlAPI_Writer().Write(shape, path("a.wrl"))
for name, binary in (("a.glb", True), ("a.gltf", False)):
    RWGltf_CafWriter(TCollection_AsciiString(path(name)), binary).Perform(document(shape), Info(), Message_ProgressRange())
open(path("wrote"), "w").write("BIN BREP GLB GLTF IGES STEP STL VRML")
done()
