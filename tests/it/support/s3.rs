//! A throwaway S3 server (versitygw: objects are plain files on disk) that can go away and come back.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::process::Signal;

use super::process::{free_port, freeze, signal, wait_for};
use super::tools::tool;
use super::user::{Scratch, ServerUser};

/// The bucket that is there from the start.
pub const BUCKET: &str = "backups";
const ACCESS_KEY: &str = "pgp-test";
const SECRET_KEY: &str = "pgp-test-secret";

/// A running S3 server with one bucket. Dropping it stops the server and removes the objects.
#[derive(Debug)]
pub struct S3Server {
    port: u16,
    server: Option<Child>,
    scratch: Scratch,
}

impl S3Server {
    /// Starts a server on a free loopback port and waits until it answers.
    pub fn start() -> Self {
        let mut s3 = Self {
            port: free_port(),
            server: None,
            // The server keeps what it knows of an object in user attributes, which not every memory
            // file system has.
            scratch: Scratch::on_disk(),
        };
        s3.scratch.folder("objects");
        s3.make_bucket(BUCKET);
        s3.restart();
        s3
    }

    /// The URL of a repository in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The variables that lead our binaries to this server.
    pub fn env(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// One more, empty bucket.
    pub fn make_bucket(&self, name: &str) {
        self.scratch.folder(format!("objects/{name}"));
    }

    /// Where an object lies on disk, to be looked at or damaged.
    pub fn file_of(&self, bucket: &str, key: &str) -> PathBuf {
        self.scratch.join("objects").join(bucket).join(key)
    }

    /// Kills the server: connections break, later ones are refused.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("our own child");
            server.wait().expect("a killed server can be reaped");
        }
    }

    /// Brings a killed server back, with all its objects and on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill9();
        let log = File::create(self.scratch.join("log")).expect("a log file");
        let child = ServerUser::get()
            .command(tool("versitygw", "tests/tools/s3.sh"))
            .args(["--access", ACCESS_KEY, "--secret", SECRET_KEY])
            .args(["--port", &format!("127.0.0.1:{}", self.port), "posix"])
            .arg(self.scratch.join("objects"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("versitygw can be started");
        let server = self.server.insert(child);
        wait_for("the S3 server answers", || {
            if let Some(status) = server.try_wait().expect("our own child") {
                let log = fs::read_to_string(self.scratch.join("log")).unwrap_or_default();
                panic!("the S3 server ended with {status}\n{log}");
            }
            TcpStream::connect(("127.0.0.1", self.port)).is_ok().then_some(())
        });
    }

    /// Freezes the server: connections are taken, and nothing is ever answered.
    pub fn pause(&self) {
        freeze(self.process());
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) {
        signal(self.process(), Signal::CONT);
    }

    fn process(&self) -> u32 {
        self.server.as_ref().expect("the S3 server runs").id()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill9();
    }
}
