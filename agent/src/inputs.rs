//! Turns what a worker was started with and has read into the name of an export: the same for the same inputs.
//!
//! From outside, these are the inputs: the versions of FreeCAD and OCCT, the kind of job, the command line (a file that
//! an argument names counts by its contents), the contents of the files that the worker loaded, in their order; and which
//! of the worker's exports it is, by format, file name and number. What says only where or for whom it works does not
//! count: the job's and the request's id, the folder that is written to. The environment does not count, but for the kind
//! of job. Where the inputs are not known (a fork, another thread than the first, no script) an export has no name.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::digest::{DIGEST_BYTES, Digest, RULES, of_parts};
use crate::job::Job;

/// Files open for their digests at once, over all workers.
const OPEN_FILES: usize = 256;
/// Shorter ids are found by chance in a text.
const ID_BYTES: usize = 4;

/// What a worker was started with.
#[derive(Debug)]
pub struct Start {
    /// Its command line.
    pub arguments: Vec<String>,
    /// The files that arguments name, by the argument's index.
    pub files: BTreeMap<usize, File>,
    /// Where it works, below its root.
    pub folder: PathBuf,
    /// When it executed its program, CLOCK_MONOTONIC.
    pub executed_ns: u64,
}

/// A file that a worker wrote or read, as it was when the agent heard of it.
#[derive(Debug)]
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// What belongs to it, where a format has two files.
    pub beside: Option<File>,
    /// Its path below the worker's root.
    pub path: PathBuf,
    /// What the worker was started with; `None` where that is not known.
    pub start: Option<Arc<Start>>,
    _counted: Counted,
}

impl OpenFile {
    /// Takes a file; `None` if too many are open.
    #[must_use]
    pub fn new(
        file: File,
        beside: Option<File>,
        path: PathBuf,
        start: Option<Arc<Start>>,
        open: &Arc<AtomicUsize>,
    ) -> Option<Self> {
        let counted = Counted::new(open)?;
        Some(Self { file, beside, path, start, _counted: counted })
    }
}

/// One of the files that are open.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Option<Self> {
        if open.fetch_add(1, Ordering::Relaxed) < OPEN_FILES {
            return Some(Self(Arc::clone(open)));
        }
        open.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What became of the file of an operation.
#[derive(Clone, Debug)]
pub enum Touched {
    /// It is open.
    Open(Arc<OpenFile>),
    /// It is not, for this reason.
    Missed(&'static str),
}

/// What an argument is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(String),
    /// The contents of a file.
    File(Digest),
}

/// Everything that an export is named by.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Of FreeCAD and OCCT.
    pub versions: [&'a str; 2],
    /// The kind of job.
    pub flow_type: &'a str,
    /// For whom: does not count where arguments say it.
    pub job: &'a Job,
    /// File name of the program.
    pub program: &'a str,
    /// The command line behind the program.
    pub arguments: &'a [Argument],
    /// What it loaded before.
    pub loaded: &'a [Digest],
    /// As labels have it.
    pub format: &'a str,
    /// Where it is written to, below the worker's root.
    pub path: &'a Path,
    /// So many of this name and format were exported before.
    pub number: u32,
}

impl Inputs<'_> {
    /// Names the export.
    #[must_use]
    pub fn name(&self) -> Digest {
        let mut parts: Vec<Vec<u8>> = vec![RULES.to_le_bytes().to_vec()];
        let mut text = |text: &str| parts.push(text.as_bytes().to_vec());
        self.versions.iter().for_each(|version| text(version));
        text(self.flow_type);
        text(self.program);
        text(self.format);
        text(&anonymous(&file_name(self.path), self.job));
        for argument in self.arguments {
            match argument {
                Argument::Text(argument) => parts.push([b"t", argument.as_bytes()].concat()),
                Argument::File(digest) => parts.push([b"f".as_slice(), &digest.0].concat()),
            }
        }
        parts.push(vec![0; DIGEST_BYTES]);
        parts.extend(self.loaded.iter().map(|digest| digest.0.to_vec()));
        parts.push(self.number.to_le_bytes().to_vec());
        of_parts(parts.iter().map(Vec::as_slice))
    }
}

/// An argument without what says only where or for whom: the exported file, a folder above it, an id. That of `--to=PATH`
/// is looked at too.
#[must_use]
pub fn argument(text: &str, start_folder: &Path, exported: &Path, job: &Job) -> Argument {
    let place = |text: &str| {
        let path = below(start_folder, Path::new(text));
        if path == exported {
            Some(format!("{{file {}}}", anonymous(&file_name(exported), job)))
        } else if path.components().count() > 1 && exported.starts_with(&path) {
            Some("{folder}".to_owned())
        } else {
            None
        }
    };
    if let Some(place) = place(text) {
        return Argument::Text(place);
    }
    if let Some((option, value)) = text.split_once('=')
        && let Some(place) = place(value)
    {
        return Argument::Text(format!("{option}={place}"));
    }
    Argument::Text(anonymous(text, job))
}

/// A path as one below the root, without `.` and `..`.
#[must_use]
pub fn below(folder: &Path, path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in folder.join(path).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn anonymous(text: &str, job: &Job) -> String {
    let mut text = text.to_owned();
    for id in [&job.id, &job.request_id] {
        if id.len() >= ID_BYTES && text.contains(id.as_str()) {
            text = text.replace(id.as_str(), "{id}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> Job {
        Job { id: id.to_owned(), ..Job::default() }
    }

    const SCRIPT: Argument = Argument::File(Digest([7; 16]));
    const OTHER_SCRIPT: Argument = Argument::File(Digest([9; 16]));

    fn name(change: impl FnOnce(&mut Inputs<'_>)) -> Digest {
        let job = job("j-1234");
        let mut inputs = Inputs {
            versions: ["1.0", "7.8"],
            flow_type: "gear",
            job: &job,
            program: "freecadcmd",
            arguments: &[SCRIPT, Argument::Text("20".to_owned())],
            loaded: &[Digest([8; 16])],
            format: "STEP",
            path: Path::new("/tmp/j-1234/part-j-1234.step"),
            number: 0,
        };
        change(&mut inputs);
        inputs.name()
    }

    #[test]
    fn every_input_is_part_of_the_name_and_neither_folder_nor_job_is() {
        let one = name(|_| {});
        let other_job = job("j-9999");
        let changes: [fn(&mut Inputs<'_>); 7] = [
            |inputs| inputs.versions = ["1.1", "7.8"],
            |inputs| inputs.flow_type = "plate",
            |inputs| inputs.arguments = &[SCRIPT],
            |inputs| inputs.arguments = &[OTHER_SCRIPT],
            |inputs| inputs.loaded = &[],
            |inputs| inputs.number = 1,
            |inputs| inputs.path = Path::new("/tmp/other.step"),
        ];
        for change in changes {
            assert_ne!(one, name(change));
        }
        let same = Inputs {
            versions: ["1.0", "7.8"],
            flow_type: "gear",
            job: &other_job,
            program: "freecadcmd",
            arguments: &[SCRIPT, Argument::Text("20".to_owned())],
            loaded: &[Digest([8; 16])],
            format: "STEP",
            path: Path::new("/tmp/j-9999/part-j-9999.step"),
            number: 0,
        };
        assert_eq!(one, same.name());
    }

    #[test]
    fn an_argument_that_says_where_or_for_whom_does_not_count() {
        let job = job("j-1234");
        for (text, wanted) in [
            ("out/part.step", "{file part.step}"),
            ("/jobs/out/../out/part.step", "{file part.step}"),
            ("--to=out/part.step", "--to={file part.step}"),
            ("/jobs/out", "{folder}"),
            ("/", "/"),
            ("--job=j-1234", "--job={id}"),
            ("20", "20"),
            ("other/part.step", "other/part.step"),
        ] {
            let found = argument(text, Path::new("/jobs"), Path::new("/jobs/out/part.step"), &job);
            assert_eq!(found, Argument::Text(wanted.to_owned()), "{text}");
        }
    }

    #[test]
    fn so_many_files_are_open_and_no_more() {
        let open = Arc::new(AtomicUsize::new(OPEN_FILES - 1));
        let file = || File::open("/dev/null").unwrap();
        let new = || OpenFile::new(file(), None, PathBuf::new(), None, &open);
        let held = new();
        assert!(held.is_some() && new().is_none());
        drop(held);
        assert!(new().is_some());
    }
}
