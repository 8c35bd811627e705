//! What systemd is told, if it asked (`Type=notify`): datagrams to the socket that `NOTIFY_SOCKET` names. Elsewhere
//! nothing.

use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Systemd {
    #[cfg(unix)]
    socket: Option<std::ffi::OsString>,
}

impl Systemd {
    pub(super) fn from_env() -> Self {
        Self {
            #[cfg(unix)]
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()),
        }
    }

    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// `longest`: until when it must be left alone.
    pub(super) fn stopping(&self, why: &dyn std::fmt::Display, longest: Duration) {
        // One assignment a line.
        let why = why.to_string().replace('\n', " ");
        self.tell(&format!("STOPPING=1\nSTATUS=stopping: {why}\nEXTEND_TIMEOUT_USEC={}", longest.as_micros()));
    }

    #[cfg(not(unix))]
    fn tell(&self, _: &str) {}

    #[cfg(unix)]
    fn tell(&self, what: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, what.as_bytes()) {
            tracing::warn!(target: "buttress", %error, ?socket, "systemd could not be told");
        }
    }
}

#[cfg(unix)]
fn send(socket: &std::ffi::OsStr, what: &[u8]) -> std::io::Result<()> {
    let datagram = std::os::unix::net::UnixDatagram::unbound()?;
    // A full socket must not hold up the shutdown.
    datagram.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    {
        use std::os::{linux::net::SocketAddrExt, unix::ffi::OsStrExt};
        if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            return datagram.send_to_addr(what, &address).map(drop);
        }
    }
    datagram.send_to(what, socket).map(drop)
}
