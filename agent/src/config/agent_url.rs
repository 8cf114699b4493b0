//! Turns what the user calls an agent into where it is asked: `http://node:9777`, `https://node:9777`, `node:9777`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The address of an agent's pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentUrl {
    is_tls: bool,
    authority: String,
    /// Begins and ends with `/`.
    path: String,
}

impl AgentUrl {
    /// The agent that listens there, with TLS or without; where it listens on all addresses, it is asked on loopback.
    #[must_use]
    pub fn of(listen: SocketAddr, is_tls: bool) -> Self {
        let mut address = listen;
        if listen.ip().is_unspecified() {
            address.set_ip(if listen.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        Self { is_tls, authority: address.to_string(), path: "/".to_owned() }
    }

    /// Whether it is asked over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// `node:9777`
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `node`; an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// `/`, or where a proxy has the agent: `/agent/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for AgentUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(out, "{scheme}://{}{}", self.authority, self.path.trim_end_matches('/'))
    }
}

impl FromStr for AgentUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let secure = text.strip_prefix("https://");
        let rest = secure.or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port =
            authority.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
        if port.is_none() || !graphic || text.contains(['@', '?', '#']) {
            return Err(
                "is no address of an agent; give http://HOST:PORT, such as http://127.0.0.1:9777, or https://HOST:PORT"
                    .to_owned(),
            );
        }
        let path = path.trim_matches('/');
        let path = if path.is_empty() { "/".to_owned() } else { format!("/{path}/") };
        Ok(Self { is_tls: secure.is_some(), authority: authority.to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let url = |text: &str| text.parse::<AgentUrl>().map(|url| (url.authority, url.path));
        let both = |authority: &str, path: &str| Ok((authority.to_owned(), path.to_owned()));
        assert_eq!(url("http://node-1:9777"), both("node-1:9777", "/"));
        assert_eq!(url("[::1]:9777"), both("[::1]:9777", "/"));
        assert_eq!(url("http://proxy:80/a/b"), both("proxy:80", "/a/b/"));
        assert_eq!(url("https://proxy:443/a/b/"), both("proxy:443", "/a/b/"));
        for wrong in [
            "",
            "9777",
            "http://",
            ":9777",
            "node",
            "node:99999",
            "https://node",
            "ftp://node:21",
            "http://u@h:1",
            "h:1/a b",
        ] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_says_whether_it_is_asked_over_tls_and_by_which_name() {
        let url = |text: &str| text.parse::<AgentUrl>().unwrap();
        for (text, is_tls, host) in [
            ("https://node-1:9777", true, "node-1"),
            ("https://[::1]:9777/a", true, "::1"),
            ("http://10.0.0.1:1", false, "10.0.0.1"),
        ] {
            let url = url(text);
            assert_eq!((url.is_tls(), url.host(), url.to_string().as_str()), (is_tls, host, text));
        }
        assert!(!url("node:1").is_tls());
    }

    #[test]
    fn an_agent_on_all_addresses_is_asked_on_loopback() {
        let asked = |listen: &str, is_tls| AgentUrl::of(listen.parse().unwrap(), is_tls).to_string();
        assert_eq!(asked("0.0.0.0:9777", false), "http://127.0.0.1:9777");
        assert_eq!(asked("[::]:9777", true), "https://[::1]:9777");
        assert_eq!(asked("10.0.0.1:1", false), "http://10.0.0.1:1");
    }
}
