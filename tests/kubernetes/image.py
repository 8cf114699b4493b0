#!/usr/bin/env python3
"""Turns files into a container image, without a builder: image.py OUT.tar NAME:TAG [--entrypoint ARG]… SOURCE=/DEST…

A SOURCE may be a folder (a whole root file system: DIR=/). One layer; owners become root, modes and links are kept, times
are zeroed. The archive has the OCI index and Docker's manifest.json: containerd, podman and skopeo read it. Standard
library only.
"""
import argparse, hashlib, io, json, os, sys, tarfile, tempfile

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("out")
parser.add_argument("name")
parser.add_argument("--entrypoint", action="append", default=[])
parser.add_argument("--exclude", action="append", default=[], help="path in the image that is left out, with what is below")
parser.add_argument("files", nargs="*")
arguments = parser.parse_intermixed_args()


def member(entry):
    name = "/" + entry.name.removeprefix("./")
    if any(name == path or name.startswith(path + "/") for path in arguments.exclude):
        return None
    # Devices belong to the runtime.
    if entry.isdev():
        return None
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


class Digested:
    """A file that digests what is written to it."""

    def __init__(self, file):
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data):
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def blob(data):
    return "sha256:" + hashlib.sha256(data).hexdigest(), len(data), io.BytesIO(data)


with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(arguments.out))) as file:
    digested = Digested(file)
    with tarfile.open(fileobj=digested, mode="w|") as layer:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "run"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            layer.addfile(entry)
        for word in arguments.files:
            source, _, destination = word.rpartition("=")
            if not source or not destination.startswith("/"):
                sys.exit(f"not SOURCE=/DEST: {word}")
            source = source if os.path.islink(source) and destination != "/" else os.path.realpath(source)
            layer.add(source, destination.strip("/") or ".", filter=member)
    layer = "sha256:" + digested.digest.hexdigest(), digested.size, file

    config = blob(json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            **({"Entrypoint": arguments.entrypoint} if arguments.entrypoint else {}),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer[0]]},
    }).encode())

    def described(kind, blob):
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": blob[0], "size": blob[1]}

    manifest = blob(json.dumps({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", config),
        "layers": [described("layer.v1.tar", layer)],
    }).encode())
    top = described("manifest.v1+json", manifest)
    top["annotations"] = {
        "io.containerd.image.name": arguments.name,
        "org.opencontainers.image.ref.name": arguments.name,
    }

    def path(blob):
        return "blobs/sha256/" + blob[0].removeprefix("sha256:")

    members = {
        "oci-layout": blob(b'{"imageLayoutVersion":"1.0.0"}'),
        "index.json": blob(json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()),
        "manifest.json": blob(json.dumps([
            {"Config": path(config), "RepoTags": [arguments.name], "Layers": [path(layer)]}
        ]).encode()),
        path(config): config,
        path(manifest): manifest,
        path(layer): layer,
    }
    with tarfile.open(arguments.out, "w") as out:
        for name, (_, size, data) in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = size
            data.seek(0)
            out.addfile(entry, data)
print(arguments.name, manifest[0])
