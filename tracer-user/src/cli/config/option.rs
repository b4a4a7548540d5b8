//! A key of a configuration is an option of `protect`, and means the same.

use std::error::Error;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, FromArgMatches};

use crate::cli::config::Setting;
use crate::cli::protect::{self, ProtectArgs};
use crate::cli::retention::RetentionArgs;
use crate::service::{ProtectOptions, Unit, UnitKind};

/// What is for the one start that somebody looks at.
const BY_HAND: &str = "force";
/// What a table says of itself; no options of `protect`, where these are arguments.
pub const PLACES: [&str; 3] = ["source", "journal", "target"];
const OF_TREES: [&str; 5] = ["freeze-timeout", "mark-every", "origin-ring", "origin-rung", "sync"];

pub fn is_of(key: &str, kind: UnitKind) -> bool {
    kind == UnitKind::Volume || OF_TREES.contains(&key) || is_retention(key)
}

fn is_retention(key: &str) -> bool {
    let command = RetentionArgs::augment_args(clap::Command::new("retention"));
    command.get_arguments().any(|argument| argument.get_long() == Some(key))
}

/// Whether `protect` has such an option, and takes this for it; else what is wrong.
pub fn check(setting: &Setting, kind: Option<UnitKind>) -> Result<(), String> {
    let Setting { key, value, .. } = setting;
    if key == BY_HAND {
        return Err(format!(
            "`{key}` would overwrite a target at each start: give it once, to `afterwrite protect` by hand"
        ));
    }
    if PLACES.contains(&&key[..]) {
        return Err(format!("`{key}` is for one volume, not for all"));
    }
    let command = ProtectArgs::augment_args(clap::Command::new("protect"));
    let is_known = command.get_arguments().any(|argument| argument.get_long() == Some(key));
    if is_known && kind == Some(UnitKind::Tree) && !is_of(key, UnitKind::Tree) {
        return Err(format!("a tree has no `{key}`; it has {}, and what is kept", OF_TREES.join(", ")));
    }
    let arguments = ["protect", "/source", "--journal=/journal", "--target=/target", &setting.argument()];
    let Err(error) = command.try_get_matches_from(arguments) else { return Ok(()) };
    // Another one that belongs to it: looked at with all of them.
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return Ok(());
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    if !is_known {
        let hint = match text(ContextKind::SuggestedArg) {
            Some(option) => format!("did you mean `{}`?", option.trim_start_matches('-')),
            None => "`afterwrite protect --help` shows the options, without the `--`".into(),
        };
        return Err(format!("there is no `{key}`: {hint}"));
    }
    let expected = match (text(ContextKind::ValidValue), error.source()) {
        (Some(values), _) => format!("one of {values}"),
        (None, Some(source)) => source.to_string(),
        (None, None) => error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    Err(match value {
        Some(value) => format!("`{key}` cannot be {value:?}: {expected}"),
        None => format!("`{key}` needs a value: {expected}"),
    })
}

/// How the volume of a configuration is protected.
pub fn volume_options(unit: &Unit) -> ProtectOptions {
    protect::volume_options(together(&unit.arguments).expect("the arguments of a configuration were checked"))
}

/// What `protect` makes of options that are right by themselves; else why they do not go together.
pub fn together(arguments: &[OsString]) -> Result<ProtectArgs, String> {
    let command =
        clap::Command::new("afterwrite").subcommand(ProtectArgs::augment_args(clap::Command::new("protect")));
    let arguments = std::iter::once(OsString::from("afterwrite")).chain(arguments.iter().cloned());
    let taken = |matches: clap::ArgMatches| {
        let matches = matches.subcommand_matches("protect").cloned().unwrap_or_default();
        ProtectArgs::from_arg_matches(&matches)
    };
    let error = match command.try_get_matches_from(arguments).and_then(taken) {
        Ok(args) => return Ok(args),
        Err(error) => error,
    };
    let missing = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(options)) => options.join(", "),
        _ => String::new(),
    };
    let what = error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    Err(format!("{what} {missing}"))
}
