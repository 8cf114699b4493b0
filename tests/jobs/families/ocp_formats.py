# Every format that the wheel writes and reads, by OCCT's own calls; files that cannot be written, or are not there.
import importlib
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, path, scope, size_range

from ocp_documents import Info, document, static
from ocp_shapes import boxes
from OCP.BinTools import BinTools
from OCP.BRep import BRep_Builder
from OCP.BRepMesh import BRepMesh_IncrementalMesh
from OCP.BRepTools import BRepTools
from OCP.IFSelect import IFSelect_RetDone
from OCP.IGESControl import IGESControl_Reader, IGESControl_Writer
from OCP.STEPControl import STEPControl_AsIs, STEPControl_Reader, STEPControl_Writer
from OCP.StlAPI import StlAPI_Reader, StlAPI_Writer
from OCP.TopoDS import TopoDS_Shape
from OCP.VrmlAPI import VrmlAPI_CafReader, VrmlAPI_Writer

E = "export_duration_seconds"
L = "freecad_document_load_seconds"
scope(E)
scope(L)
shape = boxes(1)[0]
BRepMesh_IncrementalMesh(shape, 0.1)


def wrote(format, name, ok=True):
    if ok:
        expect(E, format=format, file_size_range=size_range(path(name)), status="ok")
    else:
        expect(E, format=format, file_size_range="unknown", status="error")


def read(source):
    expect(L, source=source, workbench="none")


def optional(name):
    """Not every wheel has it."""
    try:
        return importlib.import_module("OCP." + name)
    except ImportError:
        return None


for name in "a.step", "b.step", "no/c.step":
    writer = STEPControl_Writer()
    writer.Transfer(shape, STEPControl_AsIs)
    wrote("STEP", name, writer.Write(path(name)) == IFSelect_RetDone)
writer = IGESControl_Writer()
writer.AddShape(shape)
writer.ComputeModel()
wrote("IGES", "a.igs", writer.Write(path("a.igs")))
wrote("BREP", "a.brep", static(BRepTools, "Write")(shape, path("a.brep")))
wrote("BIN", "shape.bin", static(BinTools, "Write")(shape, path("shape.bin")))
for name in "a.stl", "no/a.stl":
    wrote("STL", name, StlAPI_Writer().Write(shape, path(name)))
wrote("VRML", "a.wrl", VrmlAPI_Writer().Write(shape, path("a.wrl")))

for name in "a.step", "none.step":
    STEPControl_Reader().ReadFile(path(name))
    read("step")
reader = STEPControl_Reader()
reader.ReadFile(path("b.step"))
read("step")
reader.TransferRoots()
IGESControl_Reader().ReadFile(path("a.igs"))
read("iges")
static(BRepTools, "Read")(TopoDS_Shape(), path("a.brep"), BRep_Builder())
read("brep")
static(BinTools, "Read")(TopoDS_Shape(), path("shape.bin"))
read("bin")
StlAPI_Reader().Read(TopoDS_Shape(), path("a.stl"))
read("stl")

from OCP.Message import Message_ProgressRange
from OCP.RWGltf import RWGltf_CafReader, RWGltf_CafWriter
from OCP.TCollection import TCollection_AsciiString

for name, binary, format in (("a.glb", True, "GLB"), ("a.gltf", False, "GLTF")):
    writer = RWGltf_CafWriter(TCollection_AsciiString(path(name)), binary)
    wrote(format, name, writer.Perform(document(shape), Info(), Message_ProgressRange()))
reader = RWGltf_CafReader()
if hasattr(reader, "SetDocument"):  # not in the Python of OCCT 7.7 and 7.8
    reader.SetDocument(document(shape))
    reader.Perform(TCollection_AsciiString(path("a.glb")), Message_ProgressRange())
    read("gltf")
# Documents with structure, as CadQuery and build123d write and read them.
from OCP.STEPCAFControl import STEPCAFControl_Reader, STEPCAFControl_Writer

writer = STEPCAFControl_Writer()
writer.Transfer(document(shape), STEPControl_AsIs)
wrote("STEP", "assembly.step", writer.Write(path("assembly.step")) == IFSelect_RetDone)
reader = STEPCAFControl_Reader()
reader.ReadFile(path("assembly.step"))
read("step")
reader.Transfer(document(shape))
if caf := optional("IGESCAFControl"):
    wrote("IGES", "assembly.igs", caf.IGESCAFControl_Writer().Perform(document(shape), path("assembly.igs")))
    reader = caf.IGESCAFControl_Reader()
    reader.ReadFile(path("assembly.igs"))
    read("iges")
    reader.Transfer(document(shape))
reader = VrmlAPI_CafReader()
if hasattr(reader, "SetDocument"):
    reader.SetDocument(document(shape))
    reader.Perform(TCollection_AsciiString(path("a.wrl")), Message_ProgressRange())
    read("vrml")
if mesh := optional("RWObj"):
    writer = mesh.RWObj_CafWriter(TCollection_AsciiString(path("a.obj")))
    wrote("OBJ", "a.obj", writer.Perform(document(shape), Info(), Message_ProgressRange()))
if mesh := optional("RWPly"):
    writer = mesh.RWPly_CafWriter(TCollection_AsciiString(path("a.ply")))
    wrote("PLY", "a.ply", writer.Perform(document(shape), Info(), Message_ProgressRange()))
done()
