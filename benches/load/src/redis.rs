//! The Redis that sessions are kept in: started on the load's core, without anything written to disk,
//! and asked for its memory.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result};

use crate::client::PATIENCE;
use crate::process::{LOAD_CORE, Process, free_address};

/// One that runs.
pub(crate) struct Redis {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its process.
    pub(crate) process: Process,
}

impl Redis {
    /// Starts one on a free port. Its configuration and what it says go into `directory`.
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let address = free_address()?;
        let text = include_str!("../conf/redis.conf")
            .replace("@PORT@", &address.port().to_string())
            .replace("@DIRECTORY@", &directory.display().to_string());
        let file = directory.join("redis.conf");
        fs::write(&file, text)?;
        let (program, file) = (Path::new("redis-server"), file.display().to_string());
        let process = Process::start("redis", LOAD_CORE, program, &[&file], directory)?
            .listening(address, directory)?;
        Ok(Self { address, process })
    }

    /// Bytes that its data take, as it counts them itself.
    pub(crate) fn used_memory(&self) -> Result<u64> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"INFO memory\r\nQUIT\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let said = text.lines().find_map(|line| line.strip_prefix("used_memory:"));
        said.and_then(|bytes| bytes.trim().parse().ok())
            .with_context(|| format!("Redis does not say what it uses: {text}"))
    }
}
