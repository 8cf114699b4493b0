# Documents and what else OCCT's versions name in different ways.
from OCP.TCollection import TCollection_ExtendedString
from OCP.TDocStd import TDocStd_Document
from OCP.XCAFApp import XCAFApp_Application
from OCP.XCAFDoc import XCAFDoc_DocumentTool

try:
    from OCP.TColStd import TColStd_IndexedDataMapOfStringString as Info
except ImportError:
    from OCP.collections import IndexedDataMap_TCollection_AsciiString_TCollection_AsciiString as Info


def static(cls, name):
    return getattr(cls, name, None) or getattr(cls, name + "_s")


def document(shape):
    made = TDocStd_Document(TCollection_ExtendedString("XmlOcaf"))
    static(XCAFApp_Application, "GetApplication")().NewDocument(TCollection_ExtendedString("MDTV-XCAF"), made)
    static(XCAFDoc_DocumentTool, "ShapeTool")(made.Main()).AddShape(shape)
    return made
