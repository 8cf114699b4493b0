//! Turns the cgroup of a process and its container's OCI bundle into the container and pod that it runs in.
//!
//! A path of any hierarchy (v1, v2, both), of either driver (cgroupfs, systemd) and of containerd, CRI-O, podman or
//! Docker ends in the container's id, 64 hexadecimal digits, below the pod's uid. Names stand in the bundle that the
//! runtime wrote before it started the container: no socket, no token, and no confusion when a pod is replaced under
//! the same name, because the id is another.
//!
//! Pure: text in, values out. Names are cut and must be what Kubernetes allows.

use std::collections::HashMap;

/// Hexadecimal digits of a container's id.
const ID_DIGITS: usize = 64;
/// Longest name that Kubernetes allows.
const NAME_BYTES: usize = 253;

/// A container; texts are `""` where nothing says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// `containerd`, `cri-o`, `docker`, `podman`, as far as the cgroup's name tells.
    pub runtime: String,
    /// The pod's uid, with dashes.
    pub pod_uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name in its pod, or as podman calls it.
    pub name: String,
}

impl Container {
    /// Reads `/proc/PID/cgroup`; `None` outside of containers.
    #[must_use]
    pub fn from_cgroups(text: &str) -> Option<Self> {
        text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(Self::from_path)
    }

    /// Reads one path below a hierarchy's root.
    fn from_path(path: &str) -> Option<Self> {
        let mut found: Option<Self> = None;
        let mut pod_uid = String::new();
        // A systemd path given to the cgroupfs driver joins its parts with colons.
        for part in path.split(['/', ':']) {
            if let Some(uid) = pod_uid_of(part) {
                (pod_uid, found) = (uid, None);
            } else if let Some((runtime, id)) = id_of(part)
                // Within a pod the outermost: a container in a container of the pod belongs to that one.
                && (pod_uid.is_empty() || found.is_none())
            {
                found = Some(Self { id: id.to_owned(), runtime: runtime.to_owned(), ..Self::default() });
            }
        }
        found.map(|container| Self { pod_uid, ..container })
    }

    /// Takes over the names in a bundle's `config.json`.
    #[must_use]
    pub fn with_bundle(self, config: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Bundle {
            #[serde(default)]
            annotations: HashMap<String, String>,
        }
        let Ok(Bundle { annotations }) = serde_json::from_slice(config) else { return self };
        let first = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| annotations.get(*name))
                .and_then(|name| valid(name))
                .unwrap_or_default()
        };
        // containerd's annotations, and CRI-O's.
        let uid = first(["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]);
        Self {
            namespace: first(["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]),
            pod: first(["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
            name: first(["io.kubernetes.cri.container-name", "io.kubernetes.container.name"]),
            pod_uid: if self.pod_uid.is_empty() { uid } else { self.pod_uid },
            ..self
        }
    }

    /// The same, keeping a name that is known where the bundle has none.
    #[must_use]
    pub fn with_bundle_names(self, config: &[u8]) -> Self {
        let name = self.name.clone();
        let named = self.with_bundle(config);
        if named.name.is_empty() { Self { name, ..named } } else { named }
    }

    /// Takes over what conmon, podman's and CRI-O's monitor, was told on its command line; and says which bundle.
    #[must_use]
    pub fn with_monitor(mut self, arguments: &[String]) -> (Self, Option<String>) {
        let after = |flags: [&str; 2]| {
            let at = arguments.iter().position(|argument| flags.contains(&argument.as_str()))?;
            arguments.get(at + 1)
        };
        if self.name.is_empty() && self.pod_uid.is_empty() {
            self.name = after(["-n", "--name"]).and_then(|name| valid(name)).unwrap_or_default();
        }
        let bundle = after(["-b", "--bundle"]).cloned();
        (self, bundle)
    }
}

fn valid(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (name.len() <= NAME_BYTES && name.chars().all(fits)).then(|| name.to_owned())
}

/// `pod<uid>` (cgroupfs) or `kubepods-burstable-pod<uid with _>.slice` (systemd).
fn pod_uid_of(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (before, uid) = part.rsplit_once("pod")?;
    let known = before.is_empty() || (before.starts_with("kubepods") && before.ends_with('-'));
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let only = uid.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'));
    // The uid of a pod from a file on the node is a hash without dashes.
    (known && only && digits == 32 && uid.len() <= 36).then(|| uid.replace('_', "-"))
}

/// `<id>`, `<prefix>-<id>` or `<prefix>-<id>.scope`; a container's monitor has a cgroup of nearly its name.
fn id_of(part: &str) -> Option<(&'static str, &str)> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let (prefix, id) = part.rsplit_once('-').unwrap_or(("", part));
    let is_id = id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id || prefix.ends_with("conmon") {
        return None;
    }
    let runtime = match prefix {
        "cri-containerd" => "containerd",
        "crio" => "cri-o",
        "docker" => "docker",
        "libpod" => "podman",
        _ => "",
    };
    Some((runtime, id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

    fn id() -> String {
        "0123456789abcdef".repeat(4)
    }

    fn of(path: &str) -> (String, String, bool) {
        let path = path.replace("ID", &id()).replace("UID_", &UID.replace('-', "_")).replace("UID", UID);
        let found = Container::from_cgroups(&format!("0::{path}\n")).unwrap_or_default();
        (found.runtime, found.pod_uid, found.id == id())
    }

    fn is(runtime: &str, uid: &str) -> (String, String, bool) {
        (runtime.to_owned(), uid.to_owned(), true)
    }

    #[test]
    fn every_runtime_and_driver_is_read() {
        let hex = id();
        for (path, wanted) in [
            (format!("/kubepods/burstable/pod{UID}/{hex}"), is("", UID)),
            (format!("/kubepods/pod{UID}/{hex}"), is("", UID)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{hex}.scope",
                    UID.replace('-', "_")
                ),
                is("containerd", UID),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-pod{}.slice/crio-{hex}.scope/container",
                    UID.replace('-', "_")
                ),
                is("cri-o", UID),
            ),
            (
                format!(
                    "/kubelet/kubepods-besteffort-pod{}.slice:cri-containerd:{hex}",
                    UID.replace('-', "_")
                ),
                is("", UID),
            ),
            (format!("/../../kubepods/besteffort/pod{UID}/{hex}/init"), is("", UID)),
            (format!("/system.slice/docker-{hex}.scope"), is("docker", "")),
            (format!("/docker/{hex}"), is("", "")),
            (format!("/libpod_parent/libpod-{hex}"), is("podman", "")),
            (format!("/machine.slice/libpod-{hex}.scope/container"), is("podman", "")),
        ] {
            assert_eq!(of(&path), wanted, "{path}");
        }
    }

    #[test]
    fn a_hybrid_machine_is_read_from_the_hierarchy_that_knows() {
        let text = format!("12:pids:/\n8:memory:/kubepods/pod{UID}/{}\n1:name=systemd:/x\n0::/\n", id());
        assert_eq!(Container::from_cgroups(&text).unwrap().pod_uid, UID);
    }

    #[test]
    fn what_is_no_container_is_none() {
        let hex = id();
        for path in ["/", "/user.slice/user-0.slice", "/kubepods/burstable", &format!("/kubepods/pod{UID}")] {
            assert_eq!(Container::from_cgroups(&format!("0::{path}\n")), None, "{path}");
        }
        assert_eq!(Container::from_cgroups(&format!("0::/machine.slice/libpod-conmon-{hex}.scope\n")), None);
        assert_eq!(Container::from_cgroups("nonsense"), None);
    }

    #[test]
    fn a_container_inside_a_container_of_a_pod_belongs_to_that_one() {
        let inner = "f".repeat(64);
        let nested = format!("0::/kubepods/pod{UID}/{}/docker/{inner}\n", id());
        assert_eq!(Container::from_cgroups(&nested).unwrap().id, id());
    }

    #[test]
    fn a_bundle_gives_names_and_nothing_that_is_no_name() {
        let containerd = br#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-name":"job-1",
            "io.kubernetes.cri.sandbox-namespace":"cad","io.kubernetes.cri.container-name":"worker"}}"#;
        let named = Container::default().with_bundle(containerd);
        assert_eq!((&*named.namespace, &*named.pod, &*named.name), ("cad", "job-1", "worker"));
        let wrong =
            br#"{"annotations":{"io.kubernetes.pod.name":"a b","io.kubernetes.pod.namespace":"cad"}}"#;
        let named = Container::default().with_bundle(wrong);
        assert_eq!((&*named.namespace, &*named.pod), ("cad", ""));
        assert_eq!(Container::default().with_bundle(b"{"), Container::default());
    }

    #[test]
    fn a_monitor_says_podmans_name_and_the_bundle() {
        let arguments = ["conmon", "-c", "x", "-b", "/run/b", "-n", "gear"].map(str::to_owned);
        let (named, bundle) = Container::default().with_monitor(&arguments);
        assert_eq!((named.name.as_str(), bundle.as_deref()), ("gear", Some("/run/b")));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,300}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Container::from_cgroups(&text);
            let _ = Container::default().with_bundle(&bytes);
        }
    }
}
