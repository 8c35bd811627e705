//! What systemd is told, if it asked (`Type=notify`): datagrams to the socket that `NOTIFY_SOCKET` names. Elsewhere
//! nothing.

use std::{fmt::Display, time::Duration};

/// So many characters of a reason are told.
const WHY: usize = 500;

/// The longest time: one more would say that there is none.
const MICROS: u128 = u64::MAX as u128 - 1;

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
    pub(super) fn stopping(&self, why: &dyn Display, longest: Duration) {
        self.tell(&stopping(why, longest));
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

/// One assignment a line. Somebody else may have written the reason: systemd ends a line at a carriage return too, and heeds
/// nothing of what has a zero byte in it, or is longer than 4 KB.
fn stopping(why: &dyn Display, longest: Duration) -> String {
    let why: String = why.to_string().chars().take(WHY).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let micros = longest.as_micros().min(MICROS);
    format!("STOPPING=1\nSTATUS=stopping: {why}\nEXTEND_TIMEOUT_USEC={micros}")
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> ProptestConfig {
        ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn any_name_is_an_address_or_an_error() {
        use std::{
            ffi::OsStr,
            os::{
                linux::net::SocketAddrExt,
                unix::{
                    ffi::OsStrExt,
                    net::{SocketAddr, UnixDatagram},
                },
            },
        };
        proptest!(config(), |(rest in prop::collection::vec(any::<u8>(), 0..130), path in prop::collection::vec(any::<u8>(), 0..130))| {
            // So that nobody else has it.
            let name = [format!("buttress-{}-", std::process::id()).as_bytes(), &rest].concat();
            let socket = SocketAddr::from_abstract_name(&name).and_then(|name| UnixDatagram::bind_addr(&name));
            let sent = send(OsStr::from_bytes(&[b"@", &name[..]].concat()), b"READY=1");
            prop_assert_eq!(sent.is_ok(), socket.is_ok(), "{:?}", sent);
            if let Ok(socket) = socket {
                let mut heard = [0; 16];
                prop_assert_eq!(socket.recv(&mut heard).unwrap(), 7);
                prop_assert!(heard.starts_with(b"READY=1"));
            }
            prop_assert!(send(OsStr::from_bytes(&[b"/nowhere/", &path[..]].concat()), b"READY=1").is_err());
        });
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn whatever_the_reason_systemd_is_told_three_things(
            why in "[\\x00-\\x20\\x7f-\\u{a0}=a-z]{0,40}",
            repeated in 0_usize..2_000,
            secs in any::<u64>(),
            nanos in 0..1_000_000_000_u32,
        ) {
            let longest = Duration::new(secs, nanos);
            let told = stopping(&why.repeat(repeated), longest);
            // As systemd reads it.
            prop_assert!(told.len() < 4096 && !told.contains('\0'), "{} bytes", told.len());
            let lines: Vec<_> = told.split(['\n', '\r']).collect();
            prop_assert_eq!((lines.len(), lines[0]), (3, "STOPPING=1"));
            prop_assert!(lines[1].starts_with("STATUS=stopping: "));
            let micros: u64 = lines[2].strip_prefix("EXTEND_TIMEOUT_USEC=").unwrap().parse().unwrap();
            prop_assert!(micros < u64::MAX, "which is none");
            prop_assert_eq!(u128::from(micros), longest.as_micros().min(u128::from(u64::MAX) - 1));
        }
    }

    #[test]
    fn a_reason_cannot_tell_systemd_anything_else() {
        let told = stopping(&"deploy\rMAINPID=1\nREADY=1\0", Duration::from_secs(1));
        assert_eq!(told, "STOPPING=1\nSTATUS=stopping: deploy MAINPID=1 READY=1 \nEXTEND_TIMEOUT_USEC=1000000");
    }
}
