//! Turns what the user calls an agent into where it is asked: `http://node:9777`, `node:9777`.
//!
//! Refuses https: the agent serves none; where a proxy does, a tunnel to the agent's own port is the way.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The address of an agent's pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentUrl {
    authority: String,
    /// Begins and ends with `/`.
    path: String,
}

impl AgentUrl {
    /// The agent that listens there; where it listens on all addresses, it is asked on loopback.
    #[must_use]
    pub fn of(listen: SocketAddr) -> Self {
        let mut address = listen;
        if listen.ip().is_unspecified() {
            address.set_ip(if listen.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        Self { authority: address.to_string(), path: "/".to_owned() }
    }

    /// `node:9777`
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `/`, or where a proxy has the agent: `/agent/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for AgentUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http://{}{}", self.authority, self.path.trim_end_matches('/'))
    }
}

impl FromStr for AgentUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("https://") {
            return Err(
                "is https, which the agent does not serve; forward its port and give http://localhost:PORT"
                    .to_owned(),
            );
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port =
            authority.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
        if port.is_none() || !graphic || text.contains(['@', '?', '#']) {
            return Err(
                "is no address of an agent; give http://HOST:PORT, such as http://127.0.0.1:9777".to_owned()
            );
        }
        let path = path.trim_matches('/');
        let path = if path.is_empty() { "/".to_owned() } else { format!("/{path}/") };
        Ok(Self { authority: authority.to_owned(), path })
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
        for wrong in [
            "",
            "9777",
            "http://",
            ":9777",
            "node",
            "node:99999",
            "https://node:9777",
            "http://u@h:1",
            "h:1/a b",
        ] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_agent_on_all_addresses_is_asked_on_loopback() {
        assert_eq!(AgentUrl::of("0.0.0.0:9777".parse().unwrap()).to_string(), "http://127.0.0.1:9777");
        assert_eq!(AgentUrl::of("[::]:9777".parse().unwrap()).to_string(), "http://[::1]:9777");
        assert_eq!(AgentUrl::of("10.0.0.1:1".parse().unwrap()).to_string(), "http://10.0.0.1:1");
    }
}
