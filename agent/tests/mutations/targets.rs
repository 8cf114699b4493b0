//! Turns bytes of strangers into calls of what reads them in the agent: one target for each kind of input.
//!
//! Shared by the test of changed inputs (`agent/tests/mutations.rs`, in each test run) and the fuzzer that coverage guides
//! (`tests/fuzz`, `cargo xtask fuzz`). A target answers nothing: that it returns is what is promised.

use std::io::Cursor;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cadscope::catalog::{Catalog, demangle_type};
use cadscope::config::{AgentUrl, Args, Config};
use cadscope::container::Container;
use cadscope::discover;
use cadscope::export::exposition::Format;
use cadscope::export::http::{Guard, Shared, Status, bind, serve};
use cadscope::export::metrics::{Metrics, MetricsOptions};
use cadscope::flow_type::flow_type;
use cadscope::identify;
use cadscope::job::{Job, Variables};
use cadscope::operation::Texts;
use cadscope::plan::{Versions, plan, tls};
use cadscope::python::Interpreter;
use cadscope::receive::{self, Event, Exceptions};
use cadscope::{ai, digest};
use clap::Parser as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// One kind of input.
pub(crate) struct Target {
    /// As `cargo xtask fuzz` takes it.
    pub(crate) name: &'static str,
    /// No input is longer; real ones that are longer are no seed.
    pub(crate) most_bytes: usize,
    /// Real inputs.
    pub(crate) seeds: Vec<Vec<u8>>,
    /// Reads one.
    pub(crate) read: Box<dyn Fn(&[u8])>,
}

/// All of them.
pub(crate) fn all() -> Vec<Target> {
    vec![
        elf(),
        proc_texts(),
        environ(),
        cgroup(),
        records(),
        catalogue(),
        config(),
        http(),
        memory(),
        exports(),
        names(),
        accept(),
        url(),
    ]
}

fn target(name: &'static str, seeds: &[&[u8]], read: impl Fn(&[u8]) + 'static) -> Target {
    let seeds = seeds.iter().map(|seed| seed.to_vec()).collect();
    Target { name, most_bytes: 4096, seeds, read: Box::new(read) }
}

fn text(read: impl Fn(&str)) -> impl Fn(&[u8]) {
    move |bytes| read(&String::from_utf8_lossy(bytes))
}

/// The first byte chooses one of `count`, the rest is the input.
fn chosen(bytes: &[u8], count: usize) -> (usize, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (usize::from(*first) % count, rest))
}

/// Files of a worker to sites: headers, symbols, frames, instructions.
fn elf() -> Target {
    let catalog = Catalog::builtin().unwrap();
    let read = move |bytes: &[u8]| {
        let _ = plan(bytes, &catalog, &Versions::default());
        let _ = tls(bytes);
    };
    Target { most_bytes: 96 << 10, seeds: elf_files(), ..target("elf", &[], read) }
}

/// Small real ELF files: this machine has at least the runtimes of the program itself.
fn elf_files() -> Vec<Vec<u8>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(before, _)| &line[before.len()..]))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    let small = |path: &&str| std::fs::metadata(path).is_ok_and(|file| file.len() < 4 << 20);
    let files: Vec<Vec<u8>> =
        paths.into_iter().filter(small).filter_map(|path| std::fs::read(Path::new(path)).ok()).collect();
    assert!(!files.is_empty());
    files
}

const PROC_FILES: [&str; 6] = ["maps", "status", "stat", "statm", "cgroup", "cmdline"];

/// /proc's texts of a process, read as the agent does, from files; the first byte says which one is changed.
fn proc_texts() -> Target {
    let own: Vec<Vec<u8>> =
        PROC_FILES.iter().map(|name| std::fs::read(Path::new("/proc/self").join(name)).unwrap()).collect();
    let seeds: Vec<Vec<u8>> = own
        .iter()
        .enumerate()
        .map(|(at, file)| {
            let mut seed = vec![u8::try_from(at).unwrap()];
            // Of the mappings, those at the begin.
            seed.extend(file.iter().take(3000));
            seed
        })
        .collect();
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let process = folder.path().join("7");
    std::fs::create_dir_all(process.join("task/7")).unwrap();
    let read = move |bytes: &[u8]| {
        let proc = folder.path();
        let (which, changed) = chosen(bytes, PROC_FILES.len());
        for (at, (name, file)) in PROC_FILES.iter().zip(&own).enumerate() {
            std::fs::write(process.join(name), if at == which { changed } else { file }).unwrap();
        }
        std::fs::write(process.join("task/7/status"), if which == 1 { changed } else { &own[1] }).unwrap();
        drop(discover::mappings_of(proc, 7));
        let _ = discover::Rights::of(proc, 7);
        let _ = (discover::usage_of(proc, 7), discover::key_of(proc, 7), discover::parent_of(proc, 7));
        let _ = (discover::resident_bytes(proc, 7), discover::thread_in_its_namespace(proc, 7, 7));
        drop(discover::container::container_of(proc, 7));
        drop(discover::container::command_of(proc, 7));
    };
    Target { seeds, ..target("proc", &[], read) }
}

fn environ() -> Target {
    let seed = b"JOB_ID=a\0TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\0BAGGAGE=job.id=x,k=%41;p=1\0TRACESTATE=a=b\0FLOW_TYPE=web\0\0=\0";
    let variables = Variables::default();
    target("environ", &[seed], move |bytes| drop(Job::from_environ(bytes, &variables)))
}

fn cgroup() -> Target {
    let cgroups = b"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_0000_4000_8000_0123456789ab.slice/cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope\n12:pids:/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";
    let bundle = br#"{"annotations":{"io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.sandbox-name":"p","io.kubernetes.cri.container-name":"c"}}"#;
    target("cgroup", &[cgroups, bundle], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        drop(Container::from_cgroups(&text));
        let words: Vec<String> = text.split(['/', '-']).map(str::to_owned).collect();
        drop(Container::default().with_bundle(bytes).with_monitor(&words));
        drop(flow_type(&text, &words, &[]));
    })
}

/// What the kernel side says, and what is made of it: values, names of exceptions, calls of providers.
fn records() -> Target {
    let seeds = (0..16_u32)
        .map(|kind| {
            let mut record = kind.to_ne_bytes().to_vec();
            record.resize(900, 7);
            record
        })
        .collect();
    let catalog = Catalog::builtin().unwrap();
    let providers = ai::Providers::default();
    let read = move |bytes: &[u8]| match receive::read(bytes, &mut receive::Room::default()) {
        Ok(Event::Ended(operation)) => {
            for probe in &catalog.probes {
                for layout in &probe.layouts {
                    let _ = probe.outcome(&probe.decode(
                        layout,
                        operation,
                        &operation.text,
                        &mut Texts::default(),
                    ));
                }
            }
        }
        Ok(Event::Thrown(exception)) => Exceptions::default().announce(&exception),
        Ok(Event::Exchanged(exchange)) => drop(providers.call(&exchange)),
        Ok(_) | Err(_) => {}
    };
    Target { seeds, ..target("records", &[], read) }
}

fn catalogue() -> Target {
    let probes = include_bytes!("../../src/catalog/occt.toml");
    let read = text(|text| {
        // A user's file is small, and so is what is changed of ours.
        let start = text.find("[[probe]]").unwrap_or(0);
        let part = &text[start..text.floor_char_boundary((start + 8192).min(text.len()))];
        drop(Catalog::default().add(part, "changed"));
    });
    let whole = String::from_utf8_lossy(probes);
    let part: Vec<u8> =
        whole.find("[[probe]]").map_or(Vec::new(), |at| probes[at..].iter().take(8000).copied().collect());
    Target { most_bytes: 8192, seeds: vec![probes.to_vec(), part], ..target("catalogue", &[], read) }
}

/// The configuration file of an agent.
fn config() -> Target {
    let seed = b"listen = \"127.0.0.1:1\"\nlinger = \"5s\"\nattach = \"perf-events\"\ntrace_ratio = 0.5\notlp_headers = \"a=b\"\nai_latency = true\n\
        [[flow]]\nprogram = \"a*\"\nflow_type = \"x\"\n[[ai_provider]]\nhost = \"*.example.com\"\nprovider = \"p\"\n\
        [[probe]]\nid = \"a.b\"\nsymbol = \"_Z1av\"\ntitle = \"a\"\n";
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("cadscope.toml");
    let words = ["cadscope".as_ref(), "--config".as_ref(), path.as_os_str(), "agent".as_ref()];
    let arguments = Args::try_parse_from(words).unwrap();
    target("config", &[seed], move |bytes| {
        let _folder: &Path = folder.path();
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = Config::from_args(arguments.clone(), |_| None) {
            drop(error.to_string());
        }
    })
}

/// What a client sends, to the pages as they are served. The client comes from another address of the loopback network each
/// time: closed connections keep their ports for a minute.
fn http() -> Target {
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n").into_bytes();
    let mut seeds: Vec<Vec<u8>> =
        ["/", "/live", "/metrics", "/status", "/progress?job_id=1&pid=%32", "/livez", "/readyz", "/no/such"]
            .iter()
            .map(|path| request(path))
            .collect();
    seeds.push(b"POST /status HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer 0\r\n\r\n2\r\nab\r\n0\r\n\r\n".to_vec());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(async {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(MetricsOptions::default()));
        let shared = Arc::new(Shared::new(metrics, Status::default()));
        tokio::spawn(serve(listener, shared, Arc::new(Guard::default()), std::future::pending()));
        server
    });
    let client = std::cell::Cell::new(1_u32);
    let read = move |bytes: &[u8]| {
        client.set((client.get() + 1) % 0x00ff_fff0 + 1);
        runtime.block_on(ask(
            server,
            SocketAddr::from(((0x7f00_0000 | client.get()).to_be_bytes(), 0)),
            bytes,
        ));
    };
    Target { seeds, ..target("http", &[], read) }
}

async fn ask(server: SocketAddr, client: SocketAddr, request: &[u8]) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(client).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    // A page that never ends is left after its begin.
    let mut answer = Vec::new();
    let mut stream = stream.take(1 << 20);
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "no answer of HTTP");
}

/// A worker's memory as bytes from address 0 on: FreeCAD's map of its versions, and the frames of its Python.
fn memory() -> Target {
    let seeds = [0x030b_04f0_u64, 0x030c_00f0, 0x030d_00f0, 0x030e_00f0].map(|version| {
        let mut seed: Vec<u8> = (0..512_u64).flat_map(|word| (word % 64 * 8).to_le_bytes()).collect();
        seed[..8].copy_from_slice(&version.to_le_bytes());
        seed[8..16].copy_from_slice(b"xdebugpy");
        seed
    });
    let read = |bytes: &[u8]| {
        let memory = |addr: u64, to: &mut [u8]| {
            let start = usize::try_from(addr).unwrap_or(usize::MAX);
            let from = start.checked_add(to.len()).and_then(|end| bytes.get(start..end));
            from.map(|from| to.copy_from_slice(from)).is_some()
        };
        drop(identify::versions_from_config(0, memory));
        if let Ok(interpreter) = Interpreter::new(8, 0, &memory) {
            drop(interpreter.stack(8, 256, &memory));
        }
        drop(identify::freecad_version_from_dpkg_status(&String::from_utf8_lossy(bytes)));
    };
    Target { seeds: seeds.to_vec(), ..target("memory", &[], read) }
}

const EXPORTS: [digest::Format; 9] = [
    digest::Format::Step,
    digest::Format::Iges,
    digest::Format::Stl,
    digest::Format::Glb,
    digest::Format::Gltf,
    digest::Format::Lines,
    digest::Format::Ply,
    digest::Format::Zip,
    digest::Format::Raw,
];

/// Files that workers export; the first byte says which format they are said to have.
fn exports() -> Target {
    let seeds: [&[u8]; 8] = [
        b"\0ISO-10303-21;\nHEADER;\nFILE_NAME('a','2026-01-01T00:00:00',('b'),('c'),'d','e','');\nENDSEC;\nDATA;\n#1=DATE_TIME_ROLE('x');/* c */\n#2=PERSON('a''b',$,*);\nENDSEC;\nEND-ISO-10303-21;\n",
        b"\x01                                                                        S      1\n1H,,1H;,4Hname,8Ha.igs,3Hx,32,38,6,308,15,,1.,2,2HMM,1,0.01,15H20260101.000000G      1\nS      1G      1D      0P      0                                        T      1\n",
        b"\x02solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\nendsolid a\n",
        b"\x03glTF\x02\0\0\0\x40\0\0\0\x20\0\0\0JSON{\"asset\":{\"generator\":\"a\"}}    \x04\0\0\0BIN\0abcd",
        b"\x04{\"asset\":{\"version\":\"2.0\",\"generator\":\"a\",\"copyright\":\"b\"},\"buffers\":[{\"uri\":\"a.bin\",\"byteLength\":1}],\"images\":[{\"uri\":\"x.png\"}]}",
        b"\x05# comment\nmtllib a.mtl\nv 0 0 0\nf 1 1 1\n",
        b"\x06ply\nformat ascii 1.0\ncomment x\nobj_info y\nelement vertex 1\nproperty float x\nend_header\n0\n",
        b"\x07PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\x43\xbe\xb7\xe8\x01\0\0\0\x01\0\0\0\x01\0\0\0aaPK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0\x43\xbe\xb7\xe8\x01\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0aPK\x05\x06\0\0\0\0\x01\0\x01\0\x2f\0\0\0\x20\0\0\0\0\0",
    ];
    target("exports", &seeds, |bytes| {
        let (format, file) = chosen(bytes, EXPORTS.len());
        let digest = |format| digest::of_file(Cursor::new(file), format).unwrap();
        assert_eq!(digest(EXPORTS[format]), digest(EXPORTS[format]));
    })
}

fn names() -> Target {
    let seeds: [&[u8]; 4] =
        [b"N4Part3BoxE", b"St4pairIiiE", b"NSt6vectorIPN3App14DocumentObjectESaIS2_EE", b"*N3$_0E"];
    target("names", &seeds, text(|text| drop(demangle_type(text))))
}

fn accept() -> Target {
    let seed = b"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    target("accept", &[seed], text(|text| assert!(!Format::negotiate(text).content_type().is_empty())))
}

fn url() -> Target {
    target("url", &[b"http://[::1]:9777/agent/"], text(|text| drop(text.parse::<AgentUrl>())))
}

/// The inputs of a target that are kept in the repository: what the fuzzer found worth keeping.
pub(crate) fn kept(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(name);
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort_unstable();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}
