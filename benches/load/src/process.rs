//! A program that is measured or needed for it: started on one core, stopped by its id whatever
//! happens, its CPU time and memory as Linux counts them. Which programs there are is not known
//! here.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a program may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// The core that the measured proxies share, one at a time.
pub(crate) const PROXY_CORE: &str = "0";
/// The core of the origin and the load.
pub(crate) const LOAD_CORE: &str = "1";

/// A running program. It ends when this is dropped, or when this process dies.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts `program` on `core`. What it says on standard error goes to `NAME.err` in
    /// `directory`; standard output, where the gateway logs every request, goes to /dev/null.
    pub(crate) fn start(
        name: &'static str,
        core: &str,
        program: &Path,
        arguments: &[&str],
        directory: &Path,
    ) -> Result<Self> {
        let errors = File::create(directory.join(format!("{name}.err")))?;
        // setpriv and taskset become the program, and keep its id.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "taskset", "-c", core])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("{name} cannot be started through setpriv (util-linux)"))?;
        Ok(Self { name, child })
    }

    /// Waits until the program listens on `address`.
    ///
    /// # Errors
    /// When it ends instead, or takes too long; `directory` is where it says why.
    pub(crate) fn listening(mut self, address: SocketAddr, directory: &Path) -> Result<Self> {
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = self.child.try_wait()?.is_some();
            if ended || begin.elapsed() > PATIENCE {
                let said = fs::read_to_string(directory.join(format!("{}.err", self.name)));
                let said = said.unwrap_or_default();
                bail!("{} does not listen on {address}: {}", self.name, said.trim());
            }
            sleep(PAUSE);
        }
        Ok(self)
    }

    /// The program's process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time of all its threads and children so far. The accounting of ticks
    /// (`/proc/PID/stat`) is too coarse; this is the scheduler's own, in nanoseconds.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in self.tasks()? {
            // "running waiting slices": proc(5); a thread that has just ended has no file.
            let Ok(text) = fs::read_to_string(format!("{task}/schedstat")) else { continue };
            let running = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
            nanoseconds += running.context("the kernel does not count CPU time (schedstat)")?;
        }
        ensure!(nanoseconds > 0, "{} is not running, or its CPU time is not counted", self.name);
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Resident memory of it and its children, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let mut kilobytes = 0;
        for id in family(self.child.id()) {
            kilobytes += resident(&id.to_string())?;
        }
        ensure!(kilobytes > 0, "{} is not running", self.name);
        Ok(kilobytes * 1024)
    }

    /// The same, with what several processes share divided among them (`Pss`, proc(5)).
    pub(crate) fn proportional_memory(&self) -> Result<u64> {
        let mut kilobytes = 0;
        for id in family(self.child.id()) {
            let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))
                .with_context(|| format!("{}'s memory cannot be read", self.name))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let number =
                line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kilobytes += number.context("the kernel does not say how memory is shared (Pss)")?;
        }
        Ok(kilobytes * 1024)
    }

    /// `/proc/PID/task/TID` of every thread of it and its children.
    fn tasks(&self) -> Result<Vec<String>> {
        let mut tasks = Vec::new();
        for id in family(self.child.id()) {
            let directory = format!("/proc/{id}/task");
            let entries =
                fs::read_dir(&directory).with_context(|| format!("{} has ended", self.name))?;
            for entry in entries {
                tasks.push(format!("{directory}/{}", entry?.file_name().display()));
            }
        }
        Ok(tasks)
    }
}

impl Drop for Process {
    /// Asks the program to end, then ends it: nginx's workers outlive a master that is killed.
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let id = self.child.id().to_string();
        let _ = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id]).status();
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of this very process, in bytes.
pub(crate) fn own_memory() -> Result<u64> {
    Ok(resident("self")? * 1024)
}

/// `VmRSS` of a process without its children, in kB (proc(5)); 0 when it is ending.
fn resident(id: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0))
}

/// A process and its descendants.
fn family(id: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let children = children.unwrap_or_default();
    let ids = children.split_whitespace().filter_map(|id| id.parse().ok());
    std::iter::once(id).chain(ids.flat_map(family)).collect()
}

/// A loopback address that is free now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_while_it_runs_and_gone_when_it_is_dropped() {
        let directory = std::env::temp_dir();
        let arguments = ["-c", "while :; do :; done"];
        let shell = Path::new("sh");
        let process = Process::start("a shell", PROXY_CORE, shell, &arguments, &directory).unwrap();
        let id = process.child.id();
        // On a machine that has other things to do it may take a while.
        let begin = Instant::now();
        while process.cpu_time().unwrap_or_default() < Duration::from_millis(50) {
            assert!(begin.elapsed() < PATIENCE, "it is not measured, or does not run");
            sleep(PAUSE);
        }
        assert!(process.memory().unwrap() > 0);
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
