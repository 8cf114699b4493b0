# A job whose slow operations are called from known lines: it says which, in JOB_RECORD.
# They are made slow enough for the machine that it runs on. Runs in freecadcmd of 0.20 and later.
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import FreeCAD as App
from drilled import enough, parts

RECORD = open(os.environ["JOB_FOLDER"] + "/record", "w")


def here(what, kind):
    # The line of the caller: the call itself stands on it.
    frame = sys._getframe(1)
    RECORD.write(json.dumps({"what": what, "kind": kind, "line": frame.f_lineno, "function": frame.f_code.co_qualname}) + "\n")
    RECORD.flush()


class Plate:
    def drill(self, base, tool):
        for _ in range(2):
            here("method", "boolean cut"), base.cut(tool)


def nested(base, tool):
    return [(here("comprehension", "boolean cut"), base.cut(tool)) for _ in range(1)]


class Feature:
    # Runs inside a recompute: Python below C++ below Python.
    def __init__(self, obj, base, tool):
        self.base, self.tool = base, tool
        obj.Proxy = self

    def execute(self, obj):
        here("execute", "boolean union"), self.base.fuse(self.tool)


def run():
    base, tool = parts(enough(0.6))
    Plate().drill(base, tool)
    nested(base, tool)
    document = App.newDocument("Lines")
    obj = document.addObject("Part::FeaturePython", "Scripted")
    Feature(obj, base, tool)
    here("recompute", "recompute document"), document.recompute()
    (lambda: (here("lambda", "boolean cut"), base.cut(tool)))()


run()
print("job done")
sys.stdout.flush()
