# Workbenches that are loaded for the first time in this process; one that does not exist.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

I = "freecad_workbench_invocations_total"
K = "freecad_workbench_compatibility_total"
for family in I, K:
    scope(family)
before = set(sys.modules)
for module, workbench in (("Part", "Part"), ("Sketcher", "Sketcher"), ("Mesh", "Mesh"), ("Import", "Import"), ("Spreadsheet", "Spreadsheet")):
    for _ in range(3):
        __import__(module)
    # Importing one may load others; Python knows which.
NAMES = {"_PartDesign": "PartDesign", "AssemblyApp": "Assembly", "Materials": "Material", "DraftUtils": "Draft", "Path": "CAM", "PathApp": "CAM"}
KNOWN = "Part _PartDesign Sketcher AssemblyApp Mesh MeshPart Import Spreadsheet TechDraw Fem Materials Surface Points Measure Robot DraftUtils".split()
for module in KNOWN:
    if module in sys.modules:
        workbench = NAMES.get(module, module)
        expect(I, workbench=workbench)
        expect(K, workbench=workbench, compatible="true")
try:
    import NoSuchWorkbench
except ImportError:
    pass
done()
