//! Clients that commit all the time, and remember what they were told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use crate::support::cluster::Cluster;
use crate::support::process::wait_for;

/// Numbers no row that the ledger makes.
static NEXT_ROW: AtomicI64 = AtomicI64::new(1 << 40);
/// Between two transactions of a client: the machine is there for others, too.
const PAUSE: Duration = Duration::from_millis(2);

type Told = Arc<Mutex<BTreeMap<i64, Instant>>>;

/// Clients at work. They connect again whenever the server goes away.
pub struct Load {
    told: Told,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts so many clients that insert into the ledger, with this `synchronous_commit`.
    pub fn start(server: &Cluster, clients: usize, commit: &str) -> Self {
        server.sql(
            "set client_min_messages = error; set synchronous_commit = local;
             create table if not exists ledger (id bigint primary key, xid xid8 not null default pg_current_xact_id());
             alter table ledger add column if not exists filler text",
        );
        let conninfo = format!(
            "{} connect_timeout=2 options='-c synchronous_commit={commit}'",
            server.conninfo()
        );
        let (told, stop) = (Told::default(), CancellationToken::new());
        let (tell, until) = (told.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                for _ in 0..clients {
                    tokio::spawn(client(conninfo.clone(), tell.clone()));
                }
                until.cancelled().await;
            });
        });
        Self {
            told,
            stop,
            thread: Some(thread),
        }
    }

    /// How many commits were acknowledged.
    pub fn len(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    /// Waits until so many more are.
    #[track_caller]
    pub fn wait_for_more(&self, more: usize) {
        let before = self.len();
        wait_for("clients commit", || (self.len() >= before + more).then_some(()));
    }

    /// Stops, and answers which rows the clients were told are committed, and when.
    pub fn stop(mut self) -> BTreeMap<i64, Instant> {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
        let told = self.told.lock().unwrap();
        told.clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn client(conninfo: String, told: Told) {
    loop {
        if let Ok((client, connection)) = tokio_postgres::connect(&conninfo, NoTls).await {
            let connection = tokio::spawn(connection);
            loop {
                let id = NEXT_ROW.fetch_add(1, Ordering::Relaxed);
                let insert = "insert into ledger (id, filler) values ($1, repeat(md5($1::bigint::text), 20))";
                if client.execute(insert, &[&id]).await.is_err() {
                    break;
                }
                told.lock().unwrap().insert(id, Instant::now());
                tokio::time::sleep(PAUSE).await;
            }
            connection.abort();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
