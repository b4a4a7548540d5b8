//! The configuration of the service. A table for each volume or tree says where it is, and has the long options of `protect` as
//! keys: what they mean, and which values they take, is said there only. `[service]` is about the service itself.

mod group;
mod option;
mod paths;

pub use option::volume_options;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Component, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::cli::protect::TARGETS_MAX;
use crate::service::{Configuration, Group, Unit, UnitKind};

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    pub what: String,
}

/// A unit, and the lines that say where it is.
struct Entry {
    unit: Unit,
    source_line: usize,
    journal_line: usize,
    target_line: usize,
}

/// Where the service looks for it.
pub const PATH: &str = "/etc/afterwrite/config.toml";
/// Of a unit's name.
pub const NAME_LEN_MAX: usize = 64;
const TABLES: &str = "the tables are [service], [defaults], [volume.NAME], [tree.NAME] and [group.NAME]";

type Table<'i> = Spanned<DeValue<'i>>;

/// What the name of a unit may be made of.
pub fn is_of_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// What is to be protected, in the order of the names, and how the service is to be; or all that is wrong.
pub fn parse(text: &str) -> Result<Configuration, Vec<Mistake>> {
    parse_and(text, paths::check)
}

/// The same where journals and targets need not be mounted, so that they seem to be on the root.
pub fn parse_unmounted(text: &str) -> Result<Configuration, Vec<Mistake>> {
    parse_and(text, |_, _| {})
}

fn parse_and(
    text: &str,
    check: impl FnOnce(&[Entry], &mut Vec<Mistake>),
) -> Result<Configuration, Vec<Mistake>> {
    let mut reader = Reader { text, listen: None, groups: Vec::new(), mistakes: Vec::new() };
    let entries = reader.document();
    check(&entries, &mut reader.mistakes);
    if reader.mistakes.is_empty() {
        let units = entries.into_iter().map(|entry| entry.unit).collect();
        return Ok(Configuration { units, groups: reader.groups, listen: reader.listen });
    }
    reader.mistakes.sort();
    reader.mistakes.dedup();
    Err(reader.mistakes)
}

struct Reader<'i> {
    text: &'i str,
    listen: Option<SocketAddr>,
    groups: Vec<Group>,
    mistakes: Vec<Mistake>,
}

impl<'i> Reader<'i> {
    fn document(&mut self) -> Vec<Entry> {
        let document = match DeTable::parse(self.text) {
            Ok(document) => document.into_inner(),
            Err(error) => {
                let line = self.line(error.span().map_or(0, |span| span.start));
                self.mistakes.push(Mistake { line, what: error.message().to_owned() });
                return Vec::new();
            }
        };
        let mut defaults = Vec::new();
        let mut units = Vec::new();
        let mut groups = Vec::new();
        for (key, value) in document {
            let name = key.get_ref().to_string();
            let line = self.line(key.span().start);
            let kind = match &name[..] {
                "defaults" => {
                    defaults = self.options(value, line, None);
                    continue;
                }
                "service" => {
                    self.service(value, line);
                    continue;
                }
                "group" => {
                    groups = self.named(value, line);
                    continue;
                }
                "volume" => UnitKind::Volume,
                "tree" => UnitKind::Tree,
                _ => {
                    self.wrong(line, format!("there is no `{name}`: {TABLES}"));
                    continue;
                }
            };
            units.extend(
                self.named(value, line).into_iter().map(|(name, line, value)| (kind, name, line, value)),
            );
        }
        if units.is_empty() && self.mistakes.is_empty() {
            self.wrong(1, format!("nothing is to be protected: {TABLES}"));
        }
        let kinds: Vec<_> = units.iter().map(|(kind, name, ..)| (name.clone(), *kind)).collect();
        units.sort_by_key(|(_, _, line, _)| *line);
        let mut entries: Vec<Entry> = Vec::new();
        for (kind, name, line, value) in units {
            if entries.iter().any(|entry| entry.unit.name == name) {
                self.wrong(
                    line,
                    format!("there are a volume and a tree called {name}: give one another name"),
                );
            }
            entries.extend(self.entry(kind, name, line, value, &defaults));
        }
        entries.sort_by(|a, b| a.unit.name.cmp(&b.unit.name));
        groups.sort_by_key(|(_, line, _)| *line);
        for (name, line, value) in groups {
            let group = self.group(name, line, value, &kinds);
            self.groups.extend(group);
        }
        entries
    }

    /// The tables `[kind.NAME]`.
    fn named(&mut self, value: Table<'i>, line: usize) -> Vec<(String, usize, Table<'i>)> {
        let table = self.table(value, line).into_iter();
        table.map(|(key, value)| (key.get_ref().to_string(), self.line(key.span().start), value)).collect()
    }

    fn name(&mut self, name: &str, line: usize) {
        if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(is_of_names) {
            self.wrong(
                line,
                format!(
                    "{name:?} is no name: letters, digits, `-`, `_` and `.`, at most {NAME_LEN_MAX} of them"
                ),
            );
        }
    }

    fn service(&mut self, value: Table<'i>, line: usize) {
        for (key, value) in self.table(value, line) {
            let line = self.line(key.span().start);
            if key.get_ref() != "listen" {
                self.wrong(line, format!("there is no `{}`: [service] has `listen`", key.get_ref()));
                continue;
            }
            let address = value.get_ref().as_str().and_then(|text| text.parse().ok());
            if address.is_none() {
                self.wrong(
                    line,
                    "`listen` takes an address and a port, such as \"127.0.0.1:9184\" or \"[::1]:9184\""
                        .into(),
                );
            }
            self.listen = address;
        }
    }

    fn entry(
        &mut self,
        kind: UnitKind,
        name: String,
        line: usize,
        value: Table<'i>,
        defaults: &[Setting],
    ) -> Option<Entry> {
        self.name(&name, line);
        let mut settings = self.options(value, line, Some(kind));
        let mut paths = |key: &str| {
            let of_key: Vec<Setting> = settings.extract_if(.., |setting| setting.key == key).collect();
            let line = of_key.first().map_or(line, |setting| setting.line);
            let paths: Vec<PathBuf> =
                of_key.into_iter().map(|setting| setting.value.unwrap_or_default().into()).collect();
            let is_right = |path: &PathBuf| {
                path.is_absolute() && path.components().all(|part| part != Component::ParentDir)
            };
            if paths.is_empty() {
                self.wrong(line, format!("{name} has no `{key}`"));
                return None;
            }
            if !paths.iter().all(is_right) {
                self.wrong(
                    line,
                    format!("`{key}` has to be an absolute path without `..`, such as /dev/vg0/data"),
                );
                return None;
            }
            Some((paths, line))
        };
        let (source, journal, targets) = (paths("source"), paths("journal"), paths("target"));
        let ((mut source, source_line), (mut journal, journal_line), (targets, target_line)) =
            (source?, journal?, targets?);
        let (source, journal) = (source.swap_remove(0), journal.swap_remove(0));
        match kind {
            UnitKind::Tree if targets.len() > 1 => {
                self.wrong(target_line, "a tree has one target".into());
            }
            _ if targets.len() > TARGETS_MAX => {
                self.wrong(target_line, format!("{} targets; there may be {TARGETS_MAX}", targets.len()));
            }
            _ => {}
        }
        for default in defaults {
            let is_set = settings.iter().any(|setting| setting.key == default.key);
            if !is_set && option::is_of(&default.key, kind) {
                settings.push(default.clone());
            }
        }
        settings.sort_by(|a, b| a.key.cmp(&b.key));
        let mut arguments: Vec<OsString> = vec!["protect".into(), source.clone().into()];
        let targets_of = targets.iter().map(|target| ("--target=", target));
        for (option, path) in std::iter::once(("--journal=", &journal)).chain(targets_of) {
            let mut argument = OsString::from(option);
            argument.push(path);
            arguments.push(argument);
        }
        arguments.extend(settings.iter().map(|setting| setting.argument().into()));
        if let Err(what) = option::together(&arguments) {
            self.wrong(line, what);
        }
        let unit = Unit { name, kind, source, journal, targets, arguments };
        Some(Entry { unit, source_line, journal_line, target_line })
    }

    /// The keys of a table, each looked at by itself. Of defaults, which are of no kind, none is a path.
    fn options(&mut self, value: Table<'i>, line: usize, kind: Option<UnitKind>) -> Vec<Setting> {
        let mut settings = Vec::new();
        for (key, value) in self.table(value, line) {
            let line = self.line(key.span().start);
            let key = key.into_inner().to_string();
            let value = match value.into_inner() {
                DeValue::Array(targets) if key == "target" && kind.is_some() => {
                    settings.extend(self.targets(targets, line));
                    continue;
                }
                DeValue::String(text) => Some(text.to_string()),
                DeValue::Integer(number) => Some(number.to_string()),
                DeValue::Boolean(true) => None,
                DeValue::Boolean(false) => continue,
                _ => {
                    self.wrong(line, format!("`{key}` takes a text, a number, true or false"));
                    continue;
                }
            };
            let is_path = option::PLACES.contains(&&key[..]);
            let setting = Setting { key, value, line };
            if !(is_path && kind.is_some())
                && let Err(what) = option::check(&setting, kind)
            {
                self.wrong(line, what);
                continue;
            }
            settings.push(setting);
        }
        settings
    }

    /// Several for one volume: each is a setting.
    fn targets(&mut self, targets: DeArray<'i>, line: usize) -> Vec<Setting> {
        let text = |target: &Table<'i>| target.get_ref().as_str().map(str::to_owned);
        let paths: Option<Vec<String>> = targets.iter().map(text).collect();
        let Some(paths) = paths else {
            self.wrong(
                line,
                "`target` takes a text, or several: [\"/backup/a.img\", \"/backup/b.img\"]".into(),
            );
            return Vec::new();
        };
        let setting = |path| Setting { key: "target".to_owned(), value: Some(path), line };
        paths.into_iter().map(setting).collect()
    }

    fn table(&mut self, value: Table<'i>, line: usize) -> DeTable<'i> {
        match value.into_inner() {
            DeValue::Table(table) => table,
            _ => {
                self.wrong(line, format!("this has to be a table: {TABLES}"));
                DeTable::new()
            }
        }
    }

    fn wrong(&mut self, line: usize, what: String) {
        self.mistakes.push(Mistake { line, what });
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }
}

/// A key and what it is set to.
#[derive(Clone)]
struct Setting {
    key: String,
    /// None: it is switched on.
    value: Option<String>,
    line: usize,
}

impl Setting {
    fn argument(&self) -> String {
        match &self.value {
            Some(value) => format!("--{}={value}", self.key),
            None => format!("--{}", self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[defaults]
mark-every = "1m"
capture = "payload"
daily = 7

[volume.data]
source = "/dev/vg0/data"
journal = "/backup/data.journal"
target = "/backup/data.img"
mark-every = "10s"
drop-labelled = true

[tree."home"]
source = "/home"
journal = "/backup/home.journal"
target = "/backup/home"
"#;

    fn mistakes(text: &str) -> Vec<(usize, String)> {
        let mistakes = parse(text).expect_err("it is wrong");
        mistakes.into_iter().map(|mistake| (mistake.line, mistake.what)).collect()
    }

    /// With one line of `GOOD` replaced.
    fn with(line: &str, other: &str) -> String {
        assert_eq!(GOOD.matches(line).count(), 1, "{line}");
        GOOD.replace(line, other)
    }

    #[test]
    fn a_unit_is_protected_as_it_says_and_else_by_the_defaults_that_are_of_its_kind() {
        let units = parse(GOOD).unwrap().units;
        let arguments = |unit: &Unit| {
            unit.arguments.iter().map(|argument| argument.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let [data, home] = &units[..] else { panic!("{units:?}") };
        let expected = [
            "protect",
            "/dev/vg0/data",
            "--journal=/backup/data.journal",
            "--target=/backup/data.img",
            "--capture=payload",
            "--daily=7",
            "--drop-labelled",
            "--mark-every=10s",
        ];
        assert_eq!((data.kind, arguments(data)), (UnitKind::Volume, expected.map(str::to_owned).to_vec()));
        let expected = [
            "protect",
            "/home",
            "--journal=/backup/home.journal",
            "--target=/backup/home",
            "--daily=7",
            "--mark-every=1m",
        ];
        assert_eq!((home.kind, arguments(home)), (UnitKind::Tree, expected.map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_volume_may_have_several_targets() {
        let targets = |list: &str| {
            let text = with("target = \"/backup/data.img\"", &format!("target = [{list}]"));
            parse(&text).map(|configuration| configuration.units[0].clone())
        };
        let unit = targets("\"/backup/data.img\", \"/dev/vg1/data\"").unwrap();
        assert_eq!(unit.targets, ["/backup/data.img", "/dev/vg1/data"].map(PathBuf::from));
        let given: Vec<_> =
            unit.arguments.iter().filter_map(|of| of.to_str()?.strip_prefix("--target=")).collect();
        assert_eq!(given, ["/backup/data.img", "/dev/vg1/data"]);
        let many = |count: usize| (0..count).map(|at| format!("\"/t/{at}\"")).collect::<Vec<_>>().join(", ");
        assert!(targets(&many(TARGETS_MAX)).is_ok());
        assert!(targets(&many(TARGETS_MAX + 1)).unwrap_err()[0].what.contains("there may be"));
    }

    #[test]
    fn each_mistake_is_told_with_its_line_and_a_hint() {
        let cases = [
            (with("mark-every = \"10s\"", "mark-evry = \"10s\""), 11, "mark-every"),
            (with("mark-every = \"10s\"", "mark-every = \"10\""), 11, "such as 30s"),
            (with("target = \"/backup/data.img\"", "target = []"), 7, "no `target`"),
            (with("target = \"/backup/data.img\"", "target = [\"/backup/data.img\", 1]"), 10, "or several"),
            (with("target = \"/backup/data.img\"", "target = [\"/a\", \"b\"]"), 10, "absolute"),
            (with("source = \"/home\"", "source = [\"/home\"]"), 15, "a text"),
            (with("target = \"/backup/home\"", "target = [\"/a\", \"/b\"]"), 17, "one target"),
            (with("daily = 7", "limit-apply = \"fast\""), 5, "50MiB"),
            (with("daily = 7", "limit-baseline = 0"), 5, "50MiB"),
            (with("daily = 7", "yield = true"), 5, "on, off"),
            (with("daily = 7", "target = [\"/a\"]"), 5, "a text"),
            (with("capture = \"payload\"", "capture = \"bytes\""), 4, "extents, payload"),
            (with("daily = 7", "daily = -1"), 5, "daily"),
            (with("daily = 7", "force = true"), 5, "by hand"),
            (with("daily = 7", "daily = 1.5"), 5, "a number"),
            (with("[volume.data]", "[volumes.data]"), 7, "[volume.NAME]"),
            (with("[volume.data]", "[volume.\"a b\"]"), 7, "no name"),
            (with("[volume.data]", "[volume.home]"), 14, "another name"),
            (with("source = \"/home\"", "source = \"home\""), 15, "absolute"),
            (with("source = \"/home\"", "source = \"/home/../data\""), 15, "absolute"),
            (with("source = \"/home\"", ""), 14, "no `source`"),
            (
                with("target = \"/backup/home\"", "target = \"/backup/home\"\nlimit-apply = \"1MiB\""),
                18,
                "a tree has no",
            ),
            (with("drop-labelled = true", "before-mark = \"true\""), 7, "after-mark"),
            (with("drop-labelled = true", "early = true"), 7, "trust-reboot"),
            (with("[defaults]", "[defaults"), 2, ""),
            ("[defaults]\n".into(), 1, "nothing is to be protected"),
        ];
        for (text, line, hint) in cases {
            let found = mistakes(&text);
            assert!(found.iter().any(|(at, what)| *at == line && what.contains(hint)), "{hint}: {found:?}");
        }
    }

    #[test]
    fn the_page_is_served_where_it_says_and_else_nowhere() {
        assert_eq!(parse(GOOD).unwrap().listen, None);
        let at = |text: &str| parse(&format!("[service]\n{text}\n{GOOD}"));
        assert_eq!(at("listen = \"[::1]:80\"").unwrap().listen, Some("[::1]:80".parse().unwrap()));
        assert_eq!(at("").unwrap().listen, None);
        for (wrong, hint) in [
            ("listen = \"localhost\"", "127.0.0.1:9184"),
            ("listen = 9184", "127.0.0.1:9184"),
            ("listen = false", "127.0.0.1:9184"),
            ("listn = \"127.0.0.1:9184\"", "`listen`"),
            ("mark-every = \"1s\"", "`listen`"),
        ] {
            let mistakes = at(wrong).expect_err(wrong);
            assert!(mistakes.len() == 1 && mistakes[0].line == 2, "{mistakes:?}");
            assert!(mistakes[0].what.contains(hint), "{mistakes:?}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text =
            with("mark-every = \"10s\"", "mark-evry = \"10s\"").replace("source = \"/home\"", "source = 1");
        assert_eq!(mistakes(&text).len(), 2);
    }

    #[test]
    fn units_that_are_in_each_others_way_are_refused() {
        let cases = [
            (with("source = \"/home\"", "source = \"/dev/vg0/data\""), 15, "data"),
            (with("journal = \"/backup/home.journal\"", "journal = \"/backup/data.journal\""), 16, "data"),
            (with("journal = \"/backup/home.journal\"", "journal = \"/backup/data.journal/x\""), 16, "data"),
            (with("target = \"/backup/home\"", "target = \"/backup/data.img\""), 17, "data"),
            (with("target = \"/backup/data.img\"", "target = \"/home/data.img\""), 10, "home"),
            (with("target = \"/backup/data.img\"", "target = [\"/a\", \"/home/data.img\"]"), 10, "home"),
            (with("target = \"/backup/data.img\"", "target = [\"/a\", \"/b\", \"/a\"]"), 10, "data"),
            (with("target = \"/backup/home\"", "target = [\"/backup/data.img\"]"), 17, "data"),
            (with("journal = \"/backup/data.journal\"", "journal = \"/home/j\""), 9, "home"),
        ];
        for (text, line, other) in cases {
            let found = mistakes(&text);
            assert!(found.iter().any(|(at, what)| *at == line && what.contains(other)), "{line}: {found:?}");
        }
    }

    const GROUP: &str = r#"
[volume.log]
source = "/dev/vg0/log"
journal = "/backup/log.journal"
target = "/backup/log.img"
[group.shop]
volumes = ["data", "log"]
mark-every = "5m"
before-mark = "stop"
after-mark = "start"
"#;

    #[test]
    fn a_group_is_of_volumes_and_has_what_of_protect_is_about_marks() {
        let groups = parse(&format!("{GOOD}{GROUP}")).unwrap().groups;
        let [shop] = &groups[..] else { panic!("{groups:?}") };
        assert_eq!(shop.name, "shop");
        assert_eq!(shop.volumes, ["data", "log"]);
        let minutes = |count: u64| std::time::Duration::from_secs(60 * count);
        assert_eq!((shop.mark_every, shop.freeze_timeout), (Some(minutes(5)), minutes(1) / 6));
        let hooks = shop.hooks.as_ref().unwrap();
        assert_eq!((&hooks.before[..], &hooks.after[..], hooks.timeout), ("stop", "start", minutes(1)));
        // Defaults are of volumes and trees.
        let plain = GROUP.replace("mark-every = \"5m\"", "");
        assert_eq!(parse(&format!("{GOOD}{plain}")).unwrap().groups[0].mark_every, Some(minutes(1) / 2));
    }

    #[test]
    fn each_mistake_of_a_group_is_told_with_its_line_and_a_hint() {
        let volumes = "volumes = [\"data\", \"log\"]";
        let first = GOOD.lines().count();
        for (was, now, line, hint) in [
            (volumes, "", 5, "volumes = [\"data\", \"log\"]"),
            (volumes, "volumes = \"data\"", 6, "names of volumes"),
            (volumes, "volumes = [\"data\", 1]", 6, "names of volumes"),
            (volumes, "volumes = [\"data\"]", 6, "two volumes at least"),
            (volumes, "volumes = [\"data\", \"lgo\"]", 6, "no [volume.lgo]"),
            (volumes, "volumes = [\"data\", \"home\"]", 6, "home is a tree"),
            (volumes, "volumes = [\"data\", \"data\"]", 6, "named twice"),
            ("\"5m\"", "\"5\"", 7, "such as 30s"),
            ("mark-every", "mark-evry", 7, "mark-every"),
            ("mark-every = \"5m\"", "capture = \"payload\"", 7, "a group has no `capture`"),
            ("mark-every = \"5m\"", "source = \"/dev/x\"", 7, "a group has no `source`"),
            ("after-mark = \"start\"", "", 5, "after-mark"),
            ("[group.shop]", "[group.\"a/b\"]", 5, "no name"),
            (
                "[group.shop]",
                "[group.other]\nvolumes = [\"log\", \"data\"]\n[group.shop]",
                8,
                "in the group other",
            ),
        ] {
            let found = mistakes(&format!("{GOOD}{}", GROUP.replace(was, now)));
            let is_it = |(at, what): &(usize, String)| *at == first + 1 + line && what.contains(hint);
            assert!(found.iter().any(is_it), "{hint}: {found:?}");
        }
        assert!(mistakes(&format!("{GOOD}[group]\nshop = 1"))[0].1.contains("a table"));
    }
}
