//! Whether volumes can be frozen together.

use std::collections::BTreeMap;
use std::path::Path;

use crate::io::{BlockDevice, Role, ensure_not_on_volume, mounted_on};

/// The file systems of one must not be those of another, nor stand on them: a freeze of the lower one takes the upper one along,
/// and would wait for it if that came first. Those that are not there now are looked at when they are.
///
/// # Errors
/// Why not, for people.
pub fn together(volumes: &[(&str, &Path)]) -> Result<(), String> {
    let there: Vec<_> = volumes
        .iter()
        .filter_map(|(name, path)| Some((*name, *path, BlockDevice::open(path).ok()?)))
        .collect();
    let mut file_systems = BTreeMap::new();
    for (name, _, volume) in &there {
        for (other, path, _) in there.iter().filter(|(other, ..)| other != name) {
            if let Err(error) = ensure_not_on_volume(volume, path, Role::Member) {
                return Err(format!("{other} and {name} cannot be frozen one by one: {error}"));
            }
        }
        let mounted = mounted_on(volume.number).map_err(|error| format!("{name}: {error}"))?;
        for fs in mounted {
            if let Some(other) = file_systems.insert(fs.number, *name) {
                return Err(format!(
                    "the {} mounted at {} is on both {other} and {name}: what is frozen once cannot be frozen twice; \
                     protect the volume that has all of it",
                    fs.fs_type,
                    fs.mount_point.display()
                ));
            }
        }
    }
    Ok(())
}
