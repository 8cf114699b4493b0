# What CadQuery's published tests import from their own package, which is not published with them.
import unittest
from pathlib import Path

from cadquery import Solid, Vector, Wire


class BaseTest(unittest.TestCase):
    def assertTupleAlmostEquals(self, wanted, found, places, msg=None):
        for one, other in zip(wanted, found):
            self.assertAlmostEqual(one, other, places, msg)


def makeCube(size, xycentered=True):
    cube = Solid.makeBox(size, size, size)
    return cube.translate(Vector(-size / 2, -size / 2, 0)) if xycentered else cube


def makeUnitCube(centered=True):
    return makeCube(1.0, centered)


def makeUnitSquareWire():
    corners = (0, 0), (1, 0), (1, 1), (0, 1), (0, 0)
    return Wire.makePolygon([Vector(x, y, 0) for x, y in corners])


def readFileAsString(file):
    return Path(file).read_text()


def writeStringToFile(text, file):
    Path(file).write_text(text)


def toTuple(vector):
    return vector.toTuple() if isinstance(vector, Vector) else (vector.X(), vector.Y(), vector.Z())
