//! Turns a command into the files that its start will map, so that they have their probes before it begins.
//!
//! The dynamic loader says which: `ld.so --list` maps the program and its libraries and runs none of their code. What
//! the program loads later, or a program without a loader, is left to the kernel's account of mappings.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use object::elf::PT_INTERP;
use object::read::elf::{FileHeader, ProgramHeader};

/// Interpreters of interpreters that are followed, as the kernel does.
const MOST_INTERPRETERS: usize = 4;
/// How much of a program is read for its loader's name.
const HEAD_BYTES: u64 = 1 << 16;
/// Libraries that are looked at.
const MOST_FILES: usize = 2048;

/// The files that are mapped when this command starts, the program's own first; empty if that cannot be told.
#[must_use]
pub(super) fn files(command: &OsStr) -> Vec<PathBuf> {
    let Some(mut program) = find(command) else { return Vec::new() };
    for _ in 0..MOST_INTERPRETERS {
        let mut head = Vec::new();
        let read = File::open(&program).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
        if read.is_err() {
            break;
        }
        match interpreter(&head) {
            Some(next) => match next.file_name() {
                Some(name) if name == "env" => break,
                _ => program = next,
            },
            None => return loader(&head).map(|loader| list(&loader, &program)).unwrap_or_default(),
        }
    }
    Vec::new()
}

/// The file of a command, as execvp finds it.
fn find(command: &OsStr) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(command));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(command)).find(|file| file.is_file())
}

/// The interpreter of a script.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let word = line.split(u8::is_ascii_whitespace).next()?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// The dynamic loader of an ELF file.
fn loader(head: &[u8]) -> Option<PathBuf> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(head).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, head).ok()?;
    let name =
        segments.iter().find(|segment| segment.p_type(endian) == PT_INTERP)?.data(endian, head).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(name.strip_suffix(b"\0")?)))
}

fn list(loader: &Path, program: &Path) -> Vec<PathBuf> {
    let said = Command::new(loader).arg("--list").arg(program).stdin(Stdio::null()).output();
    let text = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    std::iter::once(program.to_owned()).chain(libraries(&text)).take(MOST_FILES).collect()
}

/// The paths in what the loader says: `libTKBO.so.7 => /usr/lib/libTKBO.so.7 (0x00007f…)`.
fn libraries(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        let file = line.split_once(" => ").map_or(line, |(_, file)| file).trim();
        let file = file.rsplit_once(" (").map_or(file, |(file, _)| file);
        file.starts_with('/').then(|| PathBuf::from(file))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_names_a_program_and_its_libraries() {
        let files = files(OsStr::new("sh"));
        let name = |file: &PathBuf| file.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(name(&files[0]), "sh");
        assert!(files.iter().any(|file| name(file).starts_with("libc.so")), "{files:?}");
    }

    #[test]
    fn a_script_is_its_interpreter() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("job");
        std::fs::write(&script, "#! /bin/sh -e\n").unwrap();
        assert_eq!(files(script.as_os_str())[0], Path::new("/bin/sh"));
        std::fs::write(&script, "#!/usr/bin/env sh\n").unwrap();
        assert!(files(script.as_os_str()).is_empty());
    }

    #[test]
    fn what_is_no_program_has_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("odd");
        for bytes in [&b""[..], b"\x7fELF", b"#!", b"text"] {
            std::fs::write(&odd, bytes).unwrap();
            assert!(files(odd.as_os_str()).is_empty());
        }
        assert!(files(OsStr::new("no-such-command-anywhere")).is_empty());
    }

    #[test]
    fn lines_without_a_path_are_left_out() {
        let said = "\tlinux-vdso.so.1 (0x0000)\n\tliba.so => /x/liba.so (0x1)\n\tlibb.so => not found\n\t/lib/ld.so (0x2)";
        let found: Vec<PathBuf> = libraries(said).collect();
        assert_eq!(found, [PathBuf::from("/x/liba.so"), PathBuf::from("/lib/ld.so")]);
    }
}
