//! Upstreams that have names: several addresses, and addresses that change.

use std::net::SocketAddr;
use std::sync::Mutex;

use super::super::names::Names;
use super::*;
use crate::config::upstream::UpstreamProtocol;

/// What `app.internal` resolves to.
type Zone = Arc<Mutex<Vec<SocketAddr>>>;

/// One worker that asks `app.internal`, and what keeps it up to date.
fn by_name(
    zone: &Zone,
    protocol: UpstreamProtocol,
    limits: &Limits,
) -> (Upstreams, Arc<Directory>) {
    let url = UpstreamUrl::Http { host: "app.internal".to_owned(), port: 80 };
    let route = Route { upstream: vec![Upstream { protocol, ..url.into() }], ..sample::route() };
    let zone = zone.clone();
    let names = Names::new(Duration::from_millis(20), move |host, _| {
        assert_eq!(host, "app.internal");
        let found = zone.lock().unwrap().clone();
        Box::pin(async move { Ok(found) })
    });
    let directory =
        Directory::with_names(&[route], limits, &client_tls(roots()), None, names).unwrap();
    let directory = Arc::new(directory);
    directory.watch();
    (Upstreams::new(&directory, &Arc::default()), directory)
}

fn address(url: &UpstreamUrl) -> SocketAddr {
    let UpstreamUrl::Http { host, port } = url else { panic!() };
    (host.parse::<std::net::IpAddr>().unwrap(), *port).into()
}

fn zone(addresses: &[SocketAddr]) -> Zone {
    Arc::new(Mutex::new(addresses.to_vec()))
}

/// An address whose listener's queue is full: a connection is neither made nor refused.
fn deaf() -> (SocketAddr, impl Sized) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let fill = || {
        let one = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        one.set_nonblocking(true).unwrap();
        let _ = one.connect(&address.into());
        one
    };
    let queue: Vec<_> = (0..4).map(|_| fill()).collect();
    (address, (socket, queue))
}

#[tokio::test]
async fn every_address_of_a_name_is_tried_within_the_time() {
    local(async {
        let (url, _) = answering(ok("here")).await;
        let refused = SocketAddr::from(([127, 0, 0, 1], 1));
        let (deaf, _kept) = deaf();
        let limits = Limits { connect_time: Duration::from_millis(900), ..sample::limits() };
        let all = zone(&[deaf, refused, address(&url)]);
        let (upstreams, _directory) = by_name(&all, UpstreamProtocol::Http1, &limits);
        let begun = Instant::now();
        assert_eq!(get(&upstreams, "/").await.unwrap(), "here");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(250) && took < limits.connect_time, "{took:?}");
        let (upstreams, _directory) = by_name(&zone(&[deaf]), UpstreamProtocol::Http1, &limits);
        let failed = get(&upstreams, "/").await.unwrap_err();
        assert!(failed.contains("TimedOut"), "{failed}");
        let (upstreams, _directory) = by_name(&zone(&[]), UpstreamProtocol::Http1, &limits);
        assert!(get(&upstreams, "/").await.unwrap_err().contains("no address"));
    })
    .await;
}

#[tokio::test]
async fn an_address_that_a_name_has_lost_is_asked_no_more_though_connections_to_it_are_idle() {
    local(async {
        let (old, olds) = answering(ok("old")).await;
        let (new, news) = answering(ok("new")).await;
        let all = zone(&[address(&old)]);
        let (upstreams, _directory) = by_name(&all, UpstreamProtocol::Http1, &sample::limits());
        for _ in 0..10 {
            assert_eq!(get(&upstreams, "/").await.unwrap(), "old");
        }
        // One address more moves nobody.
        all.lock().unwrap().push(address(&new));
        sleep(Duration::from_millis(60)).await;
        assert_eq!(get(&upstreams, "/").await.unwrap(), "old");
        assert_eq!((olds.get(), news.get()), (1, 0));
        all.lock().unwrap().remove(0);
        sleep(Duration::from_millis(60)).await;
        for _ in 0..10 {
            assert_eq!(get(&upstreams, "/").await.unwrap(), "new");
        }
        assert_eq!((olds.get(), news.get()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn what_is_under_way_where_an_upstream_was_is_finished_there() {
    local(async {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let serve = |name: &'static str| async move {
                if protocol == UpstreamProtocol::Http1 {
                    let half = format!("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n{name}");
                    return listen(move |mut stream, _| {
                        let half = half.clone();
                        async move {
                            head(&mut stream, &mut Vec::new()).await;
                            stream.write_all(half.as_bytes()).await.unwrap();
                            sleep(Duration::from_millis(200)).await;
                            stream.write_all(name.as_bytes()).await.unwrap();
                        }
                    })
                    .await;
                }
                listen(move |stream, _| async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_, mut to))) = connection.accept().await {
                        spawn_local(async move {
                            let mut stream = to.send_response(Response::new(()), false).unwrap();
                            stream.send_data(name.into(), false).unwrap();
                            sleep(Duration::from_millis(200)).await;
                            stream.send_data(name.into(), true).unwrap();
                        });
                    }
                })
                .await
            };
            let ((old, _), (new, _)) = (serve("old").await, serve("new").await);
            let all = zone(&[address(&old)]);
            let (upstreams, _directory) = by_name(&all, protocol, &sample::limits());
            let sent = upstreams
                .send(0, request("GET", "/", Body::Empty), None, &super::deaf)
                .await
                .unwrap();
            *all.lock().unwrap() = vec![address(&new)];
            sleep(Duration::from_millis(60)).await;
            assert_eq!(get(&upstreams, "/").await.unwrap(), "newnew");
            assert_eq!(text(sent).await.unwrap(), "oldold");
        }
    })
    .await;
}
