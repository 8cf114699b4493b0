# What a job says it did: a line for each sample of /metrics that it raises. The test compares every series in a scope.
import json
import os

FOLDER = os.environ["JOB_FOLDER"]
_file = open(os.path.join(FOLDER, "expected"), "w")


def _write(**line):
    _file.write(json.dumps(line) + "\n")
    _file.flush()


def scope(family, **labels):
    """Every series of the family with these labels is compared: what is not expected must not have risen."""
    _write(scope=family, labels=labels)


def expect(family, n=1, **labels):
    """The job raised series of these labels by n in all (other labels may have any value)."""
    _write(expect=family, labels=labels, n=n)


def expect_some(family, **labels):
    """The job raised series of these labels, by how much differs with the version."""
    _write(expect_some=family, labels=labels)


def stage(name, n=1):
    """The job had so many outermost operations of this stage."""
    expect("model_generation_stage_duration_seconds", n, flow_type="unknown", stage=name)


def path(name):
    return os.path.join(FOLDER, name)


def size_range(file):
    size = os.path.getsize(file)
    for last, name in (
        (1 << 10, "00-below-1KiB"),
        (100 << 10, "01-1KiB-100KiB"),
        (1 << 20, "02-100KiB-1MiB"),
        (10 << 20, "03-1MiB-10MiB"),
        (100 << 20, "04-10MiB-100MiB"),
    ):
        if size < last:
            return name
    return "05-100MiB+"


def count_range(n):
    for last, name in ((0, "0000"), (1, "0001"), (5, "0002-0005"), (20, "0006-0020"), (100, "0021-0100"), (500, "0101-0500")):
        if n <= last:
            return name
    return "0501+"


def done(**versions):
    _write(done=True, **versions)
    print("job done")
