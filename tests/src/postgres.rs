//! A PostgreSQL cluster of the test's own, without a network, and pgbench as the client that knows which of its
//! transactions were acknowledged when.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::User;
use tempfile::TempDir;

use crate::devices::tell;
use crate::{Moment, Operation, PATIENCE, Presence, finish, run, scratch};

/// The server refuses to run as root; Debian's package makes this user.
const USER: &str = "postgres";
const CLIENTS: u32 = 4;

/// TPC-B as pgbench has it, with the number of the client's transaction noted in the same transaction.
const SCRIPT: &str = "\
\\set n :n + 1
\\set aid random(1, 100000)
\\set tid random(1, 10)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO acknowledged VALUES (:client_id, :n);
COMMIT;
";

/// Each is true, whatever transactions there were.
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history), \
     (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history), \
     (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history), \
     (SELECT count(*) FROM pgbench_history) = (SELECT count(*) FROM acknowledged)";

/// A cluster on a mounted volume; stopped at once when dropped.
pub struct Postgres {
    programs: PathBuf,
    data: PathBuf,
    user: User,
    /// Socket, log, and whatever else is not the volume's.
    dir: TempDir,
    runs: bool,
}

impl Postgres {
    /// Makes a cluster with checksums, whose files and log are small, and starts it.
    pub fn create(mount_point: &Path) -> Result<Postgres> {
        let mut this = Postgres::at(mount_point)?;
        std::fs::create_dir(&this.data)?;
        chown(&this.data, Some(this.user.uid.as_raw()), Some(this.user.gid.as_raw()))?;
        let mut initdb = this.program("initdb");
        initdb.args(["--data-checksums", "--wal-segsize=1", "--auth=trust", "--locale=C", "--encoding=UTF8"]);
        run(initdb.args(["--username", USER, "--pgdata"]).arg(&this.data))?;
        let settings =
            "min_wal_size = 4MB\nmax_wal_size = 16MB\ncheckpoint_timeout = 30s\nshared_buffers = 8MB\n";
        std::fs::write(this.data.join("postgresql.auto.conf"), settings)?;
        this.start()?;
        Ok(this)
    }

    /// The one that is on a restored volume: it was running when the power went, so to speak. On this machine its number
    /// may still be that of a process, or of what is left of one, which PostgreSQL would take for itself.
    pub fn recover(mount_point: &Path) -> Result<Postgres> {
        let mut this = Postgres::at(mount_point)?;
        std::fs::remove_file(this.data.join("postmaster.pid")).context("it did not run at that instant")?;
        this.start()?;
        Ok(this)
    }

    fn at(mount_point: &Path) -> Result<Postgres> {
        let user = User::from_name(USER)?
            .with_context(|| format!("there is no user {USER}: run `cargo xtask setup`"))?;
        let dir = scratch()?;
        // It is another user's way to its files.
        let private = mount_point.parent().context("a mount point has a parent")?;
        std::fs::set_permissions(private, PermissionsExt::from_mode(0o711))?;
        chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        Ok(Postgres { programs: programs()?, data: mount_point.join("postgres"), user, dir, runs: false })
    }

    fn start(&mut self) -> Result<()> {
        let log = self.dir.path().join("log");
        let options = format!("-c listen_addresses='' -k {}", self.dir.path().display());
        let mut start = self.program("pg_ctl");
        start.args(["start", "--wait", "--timeout=80", "--options", &options, "--log"]).arg(&log);
        self.runs = true;
        let started = run(start.arg("--pgdata").arg(&self.data));
        started.with_context(|| std::fs::read_to_string(&log).unwrap_or_default()).map(drop)
    }

    /// In order: with a checkpoint.
    pub fn stop(mut self) -> Result<()> {
        self.runs = false;
        self.stop_by("fast")
    }

    /// Loads pgbench's tables, scale 1.
    pub fn prepare(&self) -> Result<()> {
        run(self.client("pgbench").args(["--initialize", "--quiet"]))?;
        self.query("CREATE TABLE acknowledged (client integer, n bigint, PRIMARY KEY (client, n))").map(drop)
    }

    /// Transactions by four clients for so long; all of them, with the times at which pgbench began them and was told
    /// that they are committed.
    pub fn transactions(&self, seconds: u64) -> Result<Vec<Operation>> {
        let script = self.dir.path().join("script.sql");
        std::fs::write(&script, SCRIPT)?;
        let log = self.dir.path().join("transactions");
        let mut pgbench = self.client("pgbench");
        pgbench.args(["--no-vacuum", "--jobs=1", "--define=n=0", "--log", "--client", &CLIENTS.to_string()]);
        pgbench.arg(format!("--log-prefix={}", log.display())).arg(format!("--time={seconds}"));
        let said = run(pgbench.arg("--file").arg(&script))?;
        let mut operations = Vec::new();
        for entry in std::fs::read_dir(self.dir.path())? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("transactions.")) {
                let text = std::fs::read_to_string(&path)?;
                operations.extend(text.lines().map(logged).collect::<Result<Vec<_>>>()?);
            }
        }
        let committed = self.acknowledged()?;
        ensure!(
            operations.len() == committed.len()
                && operations
                    .iter()
                    .all(|operation| committed.contains(&(operation.writer, operation.number))),
            "pgbench's log has {} transactions, the table {}: {said}",
            operations.len(),
            committed.len()
        );
        Ok(operations)
    }

    /// Which of the transactions are in this cluster. An error if the sums of its tables are not what they must be, or
    /// `pg_amcheck` finds damage in any table or index.
    pub fn find(&self, operations: &[Operation]) -> Result<Vec<(Operation, Presence)>> {
        let sums = self.query(SUMS)?;
        ensure!(sums.trim() == "t|t|t|t", "half a transaction is there: {sums}");
        let there = self.acknowledged()?;
        let mut check = self.client("pg_amcheck");
        run(check.args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]))?;
        let presence = |operation: &Operation| match there.contains(&(operation.writer, operation.number)) {
            true => Presence::Whole,
            false => Presence::Absent,
        };
        let known =
            there.iter().all(|(client, n)| operations.iter().any(|o| (o.writer, o.number) == (*client, *n)));
        ensure!(known, "a transaction that nobody made");
        Ok(operations.iter().map(|operation| (*operation, presence(operation))).collect())
    }

    /// Of every page, once the server is stopped.
    pub fn checksums(mount_point: &Path) -> Result<()> {
        let this = Postgres::at(mount_point)?;
        run(this.program("pg_checksums").arg("--check").arg("--pgdata").arg(&this.data)).map(drop)
    }

    /// Client and number of each that is committed by now.
    pub fn acknowledged(&self) -> Result<BTreeSet<(u32, u64)>> {
        let rows = self.query("SELECT client, n FROM acknowledged")?;
        let row = |line: &str| {
            let (client, n) = line.split_once('|').with_context(|| format!("not two columns: {line}"))?;
            Ok((client.parse()?, n.parse()?))
        };
        rows.lines().map(row).collect()
    }

    fn query(&self, sql: &str) -> Result<String> {
        let mut psql = self.client("psql");
        psql.args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--command",
        ]);
        run(psql.arg(sql))
    }

    fn stop_by(&self, mode: &str) -> Result<()> {
        let mut stop = self.program("pg_ctl");
        stop.args(["stop", "--wait", "--timeout=80", "--mode", mode, "--pgdata"]).arg(&self.data);
        run(&mut stop).map(drop)
    }

    fn client(&self, name: &str) -> Command {
        let mut command = self.program(name);
        command.arg("--host").arg(self.dir.path()).args(["--username", USER]);
        command
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        // Not those of whoever runs the test.
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
        command.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.runs {
            // It may not have come up at all.
            let mut stop = self.program("pg_ctl");
            stop.args(["stop", "--wait", "--mode", "immediate", "--pgdata"]).arg(&self.data);
            tell(finish(&mut stop, PATIENCE));
        }
    }
}

/// Debian has the programs of each version in a directory of its own: the newest.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(|path| version(path));
    Ok(newest.context("no PostgreSQL in /usr/lib/postgresql: run `cargo xtask setup`")?.join("bin"))
}

/// A line of pgbench's log: client, number, microseconds it took, script, and when it was done, in seconds and
/// microseconds since 1970. Rounded so that nothing is claimed to be later begun or earlier done than it was.
fn logged(line: &str) -> Result<Operation> {
    let fields: Vec<u64> =
        line.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| line.to_owned())?;
    let [client, number, took_us, _, seconds, us] = fields[..] else {
        anyhow::bail!("not a line of pgbench's log: {line}");
    };
    let done_us = seconds * 1_000_000 + us;
    // One thread of one process notes them all, so their times are in the order of things, too.
    let moment = |us| Moment { tick: us, time_ns: us * 1000 };
    let (begun, acknowledged) = (moment(done_us - took_us - 1), Some(moment(done_us + 1)));
    Ok(Operation { writer: u32::try_from(client)?, number, begun, acknowledged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_are_read() {
        let operation = logged("2 7 1500 0 1700000000 000250").expect("a good line");
        assert_eq!((operation.writer, operation.number), (2, 7));
        assert_eq!(operation.begun.time_ns, 1_699_999_999_998_749_000);
        assert_eq!(operation.acknowledged.expect("it is").time_ns, 1_700_000_000_000_251_000);
        assert!(logged("2 7 skipped 0 1700000000 250").is_err());
        assert!(logged("2 7 1500 0 1700000000").is_err());
    }
}
