//! SQLite with a write-ahead log: transactions that move money between accounts, one at a time.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::demo::load::Load;
use crate::run;

const ACCOUNTS: u64 = 100;
const OPENING_BALANCE: u64 = 1000;
/// Transfers by one process. When it ends it writes the log back and deletes it.
const BATCH: u64 = 400;
const PAUSE: Duration = Duration::from_millis(2);
const DATABASE: &str = "bank/bank.db";

/// One value a line. Each balance must follow from the transfers: none half done, lost or made up.
const CHECK: &str = "PRAGMA integrity_check; SELECT sum(balance) FROM accounts; SELECT count(*) FROM transfers; \
                     SELECT ifnull(max(id), 0) FROM transfers; \
                     SELECT count(*) FROM accounts AS a WHERE balance <> 1000 \
                       + (SELECT total(amount) FROM transfers WHERE payee = a.id) \
                       - (SELECT total(amount) FROM transfers WHERE payer = a.id);";

pub struct Sqlite {
    database: PathBuf,
    log: PathBuf,
    acknowledged: AtomicU64,
}

impl Sqlite {
    pub fn prepare(volume: &Path, dir: &Path) -> Result<Sqlite> {
        let database = volume.join(DATABASE);
        fs::create_dir_all(volume.join("bank"))?;
        let sql = format!(
            "PRAGMA journal_mode = WAL; CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL); \
             CREATE TABLE transfers (id INTEGER PRIMARY KEY, payer INTEGER, payee INTEGER, amount INTEGER, note BLOB); \
             WITH RECURSIVE ids(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM ids WHERE id < {ACCOUNTS} - 1) \
             INSERT INTO accounts SELECT id, {OPENING_BALANCE} FROM ids;"
        );
        run::output(sqlite(&database)?.arg(sql))?;
        Ok(Sqlite { database, log: dir.join("sqlite.log"), acknowledged: AtomicU64::new(0) })
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub fn run(&self, load: &Load) -> Result<()> {
        while load.goes_on() {
            self.batch(load).with_context(|| fs::read_to_string(&self.log).unwrap_or_default())?;
        }
        Ok(())
    }

    /// What a rebuilt volume must hold. `dir`: where the database is copied to, for the volume is read-only. Returns the
    /// number of transfers.
    pub fn prove(volume: &Path, dir: &Path, acknowledged: u64) -> Result<u64> {
        for suffix in ["", "-wal"] {
            let from = volume.join(format!("{DATABASE}{suffix}"));
            // Without a log the database is complete by itself.
            if suffix.is_empty() || from.exists() {
                fs::copy(&from, dir.join(format!("bank.db{suffix}")))
                    .with_context(|| from.display().to_string())?;
            }
        }
        let found = run::output(sqlite(&dir.join("bank.db"))?.arg(CHECK))?;
        judge(&found, acknowledged)
    }

    fn batch(&self, load: &Load) -> Result<()> {
        let mut command = sqlite(&self.database)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&self.log)?);
        let mut child = command.spawn().context("cannot start sqlite3")?;
        let mut stdin = child.stdin.take().expect("stdin was asked for above");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout was asked for above")).lines();
        let first = self.acknowledged() + 1;
        for number in first..first + BATCH {
            if !load.pause(PAUSE) {
                break;
            }
            writeln!(stdin, "{}", transfer(number))?;
            stdin.flush()?;
            // SQLite answers after the commit has returned, and that is after its fsync.
            let answer = stdout.next().context("sqlite3 has ended")??;
            ensure!(answer == number.to_string(), "sqlite3 said {answer} to transfer {number}");
            self.acknowledged.store(number, Ordering::SeqCst);
        }
        drop(stdin);
        let status = child.wait()?;
        ensure!(status.success(), "sqlite3 failed ({status})");
        Ok(())
    }
}

impl fmt::Display for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} SQLite transactions", self.acknowledged())
    }
}

fn sqlite(database: &Path) -> Result<Command> {
    let mut sqlite = run::program("sqlite3")?;
    sqlite.args(["-batch", "-bail", "-init", "/dev/null"]).arg(database);
    Ok(sqlite)
}

fn transfer(number: u64) -> String {
    let (payer, amount) = (number * 7 % ACCOUNTS, number % 13 + 1);
    let payee = (payer + 1 + number % (ACCOUNTS - 1)) % ACCOUNTS;
    let moved = format!(
        "BEGIN IMMEDIATE; UPDATE accounts SET balance = balance - {amount} WHERE id = {payer}; \
         UPDATE accounts SET balance = balance + {amount} WHERE id = {payee};"
    );
    let entry =
        format!("INSERT INTO transfers VALUES ({number}, {payer}, {payee}, {amount}, randomblob(300));");
    // Every tenth is begun, half done, taken back, and done.
    let false_start = if number.is_multiple_of(10) { format!("{moved} ROLLBACK; ") } else { String::new() };
    format!("{false_start}{moved} {entry} COMMIT; SELECT {number};")
}

fn judge(found: &str, acknowledged: u64) -> Result<u64> {
    let lines: Vec<_> = found.lines().collect();
    let [integrity, sum, count, last, wrong] = lines[..] else {
        bail!("SQLite finds damage: {found}");
    };
    ensure!(integrity == "ok", "SQLite finds damage: {integrity}");
    ensure!(sum == (ACCOUNTS * OPENING_BALANCE).to_string(), "the accounts sum up to {sum}");
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("not a number: {text}"));
    let (count, last) = (number(count)?, number(last)?);
    ensure!(count == last, "of {last} transfers {count} are there");
    ensure!(
        last >= acknowledged,
        "transfer {acknowledged} was acknowledged before the mark, {last} is the last there"
    );
    ensure!(wrong == "0", "{wrong} balances are not what the transfers make of them");
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_never_pays_to_the_payer() {
        for number in 0..1000 {
            let payer = number * 7 % ACCOUNTS;
            let payee = (payer + 1 + number % (ACCOUNTS - 1)) % ACCOUNTS;
            assert_ne!(payer, payee);
        }
    }

    #[test]
    fn more_than_was_acknowledged_is_right_and_less_is_not() {
        assert_eq!(judge("ok\n100000\n7\n7\n0\n", 6).expect("all is right"), 7);
        let error = judge("ok\n100000\n7\n7\n0\n", 8).expect_err("number 8 is lost");
        assert!(error.to_string().contains("transfer 8"), "{error}");
    }

    #[test]
    fn damage_holes_and_wrong_sums_are_found() {
        for wrong in [
            "row 3 missing from index\nok\n100000\n7\n7\n0\n",
            "broken\n100000\n7\n7\n0\n",
            "ok\n99999\n7\n7\n0\n",
            "ok\n100000\n6\n7\n0\n",
            "ok\n100000\n7\n7\n1\n",
            "",
        ] {
            assert!(judge(wrong, 1).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_bank_adds_up_in_sqlite_itself() {
        let dir = std::env::temp_dir().join(format!("xtask-demo-sqlite-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("it can be made");
        let bank = Sqlite::prepare(&dir, &dir).expect("SQLite is there");
        let sql: String = (1..=20).map(transfer).collect();
        run::output(sqlite(&bank.database).expect("it is there").arg(sql)).expect("all are allowed");
        let copy = dir.join("copy");
        fs::create_dir_all(&copy).expect("it can be made");
        assert_eq!(Sqlite::prove(&dir, &copy, 20).expect("all is right"), 20);
        fs::remove_dir_all(&dir).expect("it can be removed");
    }
}
