//! How many connections each client has open, of all workers together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use crate::config::Server;
use crate::peer::Network;

/// The clients that have connections; no more of them than there are connections.
pub(super) struct Clients {
    /// Of one client; none if they are not counted.
    most: Option<usize>,
    /// Behind these are many.
    proxies: Vec<IpNet>,
    open: Mutex<HashMap<Network, usize>>,
}

/// A connection's place among those of its client, until it is dropped.
pub(super) struct Place(Option<(Arc<Clients>, Network)>);

impl Clients {
    /// As configured.
    pub(super) fn new(server: &Server) -> Arc<Self> {
        Arc::new(Self {
            most: server.limits.client_connections,
            proxies: server.trusted_proxies.clone(),
            open: Mutex::default(),
        })
    }

    /// A place for one more connection of this client; none if it has enough.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let Some(most) = self.most else { return Some(Place(None)) };
        if self.proxies.iter().any(|proxies| proxies.contains(&address)) {
            return Some(Place(None));
        }
        let client = Network::of(address);
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.entry(client).or_default();
        if *open >= most {
            return None;
        }
        *open += 1;
        Some(Place(Some((self.clone(), client))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((clients, client)) = &self.0 else { return };
        let mut all = clients.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.get_mut(client) {
            *open -= 1;
            if *open == 0 {
                all.remove(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(most: Option<usize>) -> Arc<Clients> {
        let proxies = vec!["10.0.0.0/8".parse().unwrap()];
        Arc::new(Clients { most, proxies, open: Mutex::default() })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_has_so_many_and_a_new_one_when_an_old_one_has_ended() {
        let clients = clients(Some(2));
        let client = address("192.0.2.1");
        let one = clients.enter(client).unwrap();
        let two = clients.enter(client).unwrap();
        assert!(clients.enter(client).is_none());
        assert!(clients.enter(address("192.0.2.2")).is_some(), "another client");
        drop(one);
        let three = clients.enter(client);
        assert!(three.is_some());
        drop((three, two));
        assert!(clients.open.lock().unwrap().is_empty(), "nobody is remembered who is gone");
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_a_trusted_proxy_is_many() {
        let clients = clients(Some(1));
        let _one = clients.enter(address("2001:db8::1")).unwrap();
        assert!(clients.enter(address("2001:db8::2")).is_none());
        let _other = clients.enter(address("2001:db8:0:1::1")).unwrap();
        let places: Vec<_> = (0..9).map(|_| clients.enter(address("10.1.2.3"))).collect();
        assert!(places.iter().all(Option::is_some));
    }
}
