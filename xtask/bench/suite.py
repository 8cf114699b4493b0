"""Runs FreeCAD's own tests, and says in the file that CADSCOPE_PARTS names what CPU time each part of them took.

A part is a test, or one of the thousand files that one of them parses.
"""

import ast
import os
import time
import unittest

import TestApp

PARTS = []
LAST = time.process_time_ns()
PARSE = ast.parse


def part(name):
    """Ends one."""
    global LAST
    now = time.process_time_ns()
    PARTS.append((name, now - LAST))
    LAST = time.process_time_ns()


def parse(*given, **named):
    tree = PARSE(*given, **named)
    part("ast.parse")
    return tree


class Result(unittest.TextTestResult):
    def stopTest(self, test):
        part(test.id())
        super().stopTest(test)


tests = unittest.defaultTestLoader.loadTestsFromName("TestApp.All")
part("import")
ast.parse = parse
unittest.TextTestRunner(resultclass=Result).run(tests)
ast.parse = PARSE
if "CADSCOPE_PARTS" in os.environ:
    with open(os.environ["CADSCOPE_PARTS"], "w") as file:
        file.writelines(f"{name} {nanoseconds}\n" for name, nanoseconds in PARTS)
