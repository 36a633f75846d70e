//! A bucket in which nothing may be deleted: pieces stay, and do no harm.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::cluster::Cluster;
use crate::support::ledger;
use crate::support::s3::S3Server;
use crate::support::tools::Major;
use crate::support::vault::Vault;

use super::running::Receiver;
use super::{backup, restored_rows, switch, wait_until_durable};

#[test]
fn a_bucket_that_forbids_deletes_is_good_enough() {
    let s3 = S3Server::start();
    let vault = Vault::s3(&s3, "kept");
    let server = Cluster::builder(Major::usual())
        .initdb_args(["--wal-segsize=1"])
        .conf("autovacuum", "off")
        .build();
    let guard = Guard::before(&s3);
    let mut receiver = Receiver::new(&vault, &server.conninfo(), "pgp", &["--create-slot", "--synchronous"]);
    receiver.env("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", guard.port));
    receiver.start();
    receiver.wait_for_state("streaming");
    backup(&vault, &server);
    for _ in 0..3 {
        ledger::write(&server, 2, 15);
        switch(&server);
    }
    ledger::write(&server, 2, 15);
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
    receiver.start();
    receiver.wait_for_state("streaming");
    ledger::write(&server, 2, 15);
    wait_until_durable(&server);
    assert_eq!(receiver.stop().0, Some(0));
    assert!(guard.refused.load(Ordering::Relaxed) > 3, "nothing was to be deleted");
    let log = receiver.log();
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    let list = vault.pitr(["list", "--json"]).with_code(0).json();
    assert_eq!(list["clusters"][0]["wal"][0]["gaps"], serde_json::json!([]), "{list:#}");
    assert_eq!(
        restored_rows(&vault, server.major(), &["--latest"]),
        ledger::rows(&server)
    );
}

/// Passes requests on, but for deletes.
struct Guard {
    port: u16,
    refused: Arc<AtomicUsize>,
}

impl Guard {
    fn before(s3: &S3Server) -> Self {
        let (_, endpoint) = &s3.env()[0];
        let server = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused = Arc::new(AtomicUsize::new(0));
        let count = refused.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, count) = (server.clone(), count.clone());
                thread::spawn(move || pass(client, &server, &count));
            }
        });
        Self { port, refused }
    }
}

/// One connection, request by request: an answer is always read before the next request comes.
fn pass(mut client: TcpStream, server: &str, refused: &AtomicUsize) -> io::Result<()> {
    let mut server = TcpStream::connect(server)?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if client.read(&mut byte)? == 0 {
                return server.shutdown(Shutdown::Both);
            }
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
        client.read_exact(&mut body)?;
        let first = text.lines().next().unwrap_or_default();
        if first.starts_with("delete ") || first.starts_with("post ") && first.contains("?delete") {
            refused.fetch_add(1, Ordering::Relaxed);
            let why = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>no deletes</Message></Error>";
            let length = why.len();
            write!(
                client,
                "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{why}"
            )?;
        } else {
            server.write_all(&head)?;
            server.write_all(&body)?;
        }
    }
}
