//! How many connections each client has open, of all workers together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::config::Server;
use crate::lock::lock;
use crate::peer::Network;

/// The clients that have connections; no more of them than there are connections.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<Network, usize>>);

/// A connection's place among those of its client, until it is dropped.
pub(super) struct Place(Option<(Arc<Clients>, Network)>);

impl Clients {
    /// A place for one more connection of this client; none if it has enough. Behind a trusted
    /// proxy are many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, server: &Server) -> Option<Place> {
        let Some(most) = server.limits.client_connections else { return Some(Place(None)) };
        if server.trusted_proxies.iter().any(|proxies| proxies.contains(&address)) {
            return Some(Place(None));
        }
        let client = Network::of(address);
        let mut all = lock(&self.0);
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
        let mut all = lock(&clients.0);
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

    fn server(most: usize) -> Server {
        let mut server = crate::config::sample::config().server;
        server.limits.client_connections = Some(most);
        server.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
        server
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_has_so_many_and_a_new_one_when_an_old_one_has_ended() {
        let (clients, server) = (Arc::<Clients>::default(), server(2));
        let enter = |text| clients.enter(address(text), &server);
        let one = enter("192.0.2.1").unwrap();
        let two = enter("192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some(), "another client");
        drop(one);
        let three = enter("192.0.2.1");
        assert!(three.is_some());
        drop((three, two));
        assert!(clients.0.lock().unwrap().is_empty(), "nobody is remembered who is gone");
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_a_trusted_proxy_is_many() {
        let (clients, server) = (Arc::<Clients>::default(), server(1));
        let enter = |text| clients.enter(address(text), &server);
        let _one = enter("2001:db8::1").unwrap();
        assert!(enter("2001:db8::2").is_none());
        let _other = enter("2001:db8:0:1::1").unwrap();
        let places: Vec<_> = (0..9).map(|_| enter("10.1.2.3")).collect();
        assert!(places.iter().all(Option::is_some));
    }
}
