//! Turns the checkout into a Debian package: the program, its unit, its configuration.
//!
//! What is in it lies ready under `deploy/`; only the list of files and dpkg's control file are made here.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::{Profile, build};
use crate::places::{repository, target_dir};
use crate::shell::run;

/// A file of the package: where it is here, where it goes, its mode.
type Entry = (&'static str, &'static str, u32);

/// Beside the program.
const FILES: &[Entry] = &[
    ("deploy/systemd/cadscope.service", "usr/lib/systemd/system/cadscope.service", 0o644),
    ("deploy/systemd/sysusers.conf", "usr/lib/sysusers.d/cadscope.conf", 0o644),
    ("deploy/systemd/cadscope.toml", "etc/cadscope/cadscope.toml", 0o644),
    ("deploy/systemd/default", "etc/default/cadscope", 0o644),
    ("deploy/systemd/sys-admin.conf", "usr/share/doc/cadscope/sys-admin.conf", 0o644),
    ("LICENSE", "usr/share/doc/cadscope/copyright", 0o644),
    ("LICENSE-APACHE", "usr/share/doc/cadscope/LICENSE-APACHE", 0o644),
    ("LICENSE-MIT", "usr/share/doc/cadscope/LICENSE-MIT", 0o644),
    ("CHANGELOG.md", "usr/share/doc/cadscope/CHANGELOG.md", 0o644),
    ("README.md", "usr/share/doc/cadscope/README.md", 0o644),
    ("deploy/debian/postinst", "DEBIAN/postinst", 0o755),
    ("deploy/debian/prerm", "DEBIAN/prerm", 0o755),
    ("deploy/debian/postrm", "DEBIAN/postrm", 0o755),
];

/// Builds target/package/cadscope_VERSION_amd64.deb and answers where it is.
pub(crate) fn package() -> Result<PathBuf> {
    let binary = build(Profile::Release)?;
    let folder = target_dir()?.join("package");
    let tree = folder.join("tree");
    let _ = fs::remove_dir_all(&tree);
    copy(&binary, &tree.join("usr/bin/cadscope"), 0o755)?;
    for (from, to, mode) in FILES {
        copy(&repository()?.join(from), &tree.join(to), *mode)?;
    }
    let kilobytes = fs::metadata(&binary)?.len() / 1024 + 100;
    write(&tree.join("DEBIAN/control"), &control(env!("CARGO_PKG_VERSION"), kilobytes))?;
    let conffiles = FILES.iter().filter(|(_, to, _)| to.starts_with("etc/"));
    let conffiles = conffiles.fold(String::new(), |mut list, (_, to, _)| {
        let _ = writeln!(list, "/{to}");
        list
    });
    write(&tree.join("DEBIAN/conffiles"), &conffiles)?;
    let package = folder.join(format!("cadscope_{}_amd64.deb", env!("CARGO_PKG_VERSION")));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&package))?;
    let bytes = fs::metadata(&package)?.len();
    println!("{} ({}.{} MB)", package.display(), bytes / 1_000_000, bytes / 100_000 % 10);
    Ok(package)
}

/// No library is depended on: the program is static. systemd-sysusers makes the user.
fn control(version: &str, kilobytes: u64) -> String {
    format!(
        "Package: cadscope\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: The cadscope project <cadscope@cadscope.invalid>\n\
         Installed-Size: {kilobytes}\n\
         Depends: systemd | systemd-standalone-sysusers\n\
         Section: admin\n\
         Priority: optional\n\
         Homepage: https://github.com/cadscope/cadscope\n\
         Description: observes FreeCAD and Open CASCADE jobs with eBPF\n \
         Every boolean, fillet, recompute, load, save and export of every FreeCAD or OCCT\n \
         job of the machine as Prometheus metrics and OpenTelemetry traces. Nothing in\n \
         FreeCAD, OCCT, Python or the jobs is changed.\n"
    )
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    write(to, "")?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
    fs::write(path, text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_package_is_there() {
        for (from, _, _) in FILES {
            assert!(repository().unwrap().join(from).is_file(), "{from}");
        }
    }

    #[test]
    fn a_description_goes_on_in_lines_that_begin_with_a_space() {
        let text = control("1.2.3", 4);
        let rest: Vec<&str> =
            text.lines().skip_while(|line| !line.starts_with("Description")).skip(1).collect();
        assert!(rest.len() == 3 && rest.iter().all(|line| line.starts_with(' ')), "{text}");
    }
}
