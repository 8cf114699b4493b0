//! Files that a worker maps: their paths lead elsewhere, they are endless to read, or they change meanwhile.

use super::*;

/// Whether files of the host have been opened since.
struct Untouched(Inotify);

impl Untouched {
    fn watch(files: &[&Path]) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        for file in files {
            inotify.add_watch(*file, AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS)?;
        }
        Ok(Self(inotify))
    }

    fn check(&self, what: &str) -> Result<()> {
        let events = self.0.read_events();
        ensure!(
            matches!(events, Err(nix::Error::EAGAIN)),
            "{what}: a file of the host was opened: {events:?}"
        );
        Ok(())
    }
}

/// A file system in memory of its own, whose inode numbers begin anew; ends with the value.
struct Memory(PathBuf);

impl Memory {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), none, None::<&str>)?;
        Ok(Self(at))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_path_that_leads_out_of_the_container_or_to_another_file_opens_nothing_of_the_host() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    // The same inode number in both: what is told by the number alone is told wrongly.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let (root, host) =
        (Memory::mount(folder.path().join("root"))?, Memory::mount(folder.path().join("host"))?);
    let (program, secret) = (root.0.join("hostile-copy"), host.0.join("hostile-copy"));
    let watched = Watched::start(&by_path(), &[])?;
    for copy in [&program, &secret] {
        fs::copy(&watched.program, copy)?;
        // Another build than the worker's, by its last byte.
        fs::OpenOptions::new().append(true).open(copy)?.write_all(b"x")?;
    }
    ensure!(fs::metadata(&program)?.ino() == fs::metadata(&secret)?.ino(), "inode numbers differ");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let untouched = Untouched::watch(&[&secret])?;
    for link in [secret.clone(), PathBuf::from("../../..").join(secret.strip_prefix("/")?)] {
        let worker = behind_its_back(&watched.agent, || {
            let worker = watched.mapping_as(NOBODY, &[&program])?;
            fs::rename(&program, root.0.join("moved"))?;
            symlink(&link, &program)?;
            Ok(worker)
        })?;
        let_it_look(&watched)?;
        untouched.check(&link.display().to_string())?;
        ensure!(!watched.agent.has_probed(&["hostile-copy"])?, "the file at the path was probed");
        drop(worker);
        fs::remove_file(&program)?;
        fs::rename(root.0.join("moved"), &program)?;
    }
    harmless(
        "A library's path that leads out of the container",
        "an absolute and a relative link to a file of the host with the same inode number, by another user",
        "the file of the host is neither opened nor probed",
    )
}

#[test]
fn a_chrooted_workers_links_end_at_its_own_root() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("lib"))?;
    let watched = Watched::start(&by_path(), &[])?;
    // What the worker needs to run in there.
    let needed = run(Command::new("ldd").arg(&watched.program), LIMIT)?.stdout;
    for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("no folder")?)?;
        fs::copy(library, &to)?;
    }
    fs::copy(&watched.program, root.join("hostile-inside"))?;
    let host = folder.path().join("hostile-secret");
    fs::copy(&watched.program, &host)?;
    let untouched = Untouched::watch(&[&host])?;
    let in_chroot = |words: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(&root).arg("/hostile-inside").args(words);
        command
    };
    watched
        .agent
        .learn(&["/hostile-inside"], || run(&mut in_chroot(&["calls", "1", "0.2"]), LIMIT).map(drop))?;
    let (seen, ended) = watched.seen_of(10.0, || run(&mut in_chroot(&["calls", "10"]), LIMIT))?;
    ensure!((seen, ended.stdout.as_str()) == (10.0, "55\n"), "{seen} of 10 calls: {ended:?}");
    // From here on it leads out.
    fs::copy(&watched.program, root.join("lib/hostile-library"))?;
    let worker = behind_its_back(&watched.agent, || {
        let mut child = in_chroot(&["maps", "/lib/hostile-library"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdout.as_mut().context("no stdout")?.read_exact(&mut [0; 7])?;
        fs::remove_file(root.join("lib/hostile-library"))?;
        symlink(format!("../../..{}", host.display()), root.join("lib/hostile-library"))?;
        Ok(Running(child))
    })?;
    let_it_look(&watched)?;
    untouched.check("a link out of the chroot")?;
    drop(worker);
    ensure!(!watched.agent.has_probed(&["hostile-library"])?);
    ensure!(!watched.says()?.contains("hostile-secret"), "the host's file is named");
    harmless(
        "A chrooted worker's links",
        "a library replaced by a link out of its root while it is mapped",
        "the host's file is not opened, not probed and not named; the worker's 10 calls are counted",
    )
}

#[test]
fn a_pipe_or_device_in_a_librarys_place_is_not_opened() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let watched = Watched::start(&by_path(), &[])?;
    for kind in ["fifo", "device", "folder", "nothing"] {
        let library = folder.path().join(format!("hostile-{kind}"));
        fs::copy(&watched.program, &library)?;
        let (worker, untouched) = behind_its_back(&watched.agent, || {
            let worker = watched.mapping(&[&library])?;
            fs::remove_file(&library)?;
            let mode = nix::sys::stat::Mode::S_IRWXU;
            match kind {
                "fifo" => nix::unistd::mkfifo(&library, mode)?,
                // /dev/zero: to open it does no harm if this test fails.
                "device" => {
                    let number = nix::sys::stat::makedev(1, 5);
                    nix::sys::stat::mknod(&library, nix::sys::stat::SFlag::S_IFCHR, mode, number)?;
                }
                "folder" => fs::create_dir(&library)?,
                _ => return Ok((worker, None)),
            }
            let untouched = Untouched::watch(&[&library])?;
            Ok((worker, Some(untouched)))
        })?;
        let_it_look(&watched)?;
        untouched.iter().try_for_each(|untouched| untouched.check(kind))?;
        ensure!(!watched.agent.has_probed(&[&library.to_string_lossy()])?, "{kind} was probed");
        drop(worker);
    }
    harmless(
        "A library's place taken by a fifo, a device, a folder, nothing",
        "each in the place of a file that is mapped",
        "none is opened or probed",
    )
}

#[test]
fn files_made_to_be_endless_to_read_cost_little() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let watched = Watched::start(&[], &[])?;
    let names = if full() { 4_000_000 } else { 1_000_000 };
    let files: [(&str, Vec<u8>, u64); 4] = [
        ("sparse-hash", elf::endless_hash(), 1 << 40),
        ("sparse-symbols", elf::endless_symbols(), 1 << 40),
        ("names-alike", elf::alike(names), 0),
        ("names-doubling", elf::doubling(), 0),
    ];
    for (name, bytes, length) in files {
        let library = folder.path().join(format!("libTK-{name}.so"));
        fs::write(&library, &bytes)?;
        if length != 0 {
            fs::OpenOptions::new().write(true).open(&library)?.set_len(length)?;
        }
        // It is taken for what it pretends to be.
        let said = run(Command::new(cadscope()?).args(["probes"]).arg(&library), LIMIT)?;
        ensure!(said.code < 2 && !said.stderr.contains("ELF"), "{name}: {said:?}");
        let cpu = watched.cpu()?;
        let begun = Instant::now();
        let worker = watched.mapping(&[&library])?;
        // It is looked at before what comes after.
        watched.is_well()?;
        let spent = watched.cpu()?.saturating_sub(cpu);
        eprintln!("{name}: {spent:?} of CPU, {:?}, {} MB", begun.elapsed(), watched.agent.resident()? >> 20);
        ensure!(spent < Duration::from_secs(10), "{name} took {spent:?} of CPU");
        // The file stays: another with its inode number would be taken for it.
        drop(worker);
    }
    harmless(
        "Libraries made to be endless to read",
        &format!(
            "two sparse ELF files of 1 TiB, {names} symbols named like ours, names that stand for gigabytes"
        ),
        "less than 10 s of CPU each",
    )
}

#[test]
fn a_file_that_changes_all_the_time_harms_nobody_else() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let watched = Watched::start(&[], &[])?;
    let library = folder.path().join("hostile-changing");
    let bytes = fs::read(&watched.program)?;
    fs::write(&library, &bytes)?;
    let file = fs::OpenOptions::new().read(true).write(true).open(&library)?;
    let end_after = Duration::from_secs(if full() { 30 } else { 3 });
    let end = Instant::now() + end_after;
    let mut rounds = 0_u64;
    while Instant::now() < end {
        let worker = watched.mapping(&[&library])?;
        for step in 0..20_u64 {
            match step % 4 {
                0 => file.set_len(4096 + 512 * step)?,
                1 => file.write_all_at(&bytes, 0)?,
                2 => file.write_all_at(&bytes[..4096], rounds % 7 * 4096)?,
                _ => file.set_len(0)?,
            }
            std::thread::sleep(Duration::from_micros(300 * (rounds % 5)));
        }
        file.write_all_at(&bytes, 0)?;
        drop(worker);
        rounds += 1;
    }
    ensure!(rounds > 3, "{rounds} rounds");
    watched.is_well()?;
    harmless(
        "A library that changes all the time",
        &format!("{} s of cutting, overwriting and mapping it again", end_after.as_secs()),
        "nobody else's calls are lost",
    )
}
