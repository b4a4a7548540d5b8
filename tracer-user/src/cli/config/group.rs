//! A table `[group.NAME]`: volumes that are marked together. What of `protect` is about marks means the same for a group.

use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeArray, DeValue};

use crate::cli::config::{Reader, Table, option};
use crate::service::{Group, UnitKind};

const KEYS: [&str; 5] = ["after-mark", "before-mark", "freeze-timeout", "hook-timeout", "mark-every"];

impl<'i> Reader<'i> {
    /// `kinds`: of what else is configured, by name.
    pub(super) fn group(
        &mut self,
        name: String,
        line: usize,
        value: Table<'i>,
        kinds: &[(String, UnitKind)],
    ) -> Option<Group> {
        self.name(&name, line);
        let mut table = match value.into_inner() {
            DeValue::Table(table) => table,
            _ => {
                self.wrong(line, format!("[group.{name}] has to be a table"));
                return None;
            }
        };
        let Some((key, volumes)) = table.remove_entry("volumes") else {
            self.wrong(line, format!("{name} has no `volumes`, such as volumes = [\"data\", \"log\"]"));
            return None;
        };
        let volumes_line = self.line(key.span().start);
        let volumes = self.members(volumes, volumes_line, kinds);
        let span = 0..0;
        let mut settings =
            self.options(Spanned::new(span, DeValue::Table(table)), line, Some(UnitKind::Volume));
        settings.retain(|setting| {
            let is_of_group = KEYS.contains(&&setting.key[..]);
            if !is_of_group {
                let what = format!("a group has no `{}`; it has volumes, {}", setting.key, KEYS.join(", "));
                self.wrong(setting.line, what);
            }
            is_of_group
        });
        let places = ["protect", "/source", "--journal=/journal", "--target=/target"].map(OsString::from);
        let arguments: Vec<_> =
            places.into_iter().chain(settings.iter().map(|setting| setting.argument().into())).collect();
        match option::together(&arguments) {
            Ok(args) => {
                let (mark_every, freeze_timeout, hooks) = args.of_marks();
                Some(Group { name, volumes: volumes?, mark_every, freeze_timeout, hooks })
            }
            Err(what) => {
                self.wrong(line, what);
                None
            }
        }
    }

    fn members(
        &mut self,
        value: Table<'i>,
        line: usize,
        kinds: &[(String, UnitKind)],
    ) -> Option<Vec<String>> {
        let names = match value.into_inner() {
            DeValue::Array(array) => texts(array),
            _ => None,
        };
        let Some(names) = names else {
            self.wrong(line, "`volumes` takes names of volumes, such as [\"data\", \"log\"]".into());
            return None;
        };
        if names.len() < 2 {
            self.wrong(line, "a group has two volumes at least: one by itself has marks of its own".into());
        }
        for (at, name) in names.iter().enumerate() {
            let what = match kinds.iter().find(|(other, _)| other == name) {
                None => format!("there is no [volume.{name}]"),
                Some((_, UnitKind::Tree)) => format!(
                    "{name} is a tree, whose marks are of files and not of an instant of a device: \
                     protect its volume to have it in a group"
                ),
                _ if names[..at].contains(name) => format!("{name} is named twice"),
                _ => match self.groups.iter().find(|group| group.volumes.contains(name)) {
                    Some(group) => format!("{name} is in the group {} already", group.name),
                    None => continue,
                },
            };
            self.wrong(line, what);
        }
        Some(names)
    }
}

fn texts(array: DeArray<'_>) -> Option<Vec<String>> {
    array.into_iter().map(|value| value.get_ref().as_str().map(str::to_owned)).collect()
}
