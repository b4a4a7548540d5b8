//! SQLite in WAL mode with synchronous=FULL, written by several clients that know which of their transactions were
//! acknowledged when.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::pace::Pace;
use crate::{Operation, Presence, Random, Ticks, run};

const CLIENTS: u32 = 3;
const ACCOUNTS: u64 = 100;

/// A database in a mounted volume.
pub struct Sqlite {
    path: PathBuf,
}

impl Sqlite {
    pub fn create(mount_point: &Path) -> Result<Sqlite> {
        let this = Sqlite::at(mount_point);
        let sql = format!(
            "PRAGMA journal_mode = WAL; CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL); \
             CREATE TABLE acknowledged (client INTEGER, n INTEGER, filler BLOB, PRIMARY KEY (client, n)); \
             WITH RECURSIVE ids(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM ids WHERE id < {ACCOUNTS} - 1) \
             INSERT INTO accounts SELECT id, 0 FROM ids;"
        );
        this.query(&sql)?;
        Ok(this)
    }

    pub fn at(mount_point: &Path) -> Sqlite {
        Sqlite { path: mount_point.join("bank.db") }
    }

    /// Transactions by several clients for so long; all of them.
    pub fn transactions(&self, load: Duration, random: &mut Random) -> Result<Vec<Operation>> {
        let ticks = Arc::new(Ticks::default());
        let pace = Pace::start(load);
        let threads: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (path, ticks, random) =
                    (self.path.clone(), Arc::clone(&ticks), Random::new(random.number()));
                thread::spawn(move || transactions(&path, client, pace, &ticks, random))
            })
            .collect();
        let mut operations = Vec::new();
        for thread in threads {
            operations.extend(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(operations)
    }

    /// Which of the transactions are in this database, which recovers itself. An error if it is damaged.
    pub fn find(&self, operations: &[Operation]) -> Result<Vec<(Operation, Presence)>> {
        let checks = self.query("PRAGMA integrity_check; SELECT sum(balance) FROM accounts;")?;
        ensure!(checks == "ok\n0\n", "integrity, and the sum of all balances: {checks}");
        let rows = self.query("SELECT client, n FROM acknowledged;")?;
        let row = |line: &str| {
            let (client, n) = line.split_once('|').with_context(|| format!("not two columns: {line}"))?;
            Ok((client.parse()?, n.parse()?))
        };
        let there: BTreeSet<(u32, u64)> = rows.lines().map(row).collect::<Result<_>>()?;
        let made: BTreeSet<_> =
            operations.iter().map(|operation| (operation.writer, operation.number)).collect();
        ensure!(there.is_subset(&made), "a transaction that nobody made");
        let presence = |operation: &Operation| match there.contains(&(operation.writer, operation.number)) {
            true => Presence::Whole,
            false => Presence::Absent,
        };
        Ok(operations.iter().map(|operation| (*operation, presence(operation))).collect())
    }

    fn query(&self, sql: &str) -> Result<String> {
        run(sqlite(&self.path).arg(sql))
    }
}

fn sqlite(path: &Path) -> Command {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-bail", "-init", "/dev/null"]).arg(path);
    command
}

/// One client: a process that is asked for a transaction, and answers once its commit has returned.
fn transactions(
    path: &Path,
    client: u32,
    pace: Pace,
    ticks: &Ticks,
    mut random: Random,
) -> Result<Vec<Operation>> {
    let mut process =
        sqlite(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run sqlite3")?;
    let operations = converse(&mut process, client, pace, ticks, &mut random);
    let ended = process.wait()?;
    let operations = operations?;
    ensure!(ended.success(), "sqlite3: {ended}");
    Ok(operations)
}

fn converse(
    process: &mut Child,
    client: u32,
    pace: Pace,
    ticks: &Ticks,
    random: &mut Random,
) -> Result<Vec<Operation>> {
    // Dropped at the end, which ends the process.
    let mut stdin = process.stdin.take().context("stdin was asked for")?;
    let mut answers = BufReader::new(process.stdout.take().context("stdout was asked for")?).lines();
    // Checkpoints often, as the volume is small and they are what is to be proved, too.
    writeln!(stdin, ".timeout 60000\nPRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 100;")?;
    let checkpoint = answers.next().context("sqlite3 has ended")??;
    ensure!(checkpoint == "100", "sqlite3 said {checkpoint}");
    let mut operations = Vec::new();
    while pace.next(random) {
        let number = operations.len() as u64;
        let (payer, payee, amount) = (random.below(ACCOUNTS), random.below(ACCOUNTS), random.below(100));
        let transaction = format!(
            "BEGIN IMMEDIATE; UPDATE accounts SET balance = balance - {amount} WHERE id = {payer}; \
             INSERT INTO acknowledged VALUES ({client}, {number}, randomblob(300)); \
             UPDATE accounts SET balance = balance + {amount} WHERE id = {payee}; COMMIT; SELECT {number};"
        );
        let begun = ticks.now();
        writeln!(stdin, "{transaction}")?;
        let answer = answers.next().context("sqlite3 has ended")??;
        let acknowledged = Some(ticks.now());
        ensure!(answer == number.to_string(), "sqlite3 said {answer} to transaction {number}");
        operations.push(Operation { writer: client, number, begun, acknowledged });
    }
    Ok(operations)
}
