//! A real `redis-server` on a free port of the loopback address, and a client that knows as much of its protocol as the
//! tests need: it is not the engine's, so that both cannot be wrong in the same way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    Error(String),
    Number(i64),
    Nil,
    List(Vec<Reply>),
}

impl Reply {
    pub fn text(&self) -> &str {
        match self {
            Reply::Text(text) => text,
            other => panic!("no text: {other:?}"),
        }
    }

    pub fn list(self) -> Vec<Reply> {
        match self {
            Reply::List(list) => list,
            other => panic!("no list: {other:?}"),
        }
    }

    pub fn number(&self) -> i64 {
        match self {
            Reply::Number(n) => *n,
            other => panic!("no number: {other:?}"),
        }
    }

    /// A flat list of names and values.
    pub fn pairs(self) -> Vec<(String, String)> {
        let list = self.list();
        list.chunks(2).map(|pair| (pair[0].text().to_owned(), pair[1].text().to_owned())).collect()
    }

    /// Every text in it, one after the other.
    pub fn all_text(&self) -> String {
        match self {
            Reply::Text(text) | Reply::Error(text) => format!("{text}\n"),
            Reply::Number(n) => format!("{n}\n"),
            Reply::Nil => String::new(),
            Reply::List(list) => list.iter().map(Reply::all_text).collect(),
        }
    }
}

pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(port: u16) -> std::io::Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    pub fn ask(&mut self, words: &[&str]) -> Reply {
        let mut packed = format!("*{}\r\n", words.len());
        for word in words {
            packed.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(packed.as_bytes()).unwrap();
        self.reply().unwrap()
    }

    pub fn reply(&mut self) -> std::io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1);
        Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(rest.parse().unwrap()),
            "$" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            "*" if rest == "-1" => Reply::Nil,
            "*" => {
                let list = (0..rest.parse::<usize>().unwrap()).map(|_| self.reply());
                Reply::List(list.collect::<std::io::Result<_>>()?)
            }
            _ => panic!("{line}"),
        })
    }
}

/// A server of ours, which ends with this.
pub struct Server {
    child: Option<Child>,
    dir: tempfile::TempDir,
    pub port: u16,
    args: Vec<String>,
}

/// Whether there is one to start; says so if there is not.
pub fn is_installed() -> bool {
    let found = Command::new("redis-server")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !found {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "redis-server is missing: apt-get install redis-server"
        );
        thermocline_testing::skipped(
            "tests against a real Redis: redis-server is missing: apt-get install redis-server",
        );
    }
    found
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    pub fn start(args: &[&str]) -> Server {
        // Between our look and its own somebody else may take the port.
        for _ in 0..10 {
            let dir = tempfile::tempdir().unwrap();
            let args = args.iter().map(|a| (*a).to_owned()).collect();
            let mut server = Server { child: None, dir, port: free_port(), args };
            if server.begin() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// Starts it, at the same port as before; says whether it answers.
    pub fn begin(&mut self) -> bool {
        let log = self.log();
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--daemonize",
            "no",
        ]);
        command
            .args(["--dir", self.dir.path().to_str().unwrap(), "--logfile", log.to_str().unwrap()])
            .args(&self.args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.child = Some(child);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                println!(
                    "redis-server ended ({status}): {}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
                return false;
            }
            if let Ok(mut client) = Client::connect(self.port)
                && !client.ask(&["PING"]).all_text().is_empty()
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port).unwrap()
    }

    /// A client in the database that metrics go to.
    pub fn metrics(&self) -> Client {
        let mut client = self.client();
        assert_eq!(client.ask(&["SELECT", "15"]).text(), "OK");
        client
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
