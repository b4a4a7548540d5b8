//! git on a clone of this repository: edits, commits, branches, whole trees deleted and checked out again, gc.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};

use crate::demo::load::Load;
use crate::run;

/// Whatever the user's own settings are: these, and no signing, hooks or background work.
const CONFIG: &str = "[user]\n\tname = demo\n\temail = demo@localhost\n[safe]\n\tdirectory = *\n[gc]\n\tauto = 0\n\
                      [maintenance]\n\tauto = false\n[init]\n\tdefaultBranch = demo\n[advice]\n\tdetachedHead = false\n";
const BRANCH: &str = "demo";
const PROJECT: &str = "project";

pub struct Git {
    project: PathBuf,
    config: PathBuf,
    last_commit: Mutex<String>,
    commits: AtomicU64,
}

impl Git {
    pub fn prepare(volume: &Path, dir: &Path) -> Result<Git> {
        let config = dir.join("gitconfig");
        fs::write(&config, CONFIG)?;
        let project = volume.join(PROJECT);
        let git = Git { project, config, last_commit: Mutex::default(), commits: AtomicU64::new(0) };
        let root = run::root();
        let project = &git.project;
        if git
            .command(root)?
            .args(["rev-parse", "--git-dir"])
            .output()
            .is_ok_and(|found| found.status.success())
        {
            run::output(
                git.command(volume)?.args(["clone", "--quiet", "--no-hardlinks"]).arg(root).arg(project),
            )?;
            git.git(&["checkout", "--quiet", "-B", BRANCH])?;
        } else {
            // Sources without their history.
            run::output(git.command(volume)?.args(["init", "--quiet"]).arg(project))?;
            let mut work_tree = std::ffi::OsString::from("--work-tree=");
            work_tree.push(root);
            run::output(
                git.command(project)?.arg("--git-dir=.git").arg(work_tree).args(["add", "--all", "--", ":/"]),
            )?;
            git.git(&["commit", "--quiet", "--message=the sources"])?;
            git.git(&["checkout", "--quiet", "--force", BRANCH])?;
        }
        git.note_commit()?;
        Ok(git)
    }

    /// A clone of this repository.
    pub fn project(&self) -> &Path {
        &self.project
    }

    pub fn last_commit(&self) -> String {
        self.last_commit.lock().expect("no thread panics with it").clone()
    }

    pub fn run(&self, load: &Load) -> Result<()> {
        let mut round = 0;
        while load.goes_on() {
            round += 1;
            self.commit(round)?;
            if round % 5 == 0 {
                let side = format!("side-{round}");
                self.git(&["checkout", "--quiet", "-b", &side, "HEAD~1"])?;
                self.git(&["checkout", "--quiet", BRANCH])?;
            }
            if round % 6 == 0 {
                self.check_out_anew()?;
            }
            if round % 9 == 0 {
                self.git(&["gc", "--quiet"])?;
            }
        }
        Ok(())
    }

    /// What a rebuilt volume must hold. Returns the number of commits.
    pub fn prove(&self, volume: &Path, commit: &str) -> Result<u64> {
        let project = volume.join(PROJECT);
        let git = |arguments: &[&str]| run::output(self.command(&project)?.args(arguments));
        git(&["fsck", "--full", "--no-dangling", "--no-progress"]).context("git finds damage")?;
        let ancestor =
            ["merge-base", "--is-ancestor", commit, &format!("refs/heads/{BRANCH}")].map(str::to_owned);
        git(&ancestor.each_ref().map(String::as_str))
            .with_context(|| format!("commit {commit}, made before the mark, is not on its branch"))?;
        let count = git(&["rev-list", "--count", commit])?;
        count.trim().parse().with_context(|| format!("not a number of commits: {count}"))
    }

    fn commit(&self, round: u64) -> Result<()> {
        let sources = self.git(&["ls-files", "*.rs"])?;
        let sources: Vec<_> = sources.lines().collect();
        if sources.is_empty() {
            bail!("the clone of this repository has no sources");
        }
        for step in 0..4 {
            let index = (round * 7 + step * 13) as usize % sources.len();
            let path = self.project.join(sources[index]);
            let mut text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            text.push_str(&format!("// demo: edit {step} of round {round}\n"));
            fs::write(&path, text)?;
        }
        let notes = self.project.join("notes");
        fs::create_dir_all(&notes)?;
        fs::write(notes.join(format!("{round}.md")), format!("# Round {round}\n").repeat(200))?;
        if round > 3 {
            fs::remove_file(notes.join(format!("{}.md", round - 3)))?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--no-verify", &format!("--message=round {round}")])?;
        self.note_commit()?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Deletes every file of the working tree and unpacks it again.
    fn check_out_anew(&self) -> Result<()> {
        for entry in fs::read_dir(&self.project)? {
            let entry = entry?;
            if entry.file_name() == ".git" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        self.git(&["checkout", "--quiet", "--force", BRANCH])?;
        Ok(())
    }

    fn note_commit(&self) -> Result<()> {
        let commit = self.git(&["rev-parse", "HEAD"])?.trim().to_owned();
        *self.last_commit.lock().expect("no thread panics with it") = commit;
        Ok(())
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        run::output(self.command(&self.project)?.args(arguments))
    }

    fn command(&self, dir: &Path) -> Result<Command> {
        let mut git = run::program("git")?;
        git.current_dir(dir).env("GIT_CONFIG_GLOBAL", &self.config).env("GIT_CONFIG_NOSYSTEM", "1");
        // Set in git's hooks, from where one may run this.
        for name in
            ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_PARAMETERS", "GIT_OBJECT_DIRECTORY"]
        {
            git.env_remove(name);
        }
        git.env("GIT_OPTIONAL_LOCKS", "0").env("LC_ALL", "C");
        Ok(git)
    }
}

impl fmt::Display for Git {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commits", self.commits.load(Ordering::Relaxed))
    }
}
