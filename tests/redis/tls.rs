//! `rediss://`: a server that the system trusts, and others.
//!
//! Whom the system trusts is said to a process by its environment, so the store is the command's, in a process of its own.

use super::*;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Makes a certificate of its own for a name of a host; gives it and its key.
fn certificate(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=a test", "-addext", &format!("subjectAltName=DNS:{name}")])
        // What signs itself may be the root of trust and the server's at once only if it is no authority.
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success(), "openssl makes no certificate");
    (cert, key)
}

fn is_possible() -> bool {
    let openssl =
        Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !openssl {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "openssl is missing: apt-get install openssl");
        thermocline_testing::skipped("tests of TLS to Redis: openssl is missing: apt-get install openssl");
    }
    openssl && is_installed()
}

/// Serves a store that reports to `localhost` by TLS, trusting one certificate; gives the process and its log.
fn serving(dir: &Path, port: u16, trusted: &Path) -> (Child, PathBuf) {
    let (ssd, file, log) = (dir.join("ssd"), dir.join("t.toml"), dir.join("t.log"));
    let text = format!(
        "[storage_tiers.ssd]\npath = {ssd:?}\n[metrics.redis]\nurl = \"rediss://localhost:{port}\"\ninstance = \"one\"\n"
    );
    std::fs::write(&file, text).unwrap();
    drop(Cache::builder().ssd(&ssd, 64 << 20).open().unwrap());
    let _ = std::fs::remove_file(&log);
    let mut child = Command::new(env!("CARGO_BIN_EXE_thermocline"))
        .args(["serve-metrics", "0", "--config"])
        .arg(&file)
        .arg("--log")
        .arg(&log)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, log)
}

fn ended(mut child: Child) {
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_that_is_trusted_gets_the_metrics_and_no_other() {
    if !is_possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path(), "localhost");
    let (stranger, _) = certificate(dir.path(), "stranger");
    let (tls, text) = (free_port().to_string(), |p: &Path| p.to_str().unwrap().to_owned());
    let (cert_text, key_text) = (text(&cert), text(&key));
    let args = ["--tls-port", &tls, "--tls-cert-file", &cert_text, "--tls-key-file", &key_text];
    let server =
        Server::start(&[&args[..], &["--tls-ca-cert-file", &cert_text, "--tls-auth-clients", "no"]].concat());
    let mut client = server.metrics();
    let port = tls.parse().unwrap();

    // Somebody else's certificate is trusted, and not this one.
    let (child, log) = serving(dir.path(), port, &stranger);
    let said = || std::fs::read_to_string(&log).unwrap();
    until("it is refused", || said().contains("no metrics go to Redis"));
    assert!(said().contains("certificate"), "{}", said());
    ended(child);
    assert!(keys(&mut client).is_empty());

    let (child, log) = serving(dir.path(), port, &cert);
    until("it reports", || instances(&mut client) == ["one"]);
    // Who looks at it there trusts no more.
    let url = format!("rediss://localhost:{port}");
    let look = |trusted: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
        command
            .args(["top", "--json", "--redis", &url])
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR");
        command.output().unwrap()
    };
    let (shown, refused) = (look(&cert), look(&stranger));
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("\"instance\": \"one\""), "{shown:?}");
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("certificate"), "{refused:?}");
    ended(child);
    assert!(instances(&mut client).is_empty());
    assert!(!std::fs::read_to_string(&log).unwrap().contains("WARN"));
}

#[test]
fn a_certificate_of_another_name_is_refused() {
    if !is_possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path(), "another.example");
    let (tls, text) = (free_port().to_string(), |p: &Path| p.to_str().unwrap().to_owned());
    let (cert_text, key_text) = (text(&cert), text(&key));
    let args = ["--tls-port", &tls, "--tls-cert-file", &cert_text, "--tls-key-file", &key_text];
    let server =
        Server::start(&[&args[..], &["--tls-ca-cert-file", &cert_text, "--tls-auth-clients", "no"]].concat());
    let (child, log) = serving(dir.path(), tls.parse().unwrap(), &cert);
    until("it is refused", || std::fs::read_to_string(&log).unwrap().contains("no metrics go to Redis"));
    assert!(std::fs::read_to_string(&log).unwrap().contains("not valid for name"));
    ended(child);
    assert!(keys(&mut server.metrics()).is_empty());
}
