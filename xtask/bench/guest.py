"""Runs a job alone and beside the agent, in turn, and says what CPU time each run took; see xtask/src/bench/instructions.rs.

Run in a machine whose clock counts instructions: a nanosecond is one.
"""

import os
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request

AGENT, FREECAD, FIRST, JOB, PAIRS_FROM, PAIRS_TO = sys.argv[1:7]
SETTINGS = dict(setting.split("=", 1) for setting in sys.argv[7:])
ADDRESS = "127.0.0.1:9777"
PARTS = "/tmp/parts"


def run(script):
    """Runs it; nanoseconds of CPU time, its own and the kernel's: only their sum is exact."""
    if os.path.exists(PARTS):
        os.remove(PARTS)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([FREECAD, script], check=True, env={**os.environ, **SETTINGS, "CADSCOPE_PARTS": PARTS}, **quiet)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e9)


def wait_until_ready():
    for _ in range(3000):
        try:
            if urllib.request.urlopen(f"http://{ADDRESS}/readyz").status == 200:
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    sys.exit("the agent does not get ready")


def tell_parts(side, pair):
    """Hands on what the last run said of its parts, if it did."""
    if os.path.exists(PARTS):
        with open(PARTS) as parts:
            for line in parts:
                print("@@keep", side, pair, line, end="", flush=True)


def alone():
    run(FIRST)
    return (run(JOB),)


def observed():
    agent = subprocess.Popen([AGENT, "agent", "--listen", ADDRESS, "--state", "/tmp/state"], stderr=subprocess.DEVNULL)
    wait_until_ready()
    run(FIRST)
    cost = run(JOB)
    # So that what it has seen is in what it shows.
    time.sleep(2)
    page = urllib.request.urlopen(f"http://{ADDRESS}/metrics").read().decode()
    received = sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith("cadscope_events_received_total"))
    agent.terminate()
    agent.wait()
    return cost, round(received)


offscreen = {"env": {**os.environ, **SETTINGS}, "stdin": subprocess.DEVNULL}
greeting = subprocess.run([FREECAD, os.devnull], capture_output=True, text=True, check=False, **offscreen)
for line in (greeting.stdout + greeting.stderr).splitlines():
    if line.startswith("FreeCAD "):
        print("@@say", line, flush=True)
# The files are in the page cache then.
run(FIRST)
for pair in range(int(PAIRS_FROM), int(PAIRS_TO)):
    # Alternately, as what a machine has done before is never quite the same.
    sides = [("alone", alone), ("observed", observed)]
    for side, measure in sides if pair % 2 == 0 else reversed(sides):
        print("@@say", side, *measure(), flush=True)
        tell_parts(side, pair)
