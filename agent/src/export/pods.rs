//! Turns the pod of a worker into its labels, as the Kubernetes API has them, on a thread of its own.
//!
//! A pod is asked for by namespace and name, which the right to `get pods` allows, and believed only if its uid is that in
//! the worker's cgroup: one that was made anew under the same name is another. Whoever wants labels never waits: they are
//! here, or may still come. What was answered is kept, also that there are none; a request that failed is made again after
//! a minute, when somebody wants its labels then. What is kept and what waits is bounded.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, Request};
use tokio::sync::mpsc;

use crate::container::Container;
use crate::trust::{self, TrustError};

/// Pods whose answers are kept; all are forgotten when there are more.
const KEPT: usize = 4096;
/// Pods that wait to be asked for.
const QUEUE: usize = 256;
/// Labels of a pod that are taken.
const LABELS: usize = 64;
const AGAIN: Duration = Duration::from_secs(60);
const LONGEST_REQUEST: Duration = Duration::from_secs(5);
/// Where every pod finds who it is for the API.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why the API cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// Not inside a cluster.
    #[error(
        "cannot ask for labels of pods: KUBERNETES_SERVICE_HOST is not set; --span-pod-labels works inside a pod"
    )]
    NoCluster,
    /// No certificate to check the API's with.
    #[error("cannot ask for labels of pods: {0}; the pod needs a token (automountServiceAccountToken)")]
    Account(#[from] TrustError),
    /// No thread, no runtime.
    #[error("cannot ask for labels of pods: {0}")]
    Thread(std::io::Error),
}

/// Labels by name.
pub type Labels = Arc<BTreeMap<String, String>>;

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Asked,
    /// None where the API has no such pod.
    Labels(Labels),
    Failed(Instant),
}

type Known = Arc<Mutex<HashMap<String, Answer>>>;

/// Asks for the labels of pods.
#[derive(Debug)]
pub struct Pods {
    known: Known,
    queue: mpsc::Sender<Container>,
    errors: Arc<AtomicU64>,
}

impl Pods {
    /// Starts asking, as the service account of this pod.
    ///
    /// # Errors
    /// This is no pod, or it has no account.
    pub fn start() -> Result<Self, PodsError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST").ok_or(PodsError::NoCluster)?;
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Self::of(format!("https://{host}:{port}"), PathBuf::from(ACCOUNT))
    }

    /// Starts asking the API at this address, as the account whose token and authority are in this folder.
    ///
    /// # Errors
    /// There is no such account.
    pub fn of(api: String, account: PathBuf) -> Result<Self, PodsError> {
        let tls = trust::client(Some(&account.join("ca.crt")))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PodsError::Thread)?;
        let (queue, wanted) = mpsc::channel(QUEUE);
        let known = Known::default();
        let errors = Arc::<AtomicU64>::default();
        let (kept, failed) = (Arc::clone(&known), Arc::clone(&errors));
        let work = async move {
            let connector =
                hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
            let client = HyperClient::new(connector.build(), LONGEST_REQUEST, None);
            ask(wanted, (&api, &account), &client, (&kept, &failed)).await;
        };
        std::thread::Builder::new()
            .name("pods".to_owned())
            .spawn(move || runtime.block_on(work))
            .map_err(PodsError::Thread)?;
        Ok(Self { known, queue, errors })
    }

    /// Requests that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// The labels of a container's pod; `None` while they may still come.
    #[must_use]
    pub fn labels(&self, container: &Container, now: Instant) -> Option<Labels> {
        if container.pod.is_empty() || container.pod_uid.is_empty() || container.namespace.is_empty() {
            return Some(Labels::default());
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&container.pod_uid) {
            Some(Answer::Labels(labels)) => return Some(Arc::clone(labels)),
            Some(Answer::Asked) => return None,
            Some(Answer::Failed(at)) if now.duration_since(*at) < AGAIN => return None,
            Some(Answer::Failed(_)) | None => {}
        }
        // Without a place in the queue, whoever comes next tries again.
        if self.queue.try_send(container.clone()).is_ok() {
            if known.len() >= KEPT {
                known.clear();
            }
            known.insert(container.pod_uid.clone(), Answer::Asked);
        }
        None
    }
}

async fn ask(
    mut wanted: mpsc::Receiver<Container>,
    at: (&str, &Path),
    client: &dyn HttpClient,
    (known, errors): (&Known, &AtomicU64),
) {
    let mut failing = false;
    while let Some(container) = wanted.recv().await {
        let answer = match request(at, client, &container).await {
            Ok(labels) => {
                failing = false;
                Answer::Labels(Arc::new(labels))
            }
            Err(problem) => {
                errors.fetch_add(1, Ordering::Relaxed);
                // Said once, not for each pod.
                if !failing {
                    tracing::warn!(problem, "the Kubernetes API does not give the labels of pods");
                }
                failing = true;
                Answer::Failed(Instant::now())
            }
        };
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(container.pod_uid, answer);
    }
}

/// Labels of the pod; none if there is no such pod.
async fn request(
    (api, account): (&str, &Path),
    client: &dyn HttpClient,
    container: &Container,
) -> Result<BTreeMap<String, String>, String> {
    // Read each time: the kubelet replaces it.
    let file = account.join("token");
    let token = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let url = format!("{api}/api/v1/namespaces/{}/pods/{}", container.namespace, container.pod);
    let request = Request::get(url)
        .header("authorization", format!("Bearer {}", token.trim()))
        .header("accept", "application/json")
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let response = client.send_bytes(request).await.map_err(|error| trust::why(&*error))?;
    match response.status().as_u16() {
        200 => labels_in(response.body(), &container.pod_uid),
        404 => Ok(BTreeMap::new()),
        401 | 403 => Err(format!("{}: the service account may not get pods", response.status())),
        _ => Err(response.status().to_string()),
    }
}

/// The labels in a pod as the API writes it, if it is that of this uid.
fn labels_in(pod: &[u8], uid: &str) -> Result<BTreeMap<String, String>, String> {
    #[derive(serde::Deserialize)]
    struct Pod {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        uid: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let Pod { metadata } = serde_json::from_slice(pod).map_err(|error| format!("no pod: {error}"))?;
    // A pod from a file of the node is known to the API under another uid than to its kubelet.
    let of_file = metadata.annotations.get("kubernetes.io/config.hash").is_some_and(|hash| hash == uid);
    if metadata.uid != uid && !of_file {
        return Ok(BTreeMap::new());
    }
    Ok(metadata.labels.into_iter().take(LABELS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &[u8] =
        br#"{"kind":"Pod","metadata":{"name":"gear","uid":"u1","labels":{"app":"gear","team":"cad"},
        "annotations":{"kubernetes.io/config.hash":"f1"}},"spec":{}}"#;

    fn container(uid: &str) -> Container {
        Container {
            pod: "gear".to_owned(),
            namespace: "cad".to_owned(),
            pod_uid: uid.to_owned(),
            ..Container::default()
        }
    }

    #[test]
    fn labels_are_those_of_the_pod_with_this_uid_and_no_other() {
        let of = |uid| {
            labels_in(POD, uid)
                .unwrap()
                .into_iter()
                .map(|(name, value)| name + "=" + &value)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("u1"), ["app=gear", "team=cad"]);
        // Made anew under the same name, or from a file of the node.
        assert_eq!(of("u2"), [""; 0]);
        assert_eq!(of("f1"), ["app=gear", "team=cad"]);
        assert_eq!(labels_in(br#"{"metadata":{"uid":"u"}}"#, "u").unwrap(), BTreeMap::new());
        assert!(labels_in(b"<html>", "u").is_err());
    }

    #[test]
    fn a_pod_is_asked_for_once_and_after_a_failure_a_minute_later() {
        let (queue, mut wanted) = mpsc::channel(QUEUE);
        let pods = Pods { known: Known::default(), queue, errors: Arc::default() };
        let begin = Instant::now();
        assert_eq!(pods.labels(&Container::default(), begin), Some(Labels::default()));
        assert_eq!((pods.labels(&container("u"), begin), pods.labels(&container("u"), begin)), (None, None));
        assert!(wanted.try_recv().is_ok() && wanted.try_recv().is_err());
        let learn = |answer| pods.known.lock().unwrap().insert("u".to_owned(), answer);
        learn(Answer::Failed(begin));
        assert_eq!(pods.labels(&container("u"), begin + AGAIN / 2), None);
        assert!(wanted.try_recv().is_err());
        assert_eq!(pods.labels(&container("u"), begin + AGAIN), None);
        assert!(wanted.try_recv().is_ok());
        let labels = Labels::new(BTreeMap::from([("app".to_owned(), "gear".to_owned())]));
        learn(Answer::Labels(Arc::clone(&labels)));
        assert_eq!(pods.labels(&container("u"), begin), Some(labels));
        assert!(wanted.try_recv().is_err());
    }

    #[test]
    fn who_waits_and_what_is_kept_is_bounded() {
        let (queue, wanted) = mpsc::channel(QUEUE);
        let pods = Pods { known: Known::default(), queue, errors: Arc::default() };
        for number in 0..2 * QUEUE {
            assert_eq!(pods.labels(&container(&number.to_string()), Instant::now()), None);
        }
        assert_eq!((wanted.len(), pods.known.lock().unwrap().len()), (QUEUE, QUEUE));
    }
}
