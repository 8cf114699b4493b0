# Workbenches that cannot be loaded, because what they need cannot be.
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from expected import done, expect, scope

I = "freecad_workbench_invocations_total"
K = "freecad_workbench_compatibility_total"
for family in I, K:
    scope(family)
sys.modules["Part"] = None
for module, workbench in (("Sketcher", "Sketcher"), ("_PartDesign", "PartDesign"), ("Surface", "Surface")):
    try:
        __import__(module)
        raise SystemExit("%s was loaded without Part" % module)
    except ImportError:
        pass
    expect(I, workbench=workbench)
    expect(K, workbench=workbench, compatible="false")
done()
