//! Services that nobody here wrote, where they are installed.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use tokio::time::Instant;

use super::redis::free_port;
use super::{PATIENCE, Scratch};

/// A running service, ended when dropped.
pub struct Foreign {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    _scratch: Scratch,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// nginx in front of the files in `tree`; `None` where it is not installed.
pub fn nginx(tree: &Path) -> Option<Foreign> {
    let program = ["nginx", "/usr/sbin/nginx"].into_iter().find(|program| {
        let version = Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    })?;
    started(|port, scratch| {
        let at = scratch.path().display();
        // One process, so that ending it ends all of it.
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr crit; events {{ worker_connections 512; }}\n\
             http {{ access_log off; client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at};\n\
             uwsgi_temp_path {at}; scgi_temp_path {at}; types {{ text/plain txt; }}\n\
             server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
            tree.display()
        );
        let config = scratch.write("nginx.conf", &config);
        let mut command = Command::new(program);
        command.arg("-c").arg(config).arg("-p").arg(scratch.path());
        command
    })
}

/// Python's own file server in front of `tree`; `None` where it is not installed.
pub fn python(tree: &Path) -> Option<Foreign> {
    Command::new("python3").arg("--version").stdout(Stdio::null()).status().ok().filter(ExitStatus::success)?;
    started(|port, _| {
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(tree).arg(port.to_string());
        command
    })
}

/// Starts what `command` makes of a free port, and waits until it accepts.
fn started(command: impl Fn(u16, &Scratch) -> Command) -> Option<Foreign> {
    let began = Instant::now();
    loop {
        let (scratch, port) = (Scratch::new(), free_port());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = command(port, &scratch);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        while child.try_wait().expect("our own child").is_none() {
            if TcpStream::connect(address).is_ok() {
                return Some(Foreign { address, child, _scratch: scratch });
            }
            assert!(began.elapsed() < PATIENCE, "{command:?} does not accept");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(began.elapsed() < PATIENCE, "{command:?} ends by itself");
    }
}
