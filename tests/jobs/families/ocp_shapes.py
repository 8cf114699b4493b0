# Shapes for the jobs that use OCCT alone.
from OCP.BRepPrimAPI import BRepPrimAPI_MakeBox
from OCP.gp import gp_Pnt
from OCP.TopAbs import TopAbs_EDGE, TopAbs_FACE, TopAbs_VERTEX
from OCP.TopExp import TopExp_Explorer
from OCP.TopoDS import TopoDS

try:
    from OCP.TopTools import TopTools_ListOfShape as List
except ImportError:
    List = None


def listed(shapes):
    if List is None:
        return make_list(shapes)
    found = List()
    for shape in shapes:
        found.Append(shape)
    return found


def make_list(shapes):
    """OCCT 8 has no name for its list of shapes: build123d knows how it is called there."""
    import OCP

    from OCP.collections import List_TopoDS_Shape

    found = List_TopoDS_Shape()
    for shape in shapes:
        found.Append(shape)
    return found


def boxes(n):
    return [BRepPrimAPI_MakeBox(gp_Pnt(7 * i, i, i), 10, 10, 10).Shape() for i in range(n)]


def _cast(kind):
    for name in (kind, kind + "_s"):
        if hasattr(TopoDS, name):
            return getattr(TopoDS, name)


def parts(shape, what):
    which = {"Edge": TopAbs_EDGE, "Face": TopAbs_FACE, "Vertex": TopAbs_VERTEX}[what]
    explorer, found = TopExp_Explorer(shape, which), []
    cast = _cast(what)
    while explorer.More():
        found.append(cast(explorer.Current()))
        explorer.Next()
    return found
